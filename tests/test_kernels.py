"""
fast/ beside plain PyTorch: its kernels in Triton's interpreter, and compiled where there is a GPU;
and what a model is handed.

$ python -m pytest --long tests/test_kernels.py      # a minute on one core
"""
import contextlib
import functools
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import types

import pytest
import torch

import fast
import lessons
import prepare
from fast.kernels import (
    KERNEL_FROM,
    TritonMixer,
    fastest_mixer,
    kernel_missing,
    ssd_kernel,
    triton,
)
from model import mixer, ssd
from tests.helpers import ROOT, gen, tiny_model

SIZES = [  # B, T, H, P, N
    (3, 17, 3, 16, 32),   # part of a chunk; a group of heads is one head
    (5, 2, 2, 16, 16),    # fewer tokens than the convolution reaches
    (1, 70, 4, 16, 16),   # three chunks of 32; two groups of two heads
    (2, 128, 2, 32, 64),  # two chunks of 64
    (2, 40, 2, 32, 128),  # one chunk of 64; the largest state
    (1, 250, 2, 16, 16),  # four chunks of 64
]
ROUNDING = 2e-4  # share of a gradient's norm; of dt_bias it is a sum that nearly cancels
plain_scan = functools.partial(ssd, chunk=16)


def outcome(f, inputs, weight):
    """y = f(*inputs) and the gradients of the sum of y * weight"""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def gaps(wanted, found):
    """How far each tensor found is from the one wanted, as a share of its norm"""
    pairs = zip(wanted, found, strict=True)
    return [float((a - b).norm() / a.norm().clamp(min=1e-6)) for a, b in pairs]


def inputs_of_a_layer(B, T, H, P, N, generator, dtype=torch.float32):
    """What a Mamba-2 layer gives its mixer: zxBCdt, pace and the rest. Time stands still for two
    tokens, and the first head never forgets."""
    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    channels = H * P + 2 * N
    zxBCdt = normal(B, T, H * P + channels + H + 3).to(dtype)  # the last three are unused
    w = normal(4, channels)
    b = normal(channels)
    dt_bias = normal(H)
    A = -torch.tensor([0, 8.0, 1, 0.1])[:H]
    D = 1 + torch.rand(H, generator=generator)
    pace = torch.rand(B, T, 1, generator=generator)
    pace[:, 3:5] = 0
    return [zxBCdt, pace, w, b, dt_bias, A, D]


def triton_mixer_gaps_at(B, T, H, P, N, generator, device, dtype):
    """Of the output and of each gradient, those of z, xBC, dt and what is unused one by one"""
    inputs = inputs_of_a_layer(B, T, H, P, N, generator, dtype)
    weight = torch.randn(B, T, H * P, generator=generator).to(device)
    zxBCdt, pace, *rest = [x.to(device) for x in inputs]
    parts = zxBCdt.split([H * P, H * P + 2 * N, H, 3], 2)

    def plain(z, xBC, dt, unused, *rest):
        zxBCdt = torch.cat([z, xBC, dt, unused], 2)
        return mixer(zxBCdt.float(), pace, *rest, P, N, plain_scan)

    def fast(z, xBC, dt, unused, *rest):
        zxBCdt = torch.cat([z, xBC, dt, unused], 2)
        return TritonMixer.apply(zxBCdt, pace, *rest, P, N)

    leaves = [*parts, *rest]
    return gaps(outcome(plain, leaves, weight), outcome(fast, leaves, weight))


def triton_mixer_gaps(sizes=SIZES, device='cpu', dtype=torch.float32):
    """TritonMixer in dtype from mixer() in fp32, at several sizes"""
    result = []
    for size in sizes:
        result += triton_mixer_gaps_at(*size, gen(), device, dtype)
    return result


def some_triton_mixer_gaps():
    return triton_mixer_gaps(SIZES[:3])


def half_precision_gaps():
    """In float16, as Triton's interpreter does not multiply matrices of bfloat16"""
    return triton_mixer_gaps(SIZES[:3], dtype=torch.float16)


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
    generator = gen()
    x = torch.randn(2, 40, 4, 16, generator=generator)
    dt = torch.rand(2, 40, 4, generator=generator)
    A = -torch.tensor([0, 0, 1.0, 8])
    B = torch.randn(2, 40, 16, generator=generator)
    C = torch.randn(2, 40, 16, generator=generator)
    weight = torch.randn(2, 40, 4, 16, generator=generator)
    inputs = [x, dt, A, B, C]
    return gaps(outcome(plain_scan, inputs, weight), outcome(ssd_kernel, inputs, weight))


def largest_in_interpreter(measure):
    """The largest of the gaps that a function of a file of tests returns. It runs in a process of
    its own, as Triton must be told of its interpreter before it is imported."""
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': ROOT}
    command = [sys.executable, '-W', 'ignore', inspect.getsourcefile(measure), measure.__name__]
    p = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    return torch.tensor([float(gap) for gap in p.stdout.split()]).max()  # NaN if one of them is


needs_triton = pytest.mark.skipif(triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_triton
def test_triton_mixer_in_the_interpreter():
    assert largest_in_interpreter(some_triton_mixer_gaps) < ROUNDING


@needs_triton
def test_triton_mixer_rounds_as_the_data_type_does():
    assert 1e-4 < largest_in_interpreter(half_precision_gaps) < 2e-2


@pytest.mark.long
@needs_triton
def test_triton_mixer_in_the_interpreter_at_all_sizes():
    assert largest_in_interpreter(triton_mixer_gaps) < ROUNDING


@pytest.mark.long
@needs_triton
def test_ssd_kernel_in_the_interpreter():
    for package in ('mamba_ssm', 'einops'):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    assert largest_in_interpreter(ssd_kernel_gaps) < ROUNDING


# The interpreter does what Python does, which is not always what Triton compiles.
@needs_triton
@needs_gpu
@pytest.mark.parametrize('dtype, bound', [(torch.float16, 2e-2), (torch.bfloat16, 0.16)])
def test_triton_mixer_on_a_gpu(dtype, bound):
    assert torch.tensor(triton_mixer_gaps(SIZES, 'cuda', dtype)).max() < bound


# --- what a model is handed ---

def logits_of(model, question, dtype=torch.float32):
    """The logits that a model answers to (1, S); frames are silent before it is trained"""
    lengths = torch.tensor([question.shape[1]], device=question.device)
    with torch.autocast(question.device.type, dtype, dtype != torch.float32):
        return model(question, lengths).logits


def functions_of(model):
    """The functions that each part of a model has of its own, among them those handed in"""
    parts = [vars(part) for part in model.modules()]
    return [{name: x for name, x in own.items() if callable(x)} for own in parts]


@pytest.mark.parametrize('scan', ['auto', 'torch'])
@pytest.mark.parametrize('freeze', [False, True])
def test_on_a_cpu_a_model_stays_as_it_is(scan, freeze):
    model = tiny_model(freeze=freeze)
    question = 0.1 * torch.randn(2, 8000, generator=gen())
    lengths = torch.tensor([8000, 6000])

    def answered():
        """Answer and gradients"""
        answer = model(question, lengths)
        model.zero_grad()
        (answer.frames.square().mean() + answer.logits.square().mean()).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [answer.frames, answer.logits, answer.so_far, *grads]

    before, wanted = functions_of(model), answered()
    fast.use(model, scan)
    assert functions_of(model) == before
    assert all(layer.mixer is mixer for layer in model.encoder)
    assert all(map(torch.equal, wanted, answered()))


def test_on_a_cpu_sound_and_loss_are_the_plain_ones():
    assert fast.synthesis('cpu') == prepare.Synthesis()
    assert fast.distance('cpu') is lessons.distance


def test_no_scan_is_taken_in_the_place_of_the_one_asked_for():
    with pytest.raises(ValueError, match='ssd=mamba_ssm cannot .* NVIDIA GPU; ssd=auto'):
        fast.use(tiny_model(), 'mamba_ssm')


@pytest.mark.parametrize('T, is_long', [(KERNEL_FROM - 1, False), (KERNEL_FROM, True)])
def test_the_scan_goes_by_length(T, is_long):
    lengths = []

    def long_scan(x, *rest):
        lengths.append(x.shape[1])
        return ssd(x, *rest)

    inputs = inputs_of_a_layer(1, T, 2, 16, 16, gen())
    y = fastest_mixer(*inputs, 16, 16, long_scan=long_scan)
    assert torch.equal(y, mixer(*inputs, 16, 16))
    assert lengths == [T] * is_long


@pytest.mark.long
@pytest.mark.skipif(not shutil.which('g++'), reason="there is no C++ compiler")
def test_a_compiled_model_answers_alike():
    question = torch.randn(1, 8000, generator=gen())
    wanted = logits_of(tiny_model(), question)
    model = tiny_model()
    fast.use(model, compiled=True)
    found = logits_of(model, question)
    assert (found - wanted).abs().max() < 1e-4


@needs_gpu
@pytest.mark.parametrize('scan, compiled, tokens', [
    ('torch', False, 20),
    ('mamba_ssm', False, 20),
    ('auto', False, 20),
    ('auto', False, 200),
    ('auto', False, 1100),
    ('auto', True, 20),
    ('auto', True, 1100),
])
def test_a_model_answers_alike_on_a_gpu(scan, compiled, tokens):
    if scan == 'mamba_ssm' and kernel_missing():
        pytest.skip(kernel_missing())
    model = tiny_model().cuda()
    question = 0.1 * torch.randn(1, tokens * model.config.token, generator=gen()).cuda()
    wanted = logits_of(model, question)
    fast.use(model, scan, compiled)
    for dtype, bound in ((torch.float32, 1e-2), (torch.bfloat16, 0.1)):
        found = logits_of(model, question, dtype)
        assert (found - wanted).abs().max() < bound * wanted.abs().max()


if __name__ == '__main__':  # for largest_in_interpreter
    print(*globals()[sys.argv[1]]())
