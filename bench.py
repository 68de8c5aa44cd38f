"""
What it costs, side by side with what one would use instead.

$ python bench.py                                 # prints a table and writes bench.json
$ python bench.py --parts=step --configs=reverse  # a training step of your own config/reverse.py

Every line is the median of `repeats` runs after a warm-up. Beside it stands its speed as a multiple
of that of the line that it is compared with. What the machine cannot do is skipped and named. On a
GPU, a training step and a scan run as one CUDA graph each. Letters are those of model.py.
"""
import bisect
import ctypes
import functools
import gc
import json
import math
import os
import platform
import shutil
import statistics
import time
from collections import deque
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import prepare
from baselines import Transformer, make_model
from checkpoint import load_checkpoint
from configurator import HERE, bounds, configure, fail, names_of, pick_device, run_config
from files import STREAM_BLOCK
from kernels import SHORT, ShortMixer, capture, compile_parts, kernel_missing, ssd_kernel, triton
from listen import conversations
from model import CrossAttention, JMambaConfig, Mamba2, MiniJMamba, SelfAttention, mixer, ssd
from prepare import SAMPLE_RATE, TONE_RMS, make_batch, play, split_batches
from score import edit_distance, find_tones, transcribe
from tasks import SYMBOLS, TASKS, decode, taken
from think import conversation, converse

out = 'bench.json'  # where the numbers go
parts = 'limits,audio,step,scan,length,digits,listen,scorer'
configs = 'mirror,bracket,mod,mod_direct'  # whose training step is timed: files in config/
repeats = 10        # timed runs of each line
device = 'auto'     # auto, cpu, cuda, mps
batch_size = 0      # of the training steps; 0 is the configs' own on a GPU, and 16 on a CPU
minutes = 10.0      # the longest sound answered
digits = 100        # of the longest number divided
tokens = 16384      # the longest scan
questions = 1000    # in a stream that is listened to
ALL = parts.split(',')
configure(globals())

SIZES = {'mod_direct': {'d_model': 192, 'batch_size': 1024}}  # wider than it is trained
H, P, N = 8, 32, 64  # of a Mamba-2 layer at d_model 128

# --- check the settings ---
bounds(globals(), repeats=1, batch_size=0, minutes=0.01, tokens=32, questions=3, digits=1)
chosen = names_of(globals(), 'parts', ALL)
settings_of = {}
for name in configs.split(','):
    settings = run_config(os.path.join(HERE, 'config', name + '.py'))
    if settings.get('tasks') not in TASKS:
        fail(f"configs are some that train one task, not {name!r}")
    settings_of[name] = {**settings, **SIZES.get(name, {})}
device = pick_device(device)

# --- set up ---
on_gpu = device.startswith('cuda')
dtype = torch.bfloat16 if on_gpu else torch.float32
no_kernel = kernel_missing() if on_gpu else "it needs an NVIDIA GPU"
no_gla = '' if on_gpu and find_spec('fla') else "it needs an NVIDIA GPU and fla-core"
torch.backends.cuda.matmul.allow_tf32 = True
generator = torch.Generator(device).manual_seed(0)
uniform = functools.partial(torch.rand, generator=generator, device=device)
normal = functools.partial(torch.randn, generator=generator, device=device, dtype=dtype)
threads = torch.get_num_threads()
machine = torch.cuda.get_device_name() if on_gpu else platform.machine()
print(f"{machine}, {threads} threads on {os.cpu_count()} cores, torch {torch.__version__}")
rows = [{'machine': machine, 'threads': threads, 'torch': torch.__version__}]


def report(what, value, unit, of='', other=0.0):
    """A line of the table, perhaps compared with the line `of`, whose time is `other`"""
    rows.append({'what': what, 'value': value, 'unit': unit})
    line = f"{what:58} {value:12,.4g} {unit:16}"
    if of:
        rows[-1].update(speed=other / value, of=of)
        line += f"{other / value:8.3g} x {of}"
    print(line, flush=True)


def skip(what, why):
    rows.append({'what': what, 'skipped': why})
    print(f"{what:58} skipped: {why}", flush=True)


def measure(f, graph=on_gpu):
    """Median seconds of f(); on a GPU as one CUDA graph, unless told otherwise, so that Python's
    speed does not count"""
    if graph:
        f = capture(f, generator)[0].replay
    wait = torch.cuda.synchronize if on_gpu else torch.cpu.synchronize
    f()
    times = []
    for _ in range(repeats):
        wait()
        t0 = time.perf_counter()
        f()
        wait()
        times.append(time.perf_counter() - t0)
    return statistics.median(times)


def bench_limits():
    """What this machine can do at best"""
    n = 8192 if on_gpu else 2048
    a = normal(n, n)
    flops = 2 * n ** 3 / measure(lambda: a @ a)
    moved = 2 * a.numel() * a.element_size() / measure(lambda: a.clone())
    report(f"matrix product, {n} x {n}, {dtype}", flops / 1e12, 'TFLOP/s')
    report('copy, read and written', moved / 1e9, 'GB/s')


def bench_audio():
    """Synthesizer and scorer on one core, beside the time that the sound takes"""
    g = torch.Generator().manual_seed(0)
    symbols = torch.randint(len(SYMBOLS), (32, 10), generator=g)
    rhythm = prepare.make_rhythm(32, 10, g)
    wave = play(symbols, rhythm, prepare.max_samples(10))  # (32, S)
    seconds = wave.numel() / SAMPLE_RATE
    torch.set_num_threads(1)
    synthesis = measure(lambda: play(symbols, rhythm, wave.shape[1]), graph=False)
    scoring = measure(lambda: find_tones(wave), graph=False)
    torch.set_num_threads(threads)
    report('synthesis, one core', seconds / synthesis, 'times real time')
    report('scoring, one core', seconds / scoring, 'times real time')


# --- a training step, with Mamba-2 or with other layers of as many parameters ---
#
# Front end, attention, losses (of frames and symbols) and optimizer are the same. On a GPU all of
# it is compiled, except the LSTM and mamba_ssm.Mamba2, which bring their own kernels.

class Official(nn.Module):
    """mamba_ssm's own layer, whose expand and d_conv are ours: (B, T, D) -> (B, T, D)"""

    def __init__(self, c):
        super().__init__()
        if no_kernel:
            raise ImportError(no_kernel)
        from mamba_ssm.modules.mamba2 import Mamba2 as Layer
        self.norm = nn.RMSNorm(c.d_model)
        self.inner = Layer(c.d_model, c.d_state, headdim=c.head_dim, use_mem_eff_path=False)

    def forward(self, x, pace):  # pace is for our own Mamba-2 alone
        return x + self.inner(self.norm(x))


def time_step(label, c, batch, *beside):
    """Milliseconds of an update on what batch() makes; c.layer may also be mamba_ssm"""
    torch.manual_seed(0)
    model = MiniJMamba(c, Official) if c.layer == 'mamba_ssm' else make_model(c)
    model.to(device)
    if on_gpu:
        compile_parts(model, (Mamba2, SelfAttention, CrossAttention, Transformer))
    lr = torch.tensor(1e-4, device=device) if on_gpu else 1e-4
    optimizer = torch.optim.AdamW(model.parameters(), lr, fused=True, capturable=on_gpu)
    examples = batch()
    side = torch.cuda.Stream() if on_gpu else None

    @torch.compile(dynamic=False, disable=not on_gpu)  # as train.py does
    def loss_of(frames, logits, answer):
        wanted = model.hear(answer).unflatten(2, (c.patch, -1)).flatten(1, 2)
        off = frames.float() - wanted  # (B, T * patch, F)
        logits = logits.flatten(0, 1)
        symbols = F.cross_entropy(logits.float(), logits.argmax(-1))
        return (off.abs() + off.square()).mean() + 0.1 * symbols

    def update(b):
        with torch.autocast('cuda', torch.bfloat16, enabled=on_gpu):
            frames, logits, *_ = model(b.question, b.lengths)
            loss = loss_of(frames, logits, b.answer)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def step():
        """As train.py does it: on a GPU the next examples are made beside the update"""
        if not on_gpu:
            update(batch())
            return
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            batch()
        update(examples)
        torch.cuda.current_stream().wait_stream(side)

    seconds = measure(step)
    report(label, 1000 * seconds, 'ms a step', *beside)
    n = sum(p.numel() for p in model.parameters())
    rate = len(examples.lengths) / seconds
    flops = 6 * n * examples.question.numel() / c.token / seconds  # of products with weights alone
    rows[-1].update(parameters=n, examples_per_second=rate, flops=flops)
    print(f"    {rate:,.0f} examples/s; {n:,} parameters at {flops / 1e12:.3g} TFLOP/s", flush=True)
    return 1000 * seconds


def bench_step():
    others = {'Transformer': 'transformer', 'LSTM': 'lstm', 'mamba_ssm.Mamba2': 'mamba_ssm'}
    if on_gpu:
        prepare.play = torch.compile(prepare.play, dynamic=False)  # as train.py does
    for name, settings in settings_of.items():
        task = settings['tasks']
        size = batch_size or (settings.get('batch_size', 16) if on_gpu else 16)
        wishes = taken(task, aloud=bool(settings.get('aloud')))
        wishes['pauses'] = int(settings.get('pauses', 0))
        batch = functools.partial(make_batch, task, 'train', size, generator, device, **wishes)
        known = settings.keys() & JMambaConfig.__dataclass_fields__.keys()
        c = JMambaConfig(**{key: settings[key] for key in known})
        label = f"{name}, d {c.d_model}, batch {size}: "
        report(label + 'the audio alone', 1000 * measure(batch), 'ms')
        ours = time_step(label + 'Mini-JMamba', c, batch)
        for other, layer in others.items() if task == 'mod' else ():
            try:
                time_step(label + other, replace(c, layer=layer), batch, 'Mini-JMamba', ours)
            except ImportError as e:
                skip(label + other, str(e))


# --- the scan alone, forward and backward, and a Mamba-2 layer's middle around it ---

def compare(label, ways, inputs, dy):
    """Time y = f(*inputs) and its gradients, forward and backward, for each of the ways (its name,
    f, why it is skipped), beside the first. The gradient of y is dense, as in training."""
    for x in inputs:
        x.requires_grad_()
    first = ()
    for what, f, why in ways:
        try:
            if not why:
                took = 1000 * measure(lambda f=f: torch.autograd.grad(f(*inputs), inputs, dy))
        except RuntimeError as e:  # as others' kernels refuse some machines
            why = str(e)
        if why:
            skip(label + what, why)
            continue
        report(label + what, took, 'ms', *first)
        first = first or (what, took)


def recurrence(x, dt, A, B, C):
    """ssd() of model.py as it is defined, one token after another"""
    h = x.new_zeros(len(x), H, P, N)
    y = []
    for t in range(x.shape[1]):
        decay = (dt[:, t] * A).exp()[..., None, None]
        new = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        h = decay * h + new
        y.append((h * C[:, t, None, None]).sum(-1))
    return torch.stack(y, 1)


@torch.compiler.disable
def simple_gla(x, dt, A, B, C):
    """ssd() of model.py by flash-linear-attention's kernels"""
    from fla.ops.simple_gla import chunk_simple_gla
    C, B = (t[:, :, None].expand(-1, -1, H, -1) for t in (C, B))
    return chunk_simple_gla(C, B, dt[..., None].to(x.dtype) * x, dt * A, scale=1.0)[0]


def of_one(scan):
    """The scan with x, B and C in one tensor (B, T, HP + 2N), as a Mamba-2 layer has them"""
    def scan_one(xBC, dt, A):
        x, B, C = xBC.split([H * P, N, N], -1)
        return scan(x.unflatten(-1, (H, P)), dt, A, B, C)
    return scan_one


def bench_scan():
    no_compiler = '' if on_gpu or shutil.which('g++') else "there is no C++ compiler"
    for T in [T for T in (32, 64, 128, 256, 1024, 4096, 16384) if T <= tokens]:
        n = max(1, (2 ** 16 if on_gpu else 2 ** 12) // T)
        torch.compiler.reset()  # or it gives up compiling at the ninth
        too_slow = "too slow to wait for" if T > (32 if on_gpu else 1024) else ''
        ways = [  # name, scan, why it is skipped
            ('recurrence', of_one(recurrence), too_slow),  # a graph of many steps takes minutes
            ('ssd', of_one(ssd), ''),
            ('ssd, compiled', torch.compile(of_one(ssd), dynamic=False), no_compiler),
            ('mamba_ssm kernel', of_one(ssd_kernel), no_kernel),
            ('simple_gla', of_one(simple_gla), no_gla),
        ]
        inputs = [normal(n, T, H * P + 2 * N), uniform(n, T, H), -uniform(H)]
        compare(f"scan, {n} x {T} tokens: ", ways, inputs, normal(n, T, H, P))
        if on_gpu and triton:
            bench_middle(n, T)


def bench_middle(n, T):
    """All of a Mamba-2 layer between its two projections, for n examples of T tokens"""
    pace = torch.ones(n, T, 1, device=device)
    channels = H * P + 2 * N
    weights = [uniform(4, channels) - 0.5, uniform(channels)]  # of the convolution, and its bias
    weights += [uniform(H), -uniform(H), 1 + uniform(H)]       # dt_bias, A, D
    inputs = [normal(n, T, H * P + channels + H), *weights]

    def compiled(middle):
        """What the kernels leave to PyTorch needs it too."""
        return torch.compile(lambda x, *rest: middle(x, pace, *rest, P, N), dynamic=False)

    ways = [  # name, way, why it is skipped
        ('four kernels', compiled(ShortMixer.apply), '' if T <= SHORT else "it is too long"),
        ('ssd', compiled(mixer), ''),
        ('mamba_ssm kernel', compiled(functools.partial(mixer, scan=ssd_kernel)), no_kernel),
        ('simple_gla', compiled(functools.partial(mixer, scan=simple_gla)), no_gla),
    ]
    compare(f"the middle of a layer, {n} x {T} tokens: ", ways, inputs, normal(n, T, H * P))


def resident():
    """The most bytes of this process that were in memory since /proc/self/clear_refs was told 5"""
    with open('/proc/self/status') as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith('VmHWM'))


def peak(f):
    """f() -> the most bytes that it took beyond what was taken before; 0 if that is unknown"""
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)  # what is free must not be resident
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
    except (OSError, AttributeError):  # no Linux
        return 0
    before = resident()
    f()
    return resident() - before


def bench_length():
    """What an answer costs, by length"""
    model = MiniJMamba(JMambaConfig()).eval().to(device)
    costs = []
    for seconds in [s for s in (1, 3, 10, 30, 100, 300, 600) if s <= 60 * minutes]:
        wave = 0.1 * uniform(1, seconds * SAMPLE_RATE)
        answer = functools.partial(converse, model, wave)
        memory = peak(answer)
        took = measure(answer, graph=False)
        report(f"answer to {seconds} s of sound", seconds / took, 'x real time')
        if memory:
            report("    memory", memory / 2 ** 20, 'MiB')
        if seconds >= 10:
            costs.append((seconds, took, memory))
    for k, what in (1, 'time'), (2, 'memory'):
        if len(costs) > 1 and costs[-1][k]:
            power = np.polyfit(*np.log([(cost[0], cost[k]) for cost in costs]).T, 1)[0]
            report(f"{what} grows with length to the power of, from 10 s on", power, '')


def bench_digits():
    """How long the release thinks about a division of a long number"""
    model, _ = load_checkpoint(device=device, init_from='release')
    for n in [n for n in (10, 30, 100, 300, 1000) if n <= digits]:
        question = prepare.play_text('3141592653' * (n // 10) + '%325')[None].to(device)
        t0 = time.perf_counter()
        (_, passes), = deque(conversation(model, question, think=100 * n), maxlen=1)
        report(f"{n} digits, {int(passes)} passes", time.perf_counter() - t0, 's')


def stream_of_questions():
    """iid questions of three tasks, at 0 to 20 dB over white noise and 1 to 3 s apart -> the sound
    (S,), the second in which each question begins, and the right answers"""
    g = torch.Generator().manual_seed(0)
    drawn = []
    for task in ('mirror', 'bracket', 'mod'):
        for b in split_batches(task, 'iid', -(-questions // 3)):
            cut = [question[:n] for question, n in zip(b.question, b.lengths, strict=True)]
            drawn += zip(cut, map(decode, b.wanted), strict=True)
    sounds, wants = [], []
    for i in torch.randperm(len(drawn), generator=g).tolist():
        question, wanted = drawn[i]
        loudness, pause = torch.rand(2, generator=g).tolist()
        sound = F.pad(question, (0, round((1 + 2 * pause) * SAMPLE_RATE)))
        noise = TONE_RMS * prepare.gain(-20 * loudness) * torch.randn(len(sound), generator=g)
        sounds.append(sound + noise)
        wants.append(wanted)
    begins = np.cumsum([0, *map(len, sounds)]) / SAMPLE_RATE
    return torch.cat(sounds), begins[:-1], wants


def bench_listen():
    """The release, always listening, on a clock as if the sound came live to this machine"""
    model, _ = load_checkpoint(device=device, init_from='release')
    sound, begins, wants = stream_of_questions()
    answers = [[] for _ in wants]
    decided, computed = [], []
    arrived = ready = 0.0
    t0 = time.perf_counter()
    for heard, thought in conversations(model, iter(sound.split(STREAM_BLOCK)), 64):
        arrived = min(arrived + STREAM_BLOCK / SAMPLE_RATE, len(sound) / SAMPLE_RATE)
        ready = max(ready, arrived) + time.perf_counter() - t0
        if thought:
            which = bisect.bisect(begins, arrived - heard.quiet) - 1
            answers[which] += transcribe(thought[0][-1].cpu())
            decided.append(heard.quiet)
            computed.append(ready - arrived)
        t0 = time.perf_counter()
    right = sum([wanted] == found for wanted, found in zip(wants, answers, strict=True))
    early = sum(len(found) > 1 for found in answers)
    late = sum(not found for found in answers)
    report(f"listening, {len(wants)} questions", 100 * right / len(wants), '% right')
    print(f"    {early} were answered too early, and again, {late} too late or never")
    report("    to the decision, 95 of 100", 1000 * np.quantile(decided, 0.95), 'ms')
    report("    from there to the answer", 1000 * np.quantile(computed, 0.95), 'ms')


def bench_scorer():
    """The scorer against white noise"""
    g = torch.Generator().manual_seed(0)
    symbols = torch.randint(len(SYMBOLS), (500, 20), generator=g)
    wave = play(symbols, prepare.make_rhythm(500, 20, g), prepare.max_samples(20))  # (500, S)
    wanted = [decode(row) for row in symbols]
    power = wave[wave != 0].square().mean()  # of the tones, without the gaps
    for db in (10, 0, -5, -10, math.inf):  # the last is clean
        noisy = wave + (power * 10 ** (-db / 10)).sqrt() * torch.randn(wave.shape, generator=g)
        wrong = sum(map(edit_distance, transcribe(noisy), wanted))
        report(f"scorer, 10,000 symbols, {db} dB signal to noise", 100 - wrong / 100, '% right')


benches = dict(limits=bench_limits, audio=bench_audio, step=bench_step, scan=bench_scan,
               length=bench_length, digits=bench_digits, listen=bench_listen, scorer=bench_scorer)
for part in chosen:
    benches[part]()
try:
    with open(out, 'w') as f:
        json.dump(rows, f, indent=1)
except OSError as e:
    fail(f"cannot write {out}: {e.strerror}")
