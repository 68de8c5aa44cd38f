"""
Muon: what moves by it, how far, and what stays.

$ python -m pytest tests/test_optimizer.py
"""
import torch

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


def test_singular_values_become_about_one():
    for shape in ((3, 20, 50), (2, 50, 20)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=gen(0))))
        assert 0.6 < values.min() and values.max() < 1.3


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
