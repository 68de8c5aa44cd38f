"""
Muon: what moves by it, how far, and what stays.

$ python -m pytest tests/test_optimizer.py
"""
import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from optimizer import make_optimizer, orthogonal
from tests.helpers import TRAIN, gen, run_here, tiny_model


def update(muon, found_inf=0.0, grad=None):
    """A tiny model, its parameters before and after one update -> {name: (before, after)}"""
    model = tiny_model()
    named = list(model.named_parameters())
    before = {name: p.detach().clone() for name, p in named}
    optimizer = make_optimizer(named, 0.01, 0.1, muon, False)
    for _, p in named:
        p.grad = torch.randn(p.shape, generator=gen(1)) if grad is None else grad + 0 * p.detach()
    optimizer.found_inf = torch.tensor(found_inf)
    optimizer.step()
    return {name: (before[name], p.detach()) for name, p in named}


def nearest(x):
    """One matrix -> the orthogonal one, in double precision, by its singular values"""
    u, values, v = torch.linalg.svd(x.double(), full_matrices=False)
    values = values / (values.norm() + 1e-7)
    for _ in range(5):
        values = values * (3.4445 - 4.7750 * values ** 2 + 2.0315 * values ** 4)
    return u * values @ v


def move_plainly(p, grad, momentum, lr, decay):
    """One matrix and its momentum, moved in place by what Muon says"""
    momentum.lerp_(grad, 0.05)
    direction = nearest(grad.lerp(momentum, 0.95))
    p.mul_(1 - lr * decay).sub_(lr * 0.2 * max(p.shape) ** 0.5 * direction)


def gap(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def test_singular_values_become_about_one():
    shapes = (50, 20), (20, 50), (20, 30), (120, 20)
    matrices = [torch.randn(shape, generator=gen(0)) for shape in shapes]
    found = orthogonal(matrices)
    assert [x.shape for x in found] == [x.shape for x in matrices]
    for x in found:
        values = torch.linalg.svdvals(x)
        assert 0.6 < values.min() and values.max() < 1.3


def test_matrices_of_any_shape_and_scale_are_one_batch():
    def normal(*shape):
        return torch.randn(shape, generator=gen(1))

    matrices = [normal(16, 16), 1e4 * normal(16, 40), 1e-4 * normal(70, 16),
                normal(90, 3) @ normal(3, 16) + 1e-3 * normal(90, 16),
                normal(16, 1) @ normal(1, 40), normal(40, 16) * torch.logspace(-3, 3, 16)]
    for x, y in zip(matrices, orthogonal(matrices), strict=True):
        assert gap(y, nearest(x)) < 1e-3
    assert not orthogonal([torch.zeros(4, 6)])[0].any()


@pytest.mark.parametrize('as_tensor', (False, True))
def test_a_batch_moves_as_its_matrices_would_alone(as_tensor):
    shapes = (24, 8), (8, 16), (8, 8), (8, 16), (40, 8), (12, 5), (6, 6), (20, 16)
    params = [torch.nn.Parameter(torch.randn(s, generator=gen(2))) for s in shapes]
    lr = torch.tensor(0.01) if as_tensor else 0.01
    named = [(f'encoder.{i}', p) for i, p in enumerate(params)]
    optimizer = make_optimizer(named, lr, 0.1, True, False)
    wanted = [p.detach().double() for p in params]
    momenta = [torch.zeros_like(p) for p in wanted]
    for step in range(4):
        # One has no gradient once, and no number is in one of them once.
        found_inf = float(step == 2)
        optimizer.found_inf = torch.tensor(found_inf)
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=gen(10 * step + i))
            if found_inf:
                p.grad[0, 0] = float('inf' if i else 'nan')
            elif (step, i) == (1, 3):
                p.grad = None
            else:
                move_plainly(wanted[i], p.grad.double(), momenta[i], 0.01, 0.1)
        optimizer.step()
        assert all(p.grad is None for p in params)
    for p, x, m in zip(params, wanted, momenta, strict=True):
        assert gap(p.detach(), x) < 1e-6
        assert gap(optimizer.state[p]['momentum'], m) < 1e-6
        assert optimizer.state[p].keys() == {'step', 'momentum'}


def test_only_matrices_inside_move_by_muon():
    plain, muon = update(False), update(True)
    other = {name for name in plain if not torch.equal(plain[name][1], muon[name][1])}
    assert {'encoder.0.in_proj.weight', 'cross.v.weight', 'self_attention.qkv.weight'} <= other
    for name, p in tiny_model().named_parameters():
        if name in other:
            assert p.dim() == 2 and name.split('.')[0] in (
                'encoder', 'decoder', 'cross', 'self_attention')
    moved = [(after - before).square().mean().sqrt() / 0.01
             for name, (before, after) in muon.items() if name in other]
    assert 0.05 < min(moved) and max(moved) < 0.5  # as AdamW's do: some 0.2 times lr


def test_nothing_moves_while_gradients_are_no_numbers():
    for before, after in update(True, 1.0, torch.tensor(float('nan'))).values():
        assert torch.equal(before, after)


def test_no_state_changes_while_gradients_are_no_numbers():
    model = tiny_model()
    named = list(model.named_parameters())
    optimizer = make_optimizer(named, 0.01, 0.1, True, False)
    for found_inf in (0.0, 1.0):
        before = copy.deepcopy([optimizer.state_dict()['state'], model.state_dict()])
        for _, p in named:
            p.grad = torch.randn(p.shape, generator=gen(1)) / (1 - found_inf)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        after = [optimizer.state_dict()['state'], model.state_dict()]
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_update_is_that_of_a_cpu():
    moved = []
    for device in ('cpu', 'cuda'):
        model = tiny_model().to(device)
        named = list(model.named_parameters())
        lr = torch.tensor(0.01, device=device)
        optimizer = make_optimizer(named, lr, 0.1, True, device == 'cuda')
        optimizer.found_inf = torch.zeros((), device=device)
        grads = [torch.randn(p.shape, generator=gen(1)).to(device) for _, p in named]
        before = [p.detach().clone() for _, p in named]

        def step(optimizer=optimizer, named=named, grads=grads):
            for (_, p), grad in zip(named, grads, strict=True):
                p.grad = grad.clone()
            optimizer.step()

        for _ in range(3):
            step()
        if device == 'cuda':
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # nothing moves while it is captured
                step()
            step = graph.replay
        step()
        moved.append([(p.detach() - x).cpu() for (_, p), x in zip(named, before, strict=True)])
    for on_cpu, on_gpu in zip(*moved, strict=True):
        assert gap(on_gpu, on_cpu) < 0.05  # half precision


def test_it_goes_on_where_it_stopped(tmp_path):
    # The learning rate stays, so that it does not depend on max_iters.
    flags = [*TRAIN, '--tasks=mod', '--aloud=mod', '--muon=True', '--test_samples=0', '--think=2',
             '--eval_interval=8', '--learning_rate=1e-3', '--min_lr=1e-3', '--warmup_iters=0']
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    runs = (whole, 8, 'scratch'), (parts, 4, 'scratch'), (parts, 8, 'resume')
    for folder, iters, start in runs:
        code, _ = run_here('train.py', *flags, f'--max_iters={iters}', f'--init_from={start}',
                           f'--out_dir={folder}')
        assert code == 0
    one, two = (torch.load(folder / 'ckpt.pt', weights_only=True) for folder in (whole, parts))
    assert one['iter_num'] == two['iter_num'] == 8
    assert all(torch.equal(p, two['model'][name]) for name, p in one['model'].items())
