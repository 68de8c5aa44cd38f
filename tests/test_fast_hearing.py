"""
fast/hearing.py beside plain PyTorch: in Triton's interpreter, and compiled where there is a GPU
"""
import math
import os
import subprocess
import sys

import pytest
import torch

from fast import hearing
from fast.kernels import triton
from tests.helpers import ROOT, gen, tiny_model

TOKENS = [(3, 13), (1, 1), (2, 26), (1, 40)]  # B, T: less and more than a program takes
FRAMES = [(1, 70), (2, 32), (1, 31), (2, 4), (1, 1)]  # B, n


def tones_in_noise(B, T):
    """Waveforms (B, T * 800): every 200 ms a tone, of which an echo stays, in noise that differs"""
    time = torch.arange(T * 800) / 16000
    since = time % 0.2
    loudness = torch.where(since < 0.1, 0.3, 0.3 * torch.exp(-40 * (since - 0.1)))
    turn = 2 * math.pi * time
    tones = [loudness * torch.sin((500 + 900 * b) * turn) for b in range(B)]
    noise = torch.randn(B, T * 800, generator=gen())
    return torch.stack(tones) + noise * torch.logspace(-4, -2, B)[:, None]


def wandering(B, n):
    """Log magnitudes (B, n, F) that rise and fall, as generated ones also below 0"""
    steps = 0.4 * torch.randn(B, n, 128, generator=gen(1))
    level = 2 * torch.rand(B, 1, 128, generator=gen(2))
    walk = level + steps.cumsum(1)
    louder = 2.5 * torch.rand(B, n, 128, generator=gen(3)) ** 6
    return 0.5 * walk + louder


def swelling(B, n):
    """Log magnitudes (B, n, F) of steady tones that grow louder than squelch() asks"""
    rare = torch.rand(B, 1, 128, generator=gen(1)) < 0.08
    loudness = 2 * torch.rand(B, 1, 128, generator=gen(2))
    return rare * loudness * torch.linspace(0, 1, n)[:, None]


def specks(B, n):
    """Log magnitudes (B, n, F) of which a few stand out, some a little, some a lot"""
    rare = torch.rand(B, n, 128, generator=gen(1)) < 0.005
    loud = 2 * torch.rand(B, n, 128, generator=gen(2))
    faint = 0.5 * torch.rand(B, n, 128, generator=gen(3))
    return torch.where(rare, 0.5 + loud, faint)


def gap(wanted, found):
    return float((wanted - found).abs().max())


def pace_gap(device):
    """The largest difference between paces, at most 1, for several patches"""
    gaps = []
    for patch in (5, 3):
        model = tiny_model(patch=patch).to(device)
        for B, T in TOKENS:
            frames = specks(B, T * patch).to(device)
            frames = frames.unflatten(1, (T, patch)).flatten(2)
            wanted = model.pace(frames)
            assert T == 1 or wanted.unique().numel() > 2  # not all 0 or 1
            gaps.append(gap(wanted, hearing.pace(model.spectrum, frames, patch)))
    return max(gaps)


def squelch_share(device):
    """The share of numbers that squelch() keeps on one of the two ways only"""
    spectrum = tiny_model().to(device).spectrum
    different, total = 0, 0
    magnitude = spectrum.magnitude(spectrum.stft(tones_in_noise(3, 8).to(device)))
    heard = [spectrum.log(magnitude)]
    made = [swelling(3, 40), *(wandering(*size) for size in FRAMES)]
    for frames in heard + [x.to(device) for x in made]:
        wanted = spectrum.squelch(frames)
        found = hearing.squelch(spectrum, frames)
        differs = (wanted - found).abs() > 1e-3 * wanted.abs()
        different += int(differs.sum())
        total += frames.numel()
    return different / total


BOUNDS = {pace_gap: 2e-3, squelch_share: 5e-5}
needs_triton = pytest.mark.skipif(triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


# Triton must be told of its interpreter before it is imported, so it runs in a process of its own.
@needs_triton
@pytest.mark.parametrize('measure, bound', BOUNDS.items())
def test_in_the_interpreter(measure, bound):
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': ROOT}
    command = [sys.executable, __file__, measure.__name__]
    p = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    assert float(p.stdout) < bound


@needs_triton
@needs_gpu
@pytest.mark.parametrize('measure, bound', BOUNDS.items())
def test_on_a_gpu(measure, bound):
    assert measure('cuda') < bound


def test_what_wandering_frames_ask_of_squelch():
    """Both that there are tones and that there are none, at the ends and between them"""
    frames = wandering(2, 70)
    kept = tiny_model().spectrum.squelch(frames) > 0
    for part in (kept[:, :2], kept[:, 2:-2], kept[:, -2:]):
        assert 0.02 < part.float().mean() < 0.6


if __name__ == '__main__':  # for test_in_the_interpreter
    print(globals()[sys.argv[1]]('cpu'))
