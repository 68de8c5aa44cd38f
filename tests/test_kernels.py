"""
kernels.py beside plain PyTorch: in Triton's interpreter, and compiled where there is a GPU.

$ python -m pytest tests/test_kernels.py      # a minute and a half on two CPU cores
"""
import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
import types

import pytest
import torch

from fast.kernels import ShortMixer, ssd_kernel, triton
from model import mixer, ssd

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = [  # B, T, H, P, N
    (3, 17, 3, 16, 32),   # one token more than conv_forward takes at once
    (65, 2, 2, 16, 16),   # fewer tokens than the convolution reaches
    (1, 70, 2, 16, 16),   # conv_backward's tokens in three parts
    (2, 128, 2, 32, 64),  # as many tokens as fit
    (2, 40, 2, 32, 128),  # the largest state
]
plain_scan = functools.partial(ssd, chunk=16)


def outcome(f, inputs, weight):
    """y = f(*inputs) and the gradients of the sum of y * weight"""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def gaps(wanted, found):
    """How far each tensor found is from the one wanted, as a share of its norm"""
    pairs = zip(wanted, found, strict=True)
    return [float((a - b).norm() / a.norm()) for a, b in pairs]


def short_mixer_gaps_at(B, T, H, P, N, generator, device, dtype):
    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    channels = H * P + 2 * N
    zxBCdt = normal(B, T, H * P + channels + H + 3).to(dtype)  # the last three are unused
    w = normal(4, channels)
    b = normal(channels)
    dt_bias = normal(H)
    A = -torch.tensor([0, 8.0, 1])[:H]  # the first head never forgets
    D = 1 + torch.rand(H, generator=generator)
    pace = torch.rand(B, T, 1, generator=generator).to(device)
    pace[:, 3:5] = 0  # time stands still
    weight = normal(B, T, H * P).to(device)
    inputs = [x.to(device) for x in (zxBCdt, w, b, dt_bias, A, D)]

    def plain(zxBCdt, *rest):
        return mixer(zxBCdt.float(), pace, *rest, P, N, plain_scan)

    def short(zxBCdt, *rest):
        return ShortMixer.apply(zxBCdt, pace, *rest, P, N)

    return gaps(outcome(plain, inputs, weight), outcome(short, inputs, weight))


def short_mixer_gaps(device='cpu', dtype=torch.float32):
    """ShortMixer in dtype from mixer() in fp32, at all SIZES"""
    generator = torch.Generator().manual_seed(0)
    result = []
    for size in SIZES:
        result += short_mixer_gaps_at(*size, generator, device, dtype)
    return result


def ssd_kernel_gaps():
    """mamba_ssm's scan from ssd(), on a CPU"""
    from triton.runtime.autotuner import Autotuner

    def run_first(self, *args, **more):
        config = self.configs[0]
        self.best_config = config
        if config.pre_hook:
            named = dict(zip(self.arg_names, args, strict=False))
            config.pre_hook({**named, **more, **config.all_kwargs()})
        return self.fn.run(*args, **more, **config.all_kwargs())

    def properties(device):
        return types.SimpleNamespace(multi_processor_count=1)

    # The kernel asks for a GPU and its properties, and times its configurations. In the interpreter
    # there is nothing to time: the first is as good as any.
    torch.cuda.device = contextlib.nullcontext
    torch.cuda.get_device_properties = properties
    Autotuner.run = run_first
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 4, 16, generator=generator)
    dt = torch.rand(2, 40, 4, generator=generator)
    A = -torch.tensor([0, 0, 1.0, 8])
    B = torch.randn(2, 40, 16, generator=generator)
    C = torch.randn(2, 40, 16, generator=generator)
    weight = torch.randn(2, 40, 4, 16, generator=generator)
    inputs = [x, dt, A, B, C]
    return gaps(outcome(plain_scan, inputs, weight), outcome(ssd_kernel, inputs, weight))


def largest_in_interpreter(measure):
    """The largest of the gaps that a function of this file returns. It runs in a process of its
    own, as Triton must be told of its interpreter before it is imported."""
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': ROOT}
    command = [sys.executable, __file__, measure.__name__]
    p = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    return torch.tensor([float(gap) for gap in p.stdout.split()]).max()  # NaN if one of them is


needs_triton = pytest.mark.skipif(triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_triton
def test_short_mixer_in_the_interpreter():
    assert largest_in_interpreter(short_mixer_gaps) < 1e-5


@needs_triton
def test_ssd_kernel_in_the_interpreter():
    for package in ('mamba_ssm', 'einops'):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    assert largest_in_interpreter(ssd_kernel_gaps) < 1e-5


# The interpreter does what Python does, which is not always what Triton compiles.
@needs_triton
@needs_gpu
@pytest.mark.parametrize('dtype, bound', [(torch.float16, 1e-2), (torch.bfloat16, 8e-2)])
def test_short_mixer_on_a_gpu(dtype, bound):
    assert torch.tensor(short_mixer_gaps('cuda', dtype)).max() < bound


if __name__ == '__main__':  # for largest_in_interpreter
    print(*globals()[sys.argv[1]]())
