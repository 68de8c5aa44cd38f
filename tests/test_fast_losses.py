"""
fast/losses.py beside plain PyTorch: in Triton's interpreter, and compiled where there is a GPU.

$ python -m pytest tests/test_fast_losses.py
"""
import os
import subprocess
import sys

import pytest
import torch

import lessons
from fast.kernels import triton
from fast.losses import Distance
from tests.helpers import ROOT, gen

needs_triton = pytest.mark.skipif(triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def outcome(f, frames, wanted):
    """f's distances, and the gradient of a sum in which each counts otherwise"""
    frames = frames.detach().requires_grad_()
    found = f(frames, wanted)
    weight = torch.linspace(-1, 2, found.numel(), device=found.device).view_as(found)
    return found.detach(), torch.autograd.grad((found * weight).sum(), frames)[0]


def largest_gap(device):
    """Between plain PyTorch and the kernels, in distances and gradients"""
    gaps = []
    for shape in ((2, 3, 640), (1, 5, 24)):
        frames, wanted = torch.randn(2, *shape, generator=gen()).to(device)
        wanted[0, 0, :7] = frames[0, 0, :7]  # where nothing is off
        both = zip(outcome(lessons.distance, frames, wanted),
                   outcome(Distance.apply, frames, wanted), strict=True)
        gaps += [float((a - b).abs().max()) for a, b in both]
    return max(gaps)


@needs_triton
def test_in_the_interpreter():
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': ROOT}
    p = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    assert float(p.stdout) < 1e-5


@needs_gpu
def test_on_a_gpu():
    assert largest_gap('cuda') < 1e-5


if __name__ == '__main__':  # for test_in_the_interpreter
    print(largest_gap('cpu'))
