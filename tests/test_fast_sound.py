"""
fast/sound.py beside plain PyTorch: in Triton's interpreter, and compiled where there is a GPU.

$ python -m pytest tests/test_fast_sound.py
"""
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._pytree import tree_map

import prepare
from fast import sound
from fast.kernels import triton
from prepare import SAMPLE_RATE, Rhythm, Room
from tests.helpers import ROOT, gen

HIGHEST = 35  # symbol
PLAYED = 1e-4  # amplitude
ROUNDING = 1e-5  # share of what is the loudest
needs_triton = pytest.mark.skipif(triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


# --- what is given ---

def uniform(low, high, *shape, seed=0):
    return low + (high - low) * torch.rand(*shape, generator=gen(seed))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed))


def transposed(x):
    """The same numbers, but not side by side in memory"""
    return x.T.contiguous().T


def some_rhythm(B, N, K, length, gap):
    """Tones and gaps of about so many seconds. As every tone starts between two samples, rounding
    does not decide which sample is its first."""
    lengths = uniform(0.9 * length, 1.1 * length, B, N, seed=1)
    gaps = uniform(0.9 * gap, 1.1 * gap, B, N, seed=2)
    start = 0.02 + (lengths + gaps).cumsum(1) - lengths - gaps
    return Rhythm(
        start=((start * SAMPLE_RATE).floor() + 0.5) / SAMPLE_RATE,
        length=lengths,
        detune=uniform(-60, 60, B, N, seed=3),
        amplitude=uniform(0.3, 1, B, N, seed=4),
        phase=uniform(0, 2 * math.pi, B, N, seed=5),
        end=start + lengths + gaps,
        overtones=uniform(0, 1, B, K, seed=6) / torch.arange(2, 2 + K),
    )


def some_room(B, S, E):
    """The first row has no echoes."""
    delays = 32 * 2 ** torch.arange(E) * uniform(0.7, 1.3, E)
    tail = uniform(0.2, 0.8, B, 1, seed=1)
    tail[0] = 0
    signs = 1 - 2 * (torch.arange(B)[:, None] + torch.arange(E)) % 2
    gains = signs * uniform(0.1, 0.95, B, E, seed=2)
    return Room(delays.long(), transposed(gains), (1 - tail.square()).sqrt(), tail)


def some_limit(B):
    """Of the first row nothing is clipped."""
    limit = uniform(0.1, 0.6, B, 1, seed=7)
    limit[0] = math.inf
    return limit


# --- the functions, one by one: each gives a gap ---

def gap(wanted, found):
    assert wanted.shape == found.shape and found.dtype == torch.float32
    return float((wanted - found).abs().max())


def share(wanted, found):
    return gap(wanted, found) / float(wanted.abs().max())


def of_play(symbols, n_samples, K, length, rest, device='cpu'):
    """From plain PyTorch in double precision: its own rounding is up to some 1e-3 of a long tone"""
    rhythm = some_rhythm(*symbols.shape, K, length, rest)
    inputs = symbols, rhythm._replace(phase=transposed(rhythm.phase))
    symbols, rhythm = tree_map(lambda x: x.to(device), inputs)
    precise = tree_map(lambda x: x.double(), rhythm)
    wanted = prepare.play(symbols, precise, n_samples)
    found = sound.play(symbols, rhythm, n_samples)
    silence = wanted == 0
    assert silence.any() and not silence.all() and not found[silence].any()
    return gap(wanted, found)


def of_reverberate(B, S, E, device='cpu'):
    inputs = transposed(normal(B, S)), some_room(B, S, E)
    waves, room = tree_map(lambda x: x.to(device), inputs)
    found = sound.reverberate(waves, room)
    assert torch.equal(found[0], waves[0])
    return share(prepare.reverberate(waves, room), found)


def of_noisy(B, S, K, device='cpu'):
    """The first row's noise is white."""
    octaves = uniform(0.1, 1, B, K, seed=1)
    octaves[0, 1:] = 0
    inputs = normal(B, S, seed=2), transposed(normal(B, S, seed=3)), octaves, some_limit(B)
    inputs = [x.to(device) for x in inputs]
    return share(prepare.noisy(*inputs), sound.noisy(*inputs))


def of_answered(B, blocks, device='cpu'):
    kept = uniform(0, 1, B, blocks) < 0.5
    inputs = normal(B, 160 * blocks), some_limit(B), kept, normal(B, 160 * blocks, seed=1)
    inputs = [x.to(device) for x in inputs]
    return share(prepare.answered(*inputs), sound.answered(*inputs))


def all_gaps(device='cpu'):
    every = torch.arange(-1, HIGHEST + 1)
    every = torch.stack([every, every.flip(0)])
    yield 'play every symbol', of_play(every, 30400, 4, 0.04, 0.015, device)
    for K in (0, 4):
        high = torch.tensor([[HIGHEST, 11, HIGHEST - 1]])
        yield f'play long tones with {K} overtones', of_play(high, 15001, K, 0.3, 0.02, device)
    many = (torch.arange(80) % HIGHEST)[None]
    yield 'play many slots', of_play(many, 30000, 4, 0.012, 0.011, device)
    yield 'play one slot', of_play(many[:, 5:6], 6400, 0, 0.02, 0.02, device)
    for B, S, E in ((4, 4800, 9), (2, 4999, 4), (3, 160, 2)):
        yield f'reverberate {S} samples by {E} delays', of_reverberate(B, S, E, device)
    for B, S, K in ((3, 4800, 8), (2, 2333, 1)):
        yield f'noisy {S} samples in {K} octaves', of_noisy(B, S, K, device)
    for blocks in (5, 33):
        yield f'answered {blocks} blocks', of_answered(3, blocks, device)


# --- the tests ---

def in_interpreter():
    """all_gaps() by name. Triton must be told of its interpreter before it is imported, so that
    takes a process of its own."""
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': ROOT}
    p = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    lines = [line.rpartition(' ') for line in p.stdout.splitlines()]
    return {name: float(gap) for name, _, gap in lines}


def too_far(found):
    assert found
    bounds = {name: PLAYED if name.startswith('play') else ROUNDING for name in found}
    return {name: gap for name, gap in found.items() if not gap < bounds[name]}


@needs_triton
def test_sound_in_the_interpreter():
    assert not too_far(in_interpreter())


@needs_triton
@needs_gpu
def test_sound_on_a_gpu():
    assert not too_far(dict(all_gaps('cuda')))


if __name__ == '__main__':  # for in_interpreter
    torch.set_num_threads(1)
    for name, gap_ in all_gaps():
        print(name, gap_)
