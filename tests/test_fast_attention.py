"""
fast/attention.py beside plain PyTorch: in Triton's interpreter, and compiled where there is a GPU.

$ python -m pytest --long tests/test_fast_attention.py      # a minute on one core
"""
import itertools
import os
import subprocess
import sys

import pytest
import torch

import model
from fast.attention import (
    ContentAttention,
    LocalAttention,
    SelfAttention,
    attention_fits,
    content_attention,
    local_attention,
)
from fast.kernels import triton
from model import join_heads, split_heads
from tests.helpers import ROOT, gen

needs_triton = pytest.mark.skipif(triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


# --- how far is one function from another? ---

def normal(*shape, seed=0, grad=True):
    return torch.randn(*shape, generator=gen(seed)).requires_grad_(grad)


def valid_tokens(B, T):
    """(B, T): the first example has one valid token, the last one has all"""
    n = torch.linspace(1, T, B).long()
    return torch.arange(T) < n[:, None]


def outcome(f, inputs, dy):
    """y = f(*inputs), and the gradients of sum(y * dy) by those inputs that want one"""
    y = f(*inputs)
    leaves = [x for x in inputs if x.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def gap(wanted, found):
    """How far a tensor is from the one wanted, as a share of its norm. With one key to see, scores
    do not matter: the gradients of queries and keys are 0, and what is found is rounding."""
    assert found.shape == wanted.shape
    least = 0.3 * wanted.numel() ** 0.5
    return float((found.float() - wanted).norm() / wanted.norm().clamp(min=least))


def largest_gap(plain, fast, inputs, like, device, dtype):
    """fast, given dtype, from plain, given the same numbers in fp32. What wants no gradient, as
    frames under autocast, is fp32 for both. like: the shape of y"""
    dy = normal(*like, seed=1, grad=False).to(dtype).to(device)
    given, precise = [], []
    for x in inputs:
        x, grad = x.detach().to(device), x.requires_grad
        x = x.to(dtype) if grad else x
        given.append(x.clone().requires_grad_(grad))
        precise.append(x.float().requires_grad_(grad))
    pairs = zip(outcome(plain, precise, dy.float()), outcome(fast, given, dy), strict=True)
    return max(gap(*pair) for pair in pairs)


def of_local(T, reach, causal, device, dtype):
    """Queries, keys and values lie in memory as a projection leaves them."""
    B, h, d = 2, 2, 32
    valid = valid_tokens(B, T)[:, None].to(device)

    def by(attention):
        def f(x):
            q, k, v = split_heads(x, 3 * h).chunk(3, 1)
            return attention(q, k, v, valid, reach, causal)

        return f

    functions = by(model.local_attention), by(LocalAttention.apply)
    return largest_gap(*functions, [normal(B, T, 3 * h * d)], (B, h, T, d), device, dtype)


def of_clock(T, q_shape, k_shape, C, v_grad, reach, device, dtype):
    """Queries or keys are one for all examples or tokens."""
    B, h = 2, q_shape[1]
    valid = valid_tokens(B, T)[:, None].to(device)
    v = normal(B, h, T, C, seed=3, grad=v_grad)

    def plain(q, k, v):
        q, k = (x.expand(B, h, T, -1) for x in (q, k))
        return model.local_attention(q, k, v, valid, reach)

    def fast(q, k, v):
        return LocalAttention.apply(q, k, v, valid, reach, False)

    inputs = normal(*q_shape), normal(*k_shape, seed=2), v
    return largest_gap(plain, fast, inputs, v.shape, device, dtype)


def of_self(T, h, d, device, dtype):
    B = 2
    everything = torch.ones(1, 1, T, dtype=torch.bool, device=device)

    def plain(qkv):
        q, k, v = split_heads(qkv, 3 * h).chunk(3, 1)
        return join_heads(model.local_attention(q, k, v, everything, 16, causal=True))

    def fast(qkv):
        return SelfAttention.apply(qkv, h, 16)

    return largest_gap(plain, fast, [normal(B, T, 3 * h * d)], (B, T, h * d), device, dtype)


def of_content(T, h, d, device, dtype):
    B = 3
    known = valid_tokens(B, T).to(device)

    def by(attention):
        def f(q, k, v):
            return attention(q, split_heads(k, h), split_heads(v, h), known)

        return f

    functions = by(model.content_attention), by(ContentAttention.apply)
    inputs = normal(1, h, 1, d), normal(B, T, h * d, seed=2), normal(B, T, h * d, seed=3)
    return largest_gap(*functions, inputs, (B, h, 1, d), device, dtype)


LENGTHS = 1, 5, 16, 17, 64, 70
QUICK = [
    (of_local, 17, 16, False),
    (of_local, 37, 16, True),
    (of_local, 20, 4, False),
    # The clock, a query for each time, and one for each example
    (of_clock, 37, (1, 2, 1, 16), (2, 2, 37, 16), 16, True, 16),
    (of_clock, 20, (1, 1, 20, 32), (2, 1, 20, 32), 32, True, 16),
    (of_clock, 20, (2, 1, 1, 32), (1, 1, 20, 32), 40, True, 4),
    # The pointer, one whose frames want a gradient, and one with keys for each token
    (of_clock, 37, (1, 1, 1, 32), (1, 1, 1, 32), 640, False, 4),
    (of_clock, 17, (1, 1, 1, 32), (1, 1, 1, 32), 200, True, 4),
    (of_clock, 17, (1, 1, 1, 32), (2, 1, 17, 32), 200, False, 4),
    (of_self, 40, 2, 32),
    (of_self, 20, 1, 12),
    (of_content, 70, 2, 32),
    (of_content, 150, 1, 12),
]
LONG = [
    *[(of_local, *case) for case in itertools.product(LENGTHS, (4, 16), (False, True))],
    *[(of_clock, T, (1, 2, 1, 32), (2, 2, T, 32), 32, True, 16) for T in LENGTHS],
    *[(of_clock, T, (1, 1, 1, 32), (1, 1, 1, 32), 640, False, 4) for T in LENGTHS],
    *[(of_self, T, 2, 32) for T in LENGTHS],
    *[(of_content, T, 2, 32) for T in LENGTHS],
]


def too_far(cases, device, dtype, bound):
    """A line for each case whose largest gap is not under the bound"""
    for f, *case in cases:
        found = f(*case, device, dtype)
        if not found < bound:
            yield f'{f.__name__} {case}: {found:.2g}'


# --- the tests ---

def check_in_interpreter(cases, dtype):
    """In a process of its own, as Triton must be told of its interpreter before it is imported. The
    interpreter has no products of bfloat16."""
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': ROOT}
    command = [sys.executable, __file__, cases, dtype]
    p = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert p.returncode == 0 and not p.stdout, p.stdout + p.stderr


BOUNDS = {'float32': 5e-5, 'float16': 5e-3, 'bfloat16': 4e-2}


@needs_triton
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_attention_in_the_interpreter(dtype):
    check_in_interpreter('QUICK', dtype)


@pytest.mark.long
@needs_triton
def test_attention_in_the_interpreter_at_all_sizes():
    check_in_interpreter('LONG', 'float32')


# The interpreter does what Python does, which is not always what Triton compiles.
@needs_triton
@needs_gpu
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_attention_on_a_gpu(dtype):
    cases = QUICK + LONG
    assert not list(too_far(cases, 'cuda', getattr(torch, dtype), BOUNDS[dtype]))


def test_what_does_not_fit_goes_by_plain_pytorch():
    q, k, v = (normal(2, 2, 20, 16, seed=seed) for seed in range(3))
    valid = valid_tokens(2, 20)
    assert not attention_fits(q)
    found = local_attention(q, k, v, valid[:, None], 16, causal=True)
    assert torch.equal(found, model.local_attention(q, k, v, valid[:, None], 16, causal=True))
    found = content_attention(q, k, v, valid)
    assert torch.equal(found, model.content_attention(q, k, v, valid))


if __name__ == '__main__':  # for check_in_interpreter
    torch.set_num_threads(1)
    name, dtype = sys.argv[1:]
    for line in too_far(globals()[name], 'cpu', getattr(torch, dtype), BOUNDS[dtype]):
        print(line)
