"""
Muon: what moves by it, how far, and what stays.

$ python -m pytest tests/test_optimizer.py
"""
import torch

from optimizer import make_optimizer, orthogonal
from tests.helpers import TRAIN, gen, run_here, tiny_model
from tests.test_train import checkpoint_in


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
    # All of it is warm-up, in which the learning rate does not depend on max_iters.
    short = [*TRAIN, '--tasks=mod', '--aloud=mod', '--muon=True', '--test_samples=0']
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    run_here('train.py', *short, '--max_iters=8', f'--out_dir={whole}')
    for iters, start in ((4, 'scratch'), (8, 'resume')):
        run_here('train.py', *short, f'--max_iters={iters}', f'--init_from={start}',
                 f'--out_dir={parts}')
    one, two = (checkpoint_in(folder)['model'] for folder in (whole, parts))
    assert all(torch.equal(one[key], two[key]) for key in one)
