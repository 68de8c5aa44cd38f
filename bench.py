"""
What it costs, side by side with what one would use instead.

$ python bench.py                 # prints a table and writes bench.json
$ python bench.py --parts=scan    # or some of: limits, audio, step, scan, length, stream, scorer

Every line is the median of `repeats` runs after a warm-up; beside it stands its speed as a multiple of that of the line it is compared
with. What the machine cannot do is skipped and named. On a GPU, a training step and a scan run as one CUDA graph each.
"""
import ctypes
import gc
import json
import math
import os
import platform
import runpy
import shutil
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

import prepare
from configurator import bounds, configure, fail
from model import (D_CONV, EXPAND, SHORT, JMambaConfig, MiniJMamba, ShortMixer, capture, compile_parts, kernel_missing, mixer, pick_device,
                   ssd, ssd_kernel, ssd_step, triton)
from prepare import SAMPLE_RATE, SYMBOLS, decode, make_batch, make_rhythm, max_samples, play
from score import edit_distance, find_tones, transcribe

out = 'bench.json'  # where the numbers go
parts = 'limits,audio,step,scan,length,stream,scorer'
repeats = 10        # timed runs of each line
device = 'auto'     # auto, cpu, cuda
batch_size = 0      # of the training steps; 0 is the configs' own on a GPU, and 16 on a CPU
minutes = 10.0      # the longest sound answered
tokens = 16384      # the longest scan
configure(globals())
bounds(globals(), repeats=1, batch_size=0, minutes=0.01, tokens=32)
try:
    device = pick_device(device)
except ValueError as e:
    fail(e)
parts = parts.split(',')
if not set(parts) <= {'limits', 'audio', 'step', 'scan', 'length', 'stream', 'scorer'}:
    fail(f"parts are some of limits, audio, step, scan, length, stream, scorer, not {','.join(parts)}")
on_gpu, rows = device.startswith('cuda'), []
torch.backends.cuda.matmul.allow_tf32 = True


def report(what, value, unit, speed=None, of=''):
    """A line of the table; speed is its ratio to the line that it is compared with"""
    rows.append({'what': what, 'value': value, 'unit': unit, **({'speed': speed, 'of': of} if speed else {})})
    print(f"{what:58} {value:12,.4g} {unit:16}" + (f"{speed:8.3g} x {of}" if speed else ''), flush=True)


def skip(what, why):
    rows.append({'what': what, 'skipped': why})
    print(f"{what:58} skipped: {why}", flush=True)


def measure(f, graph=on_gpu):
    """Median seconds of f(); on a GPU as one CUDA graph, unless told otherwise, so that Python's speed does not count"""
    if graph:
        f = capture(f, generator)[0].replay
    f()
    times = []
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        t0 = time.perf_counter()
        f()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - t0)
    return statistics.median(times)


generator = torch.Generator(device).manual_seed(0)
name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
print(f"{name}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, torch {torch.__version__}")
rows.append({'machine': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__})

# --- limits: what this machine can do at best ---
if 'limits' in parts:
    n = 8192 if on_gpu else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    matmul = 2 * n ** 3 / measure(lambda: a @ a)
    copy = 2 * a.numel() * a.element_size() / measure(lambda: a.clone())
    report(f"matrix product, {n} x {n}, {'bf16' if on_gpu else 'fp32'}", matmul / 1e12, 'TFLOP/s')
    report('copy, read and written', copy / 1e9, 'GB/s')

# --- audio, on one core ---
if 'audio' in parts and on_gpu:
    skip('synthesis and scoring, one core', 'give --device=cpu')
elif 'audio' in parts:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    symbols, rhythm = torch.randint(len(SYMBOLS), (32, 10), generator=generator), make_rhythm(32, 10, generator)
    wave = play(symbols, rhythm, max_samples(10))
    audio = wave.numel() / SAMPLE_RATE
    report('synthesis, one core', audio / measure(lambda: play(symbols, rhythm, wave.shape[1])), 'times real time')
    report('scoring, one core', audio / measure(lambda: find_tones(wave)), 'times real time')
    torch.set_num_threads(threads)


# --- a training step, with other layers in the place of Mamba-2's: as many parameters, same front end,
# --- attention, losses (of frames and symbols) and optimizer; on a GPU compiled, but for the LSTM and mamba_ssm.Mamba2, which bring their own kernels ---

class Block(nn.Module):
    """Pre-norm and residual around inner(x)"""

    def __init__(self, d, inner):
        super().__init__()
        self.norm, self.inner = nn.RMSNorm(d), inner

    def forward(self, x, pace):  # which is for Mamba-2's alone
        return x + self.inner(self.norm(x))


class Transformer(nn.Module):
    """Causal self-attention and an MLP, with so many parameters"""

    def __init__(self, c, n):
        super().__init__()
        d, self.n_head = c.d_model, c.n_head
        width = round((n - 4 * d * d) / (2 * d) / 8) * 8
        self.qkv, self.proj, self.norm = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False), nn.RMSNorm(d)
        self.up, self.down = nn.Linear(d, width, bias=False), nn.Linear(width, d, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        x = self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class LSTM(nn.Module):
    """An LSTM and its projection, with so many parameters"""

    def __init__(self, c, n):
        super().__init__()
        d = c.d_model
        width = int((math.sqrt((5 * d + 8) ** 2 + 16 * n) - 5 * d - 8) / 8)
        self.lstm, self.proj = nn.LSTM(d, width, batch_first=True), nn.Linear(width, d, bias=False)

    def forward(self, x):
        return self.proj(self.lstm(x)[0])


def official(c, n):
    from mamba_ssm.modules.mamba2 import Mamba2 as Official
    return Official(c.d_model, c.d_state, headdim=c.head_dim, expand=EXPAND, d_conv=D_CONV, use_mem_eff_path=False)


def time_step(label, c, layer, batch, ours):
    """Time one update with `layer` in the place of Mamba-2's, or Mamba-2 itself if None -> seconds"""
    torch.manual_seed(0)
    model = MiniJMamba(c)
    n = sum(p.numel() for p in model.encoder[0].parameters())
    for layers in (model.encoder, model.decoder) if layer else ():
        for i in range(len(layers)):
            layers[i] = Block(c.d_model, layer(c, n))
    model.to(device)
    if on_gpu:
        compile_parts(model, *([Block] if layer is Transformer else []))  # of the others, what is not Mini-JMamba's own is no use to compile
    optimizer = torch.optim.AdamW(model.parameters(), torch.tensor(1e-4, device=device) if on_gpu else 1e-4, fused=True, capturable=on_gpu)

    def loss_of(frames, logits, answer):
        off = frames.float() - model.hear(answer).unflatten(2, (c.patch, -1)).flatten(1, 2)
        return (off.abs() + off.square()).mean() + 0.1 * F.cross_entropy(logits.float().flatten(0, 1), logits.argmax(-1).flatten())
    if on_gpu:
        loss_of = torch.compile(loss_of, dynamic=False)  # as train.py does

    def update(stages, b=None):
        b = b or batch()
        if stages > 1:
            with torch.autocast('cuda', torch.bfloat16, enabled=on_gpu):
                frames, logits, _ = model(b.question, b.lengths)
                loss = loss_of(frames, logits, b.answer)
        if stages > 2:
            loss.backward()
        if stages > 3:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if stages > 2:
            optimizer.zero_grad(set_to_none=True)
    examples, side = batch(), torch.cuda.Stream() if on_gpu else None

    def whole():
        """As train.py does it on a GPU: the next examples are made beside the update"""
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            batch()
        update(4, examples)
        torch.cuda.current_stream().wait_stream(side)
    seconds = [measure(lambda: update(stages)) for stages in (1, 2, 3, 4)]
    took = measure(whole) if on_gpu else seconds[3]
    n_parameters = sum(p.numel() for p in model.parameters())
    flops = 6 * n_parameters * examples.question.numel() / c.token / took  # of the products with weights alone
    report(label, 1000 * took, 'ms a step', ours and ours / took, 'Mini-JMamba')
    rows[-1].update({k: 1000 * (y - x) for k, x, y in zip(('audio', 'forward', 'backward', 'optimizer'), [0, *seconds], seconds)},
                    parameters=n_parameters, examples_per_second=len(examples.lengths) / took, flops=flops)
    print('    ' + ', '.join(f"{k} {rows[-1][k]:.3g}" for k in ('audio', 'forward', 'backward', 'optimizer'))
          + f" ms one after the other; {len(examples.lengths) / took:,.0f} examples/s; {n_parameters:,} parameters at {flops / 1e12:.3g} TFLOP/s"
          + (f", {flops / matmul:.1%} of the limit" if 'limits' in parts else ''), flush=True)
    return took


if 'step' in parts:
    if on_gpu:
        prepare.play = torch.compile(prepare.play, dynamic=False)  # as train.py does
    here = os.path.dirname(os.path.abspath(__file__))
    for config in ('mirror', 'bracket', 'mod', 'mod_direct'):  # the last one wider, and more at once, than it is trained
        scope = runpy.run_path(os.path.join(here, 'config', config + '.py'))
        d, size = (192, 1024) if config == 'mod_direct' else (128, scope.get('batch_size', 16))
        size = batch_size or (size if on_gpu else 16)
        more = {'rests': int(scope.get('rests', 0)), **({'aloud': True} if scope.get('aloud') else {})}
        batch = lambda: make_batch(scope['tasks'], 'train', size, generator, device, **more)
        c, label = JMambaConfig(d_model=d), f"{config}, d {d}, batch {size}: "
        ours = time_step(label + 'Mini-JMamba', c, None, batch, None)
        for other, layer in {'Transformer': Transformer, 'LSTM': LSTM, 'mamba_ssm.Mamba2': official}.items() if scope['tasks'] == 'mod' else ():
            try:
                if layer is official and kernel_missing():
                    raise ImportError(kernel_missing())
                time_step(label + other, c, layer, batch, ours)
            except ImportError as e:
                skip(label + other, str(e))


# --- the scan alone, forward and backward ---

def recurrence(x, dt, A, B, C):
    """The scan as it is defined, one token after another"""
    h, y = x.new_zeros(len(x), *x.shape[2:], B.shape[2]), []
    for t in range(x.shape[1]):
        out, h = ssd_step(h, x[:, t], dt[:, t], A, B[:, t], C[:, t])
        y.append(out)
    return torch.stack(y, 1)


if 'scan' in parts:
    H, P, N, together = 8, 32, 64, 2 ** 16 if on_gpu else 2 ** 12  # at d_model 128; tokens in a batch
    kind = torch.bfloat16 if on_gpu else torch.float32

    def of_one(scan):
        """scan, with x, B and C in one tensor, as a Mamba-2 layer has them"""
        def scan_one(xBC, dt, A):
            x, B, C = xBC.split([H * P, N, N], -1)
            return scan(x.unflatten(-1, (H, P)), dt, A, B, C)
        return scan_one
    chunked = of_one(lambda *inputs: ssd(*inputs, 64))
    trained = [(256, 64), (64, 120)] if on_gpu else []  # mod and bracket, as the configs have them
    sizes = trained + [(max(1, together // T), T) for T in (32, 64, 256, 1024, 4096, 16384)]
    for n, T in [(n, T) for n, T in sizes if T <= tokens]:
        r = lambda *shape: torch.randn(n, T, *shape, generator=generator, device=device, dtype=kind)
        leaves = [r(H * P + 2 * N), torch.rand(n, T, H, generator=generator, device=device), -torch.rand(H, generator=generator, device=device)]
        for t in leaves:
            t.requires_grad_()
        weight, slowest, results, moving = r(H, P), None, {}, {}  # a dense gradient, as in training
        size = lambda t: t.numel() * t.element_size()
        least = 3 * sum(map(size, leaves)) + 2 * size(weight)  # bytes: all that goes in twice, all that comes out, and the gradients, once
        for what, scan in {'recurrence': of_one(recurrence), 'ssd': chunked, 'ssd, compiled': torch.compile(chunked, dynamic=False),
                           'mamba_ssm kernel': of_one(ssd_kernel)}.items():
            label = f"scan, {n} x {T} tokens: {what}"
            why = (kernel_missing() if 'mamba' in what else "too slow to wait for" if what == 'recurrence' and T > 1024 else
                   "there is no C++ compiler" if 'compiled' in what and not on_gpu and not shutil.which('g++') else '')
            if why:
                skip(label, why)
                continue
            both = lambda: torch.autograd.grad(scan(*leaves), leaves, weight)
            seconds = measure(both, on_gpu and (what != 'recurrence' or T < 64))  # a graph of so many steps takes minutes to make
            results[what] = [scan(*leaves).detach(), *both()]
            report(label, 1000 * seconds, 'ms', slowest and slowest[1] / seconds, slowest and slowest[0])
            rows[-1]['bytes_per_second'] = moving[what] = least / seconds
            slowest = slowest or (what, seconds)
        print(f"    at least {least / 1e6:.3g} MB are moved, in GB/s: " + ', '.join(f"{what} {x / 1e9:.3g}" for what, x in moving.items())
              + (f"; a copy {copy / 1e9:.3g}" if 'limits' in parts else ''), flush=True)
        largest = lambda one, other: max(float((a.float() - b.float()).norm() / a.float().norm()) for a, b in zip(one, other))
        if 'mamba_ssm kernel' in results:
            report(f"    largest difference of mamba_ssm kernel from ssd, {kind}", largest(results['ssd'], results['mamba_ssm kernel']), 'of the norm')
        if T <= SHORT and on_gpu and triton:
            f32 = lambda *shape: torch.rand(*shape, generator=generator, device=device)
            leaves = [r(2 * H * P + 2 * N + H), f32(4, H * P + 2 * N) - 0.5, f32(H * P + 2 * N), f32(H), -f32(H), 1 + f32(H)]
            for t in leaves:
                t.requires_grad_()
            weight, pace, slowest, results = r(H * P), torch.ones(n, T, 1, device=device), None, []
            plain = lambda x, *more: mixer(x, pace, *more, P, N, lambda *inputs: ssd(*inputs, 64))
            fused = lambda x, *more: ShortMixer.apply(x, pace, *more, P, N)
            for what, f in {'compiled': plain, 'four kernels': fused}.items():
                f = torch.compile(f, dynamic=False)  # what ShortMixer does in PyTorch needs it too
                both = lambda: torch.autograd.grad(f(*leaves), leaves, weight)
                seconds = measure(both)
                results.append([f(*leaves).detach(), *both()])
                report(f"the middle of a layer, {n} x {T} tokens: {what}", 1000 * seconds, 'ms', slowest and slowest / seconds, 'compiled')
                slowest = slowest or seconds
            report(f"    largest difference of the two, {kind}", largest(*results), 'of the norm')

# --- what an answer costs, by length ---
if 'length' in parts:
    model = MiniJMamba(JMambaConfig()).eval().to(device)

    def peak(f):
        """f() -> the most memory it took beyond what was taken before, in bytes; None where it cannot be known"""
        gc.collect()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            f()
            return torch.cuda.max_memory_allocated() - before
        try:
            ctypes.CDLL('libc.so.6').malloc_trim(0)  # what is free must not be resident
            with open('/proc/self/clear_refs', 'w') as file:
                file.write('5')  # resets VmHWM, the most memory that was resident
        except (OSError, AttributeError):  # no Linux
            f()
            return None
        status = lambda key: 1024 * int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith(key)))
        before = status('VmRSS')
        f()
        return status('VmHWM') - before

    def answer(wave):
        t0 = time.perf_counter()
        model.generate(wave)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - t0
    points = []
    for seconds in [s for s in (1, 3, 10, 30, 100, 300, 600) if s <= 60 * minutes]:
        wave = 0.1 * torch.randn(1, seconds * SAMPLE_RATE, generator=generator, device=device)
        memory, took = peak(lambda: answer(wave)), statistics.median(answer(wave) for _ in range(min(repeats, 3)))
        report(f"answer to {seconds} s of sound", seconds / took, 'x real time')
        if memory:
            report("    memory", memory / 2 ** 20, 'MiB')
        points.append((seconds, took, memory))
    points = [p for p in points if p[0] >= 10]
    for what, i in {'time': 1, 'memory': 2}.items():
        if len(points) > 1 and all(p[i] for p in points):
            x, y = ([math.log(p[j]) for p in points] for j in (0, i))
            report(f"{what} grows with length to the power of, from 10 s on", statistics.linear_regression(x, y).slope, '')

# --- streaming ---
if 'stream' in parts:
    model = MiniJMamba(JMambaConfig()).eval().to(device)
    with torch.no_grad():
        sound = torch.zeros(1, model.config.token, device=device)
        state = model.step(sound)[2]
        report('encoder, one token (50 ms of sound) at a time', 1000 * measure(lambda: model.step(sound, state)), 'ms a token')

# --- the scorer against white noise; the power of the signal is that of its tones, the gaps left out ---
if 'scorer' in parts:
    g = torch.Generator().manual_seed(0)
    symbols = torch.randint(len(SYMBOLS), (500, 20), generator=g)
    wave = play(symbols, make_rhythm(500, 20, g), max_samples(20))
    wanted, power = [decode(s) for s in symbols], wave[wave != 0].square().mean()
    for snr in (None, 10, 0, -5, -10):
        noise = 0 if snr is None else (power * 10 ** (-snr / 10)).sqrt() * torch.randn(wave.shape, generator=g)
        wrong = sum(edit_distance(h, w) for h, w in zip(transcribe(wave + noise), wanted))
        report(f"scorer, 10,000 symbols, {'clean' if snr is None else f'{snr} dB signal to noise'}", 100 - wrong / 100, '% right')

try:
    with open(out, 'w') as f:
        json.dump(rows, f, indent=1)
except OSError as e:
    fail(f"cannot write {out}: {e.strerror}")
