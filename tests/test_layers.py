"""
fast/layers.py beside the layers one by one: in Triton's interpreter, and compiled where there is a
GPU.
"""
import sys

import pytest
import torch

from fast.kernels import Sizes
from fast.layers import LayerRun, run_layers, weights_of
from model import JMambaConfig, Mamba2
from tests.helpers import TINY, gen
from tests.test_kernels import ROUNDING, gaps, largest_in_interpreter, needs_gpu, needs_triton

SIZES = [  # L, B, T, counting
    (1, 3, 5, 0.5),
    (3, 8, 6, 0.5),   # as many examples as a sum of products has parts
    (2, 1, 70, 1.0),  # no head forgets, so that there is nothing of A to learn
    (2, 1, 33, 0.0),  # all do
]


def layers_and_inputs(L, B, T, counting=0.5, **settings):
    """L layers with weights that are all different; x, pace, and the gradient of what comes out"""
    c = JMambaConfig(**TINY | settings, counting=counting)
    layers = [Mamba2(c) for _ in range(L)]
    generator = gen()
    for layer in layers:
        for name, p in layer.named_parameters():
            low, high = {'A_log': (0, 2), 'dt_bias': (-4, 0)}.get(name, (0.5, 1.5))
            with torch.no_grad():
                if p.dim() == 2:
                    p.normal_(std=p.shape[1] ** -0.5, generator=generator)
                else:
                    p.uniform_(low, high, generator=generator)
    x = torch.randn(B, T, c.d_model, generator=generator)
    pace = torch.rand(B, T, 1, generator=generator)
    pace[:, 3:5] = 0  # time stands still
    return layers, x, pace, torch.randn(x.shape, generator=generator)


def one_by_one(layers, x, pace):
    for layer in layers:
        x = layer(x, pace)
    return x


def by_layer_run(layers, x, pace):
    first = layers[0]
    sizes = Sizes(*x.shape[:2], len(first.in_proj.weight), len(first.D), *first.sizes)
    weights = [w for layer in layers for w in weights_of(layer)]
    return LayerRun.apply(x, pace, sizes, x.dtype, torch.is_grad_enabled(), *weights)


def outcome(run, layers, x, pace, dy):
    """What comes out, and the gradients of x and of all weights that there are"""
    x = x.clone().requires_grad_()
    leaves = [x] + [w for layer in layers for w in layer.parameters() if w.numel()]
    y = run(layers, x, pace)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def layer_run_gaps():
    """LayerRun from the layers one by one; and again where there will be no backward pass"""
    result = []
    for size in SIZES:
        given = layers_and_inputs(*size)
        wanted = outcome(one_by_one, *given)
        found = outcome(by_layer_run, *given)
        with torch.no_grad():
            forward = by_layer_run(*given[:3])
        result += gaps([*wanted, wanted[0]], [*found, forward])
    return result


@needs_triton
def test_layer_run_in_the_interpreter():
    assert largest_in_interpreter(layer_run_gaps) < ROUNDING


@pytest.mark.parametrize('autocast', [False, True])
def test_on_a_cpu_it_goes_layer_by_layer(autocast):
    layers, x, pace, dy = layers_and_inputs(*SIZES[0])
    with torch.autocast('cpu', torch.bfloat16, autocast):
        wanted = outcome(one_by_one, layers, x, pace, dy)
        found = outcome(run_layers, layers, x, pace, dy)
    assert all(map(torch.equal, wanted, found))


@needs_triton
@needs_gpu
@pytest.mark.parametrize('T', [32, 50, 96, 128])
@pytest.mark.parametrize('dtype, bound', [(torch.float16, 2e-2), (torch.bfloat16, 0.16)])
def test_layer_run_on_a_gpu(T, dtype, bound):
    width = {'d_model': 128, 'd_state': 64, 'head_dim': 32}
    layers, *given = layers_and_inputs(3, 12, T, **width)
    layers = [layer.cuda() for layer in layers]
    given = [x.cuda() for x in given]
    wanted = outcome(one_by_one, layers, *given)
    with torch.autocast('cuda', dtype):
        found = outcome(run_layers, layers, *given)
        with torch.no_grad():
            forward = run_layers(layers, *given[:2])
    assert found[0].grad_fn is None and torch.equal(forward, found[0])
    assert max(gaps(wanted, found)) < bound


@needs_gpu
def test_what_does_not_fit_goes_layer_by_layer():
    layers, x, pace, dy = layers_and_inputs(2, 3, 20)
    layers = [layer.cuda() for layer in layers]
    given = x.cuda(), pace.cuda(), dy.cuda()
    wanted = outcome(one_by_one, layers, *given)
    assert all(map(torch.equal, wanted, outcome(run_layers, layers, *given)))  # no autocast


if __name__ == '__main__':  # for largest_in_interpreter
    print(*globals()[sys.argv[1]]())
