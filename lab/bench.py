"""
What it costs, side by side with what one would use instead.

$ python -m lab.bench                                 # prints a table and writes bench.json
$ python -m lab.bench --parts=step --configs=reverse  # a training step of your config/reverse.py
$ python -m lab.bench --parts=update --configs=seven  # what its updates cost, task by task

limits   what the machine can do at best
audio    synthesizer and scorer, on one core
step     a training step, and for mod other layers of as many parameters
update   an update as train.py makes it, part by part: lab/costs.py has the columns
mixer    a Mamba-2 layer between its two projections, in all ways that there are
length   an answer to long sound: time and memory
digits   the release divides long numbers
listen   the release listens to a stream of questions
scorer   how many symbols the scorer gets right in white noise

Every line is the median of `repeats` runs after a warm-up. Beside it stands its speed as a multiple
of that of the line that it is compared with. What the machine cannot do is skipped and named. On a
GPU, a step and a mixer run as one CUDA graph each. Letters are those of model.py.
"""
from configurator import HERE, bounds, configure, fail, names_of, run_config

# --- settings ---
out = 'bench.json'  # where the numbers go
parts = 'limits,audio,step,update,mixer,length,digits,listen,scorer'
device = 'auto'     # auto, cpu, cuda, mps
repeats = 10        # timed runs of each line
# step, update
configs = 'mirror,bracket,mod'  # files in config/: for step of one task, for update of any
batch_size = 0      # 0 is the configs' own on a GPU, and 16 on a CPU
# the others
tokens = 16384      # the longest mixer
minutes = 10.0      # the longest sound answered
digits = 100        # of the longest number divided
questions = 1000    # in a stream that is listened to
configure(globals())

# isort: split
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
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import fast
from audio.files import STREAM_BLOCK
from audio.listen import answers_to
from checkpoint import load_checkpoint
from exam import edit_distance
from fast.graphs import WARM_UPS
from lab.ends import brief_pass
from lessons import Example, hide_from, last_line, losses
from model import D_CONV, JMambaConfig, MiniJMamba, mixer
from optimizer import make_optimizer
from prepare import (
    BLOCK,
    SAMPLE_RATE,
    TONE_RMS,
    gain,
    make_batch,
    make_rhythm,
    max_samples,
    play,
    play_text,
    split_batches,
)
from system import pick_device, write_json
from tasks import SYMBOLS, TASKS, decode, n_labels, so_far
from think import conversation, converse
from transcribe import find_tones, transcribe

GRAPH_BLOCK = 4 * BLOCK  # samples that training pads to on a GPU
WEIGHTS = {'w_frames': 1.0, 'w_symbols': 0.1, 'w_so_far': 0.1, 'w_halt': 0.1}
# For mod, instead of Mamba-2
OTHER_LAYERS = {
    'Transformer': 'lab.baselines:Transformer',
    'LSTM': 'lab.baselines:LSTM',
    'mamba_ssm.Mamba2': 'lab.baselines:MambaSSM',
}
H, P, N = 8, 32, 64  # of a Mamba-2 layer at d_model 128


class Bench:
    """A machine, and the table of what it takes; repeats: timed runs of each line"""

    def __init__(self, device, repeats):
        self.device, self.repeats = device, repeats
        self.on_gpu = device.startswith('cuda')
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.generator = torch.Generator(device).manual_seed(0)
        self.generators = [self.generator]  # that a CUDA graph may draw from
        self.random = {'generator': self.generator, 'device': device}
        self.threads = torch.get_num_threads()
        machine = torch.cuda.get_device_name() if self.on_gpu else platform.machine()
        self.rows = [{'machine': machine, 'threads': self.threads, 'torch': torch.__version__}]

    def uniform(self, *shape):
        return torch.rand(shape, **self.random)

    def normal(self, *shape):
        return torch.randn(shape, dtype=self.dtype, **self.random)

    def report(self, what, value, unit, of='', other=0.0):
        """A line of the table, perhaps compared with the line `of`, whose time is `other`"""
        row = {'what': what, 'value': value, 'unit': unit}
        line = f"{what:58} {value:12,.4g} {unit:16}"
        if of:
            row.update(speed=other / value, of=of)
            line += f"{other / value:8.3g} x {of}"
        self.rows.append(row)
        print(line, flush=True)

    def skip(self, what, why):
        self.rows.append({'what': what, 'skipped': why})
        print(f"{what:58} skipped: {why}", flush=True)

    def measure(self, f, graph=False):
        """Median seconds of f(); on a GPU perhaps as one CUDA graph, so that Python's speed does
        not count, and five times in a row, so that the time of a launch does not"""
        in_a_row = 1
        if graph and self.on_gpu:
            f, in_a_row = graph_of(f, self.generators), 5
        wait = torch.cuda.synchronize if self.on_gpu else torch.cpu.synchronize
        f()
        times = []
        for _ in range(self.repeats):
            wait()
            t0 = time.perf_counter()
            for _ in range(in_a_row):
                f()
            wait()
            times.append((time.perf_counter() - t0) / in_a_row)
        return statistics.median(times)

    def rates(self, dtype):
        """Operations a second of a large matrix product, and bytes a second that a copy reads and
        writes"""
        n = 8192 if self.on_gpu else 2048
        a = torch.randn(n, n, dtype=dtype, **self.random)
        flops = 2 * n ** 3 / self.measure(lambda: a @ a)
        return flops, 2 * a.numel() * a.element_size() / self.measure(a.clone)


def graph_of(f, generators):
    """f() on a GPU -> a function that replays it as a CUDA graph, after first runs"""
    # PyTorch asks that these are on a stream of their own.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            f()
    torch.cuda.current_stream().wait_stream(side)
    return fast.capture(f, *generators)[0].replay


# --- limits, audio ---

def bench_limits(bench):
    flops, moved = bench.rates(bench.dtype)
    bench.report(f"large matrix product, {bench.dtype}", flops / 1e12, 'TFLOP/s')
    bench.report('copy, read and written', moved / 1e9, 'GB/s')


def random_tones(n, slots):
    """-> symbols (n, slots), their sound (n, S), and the generator that drew them"""
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(len(SYMBOLS), (n, slots), generator=generator)
    rhythm = make_rhythm(n, slots, generator)
    return symbols, rhythm, play(symbols, rhythm, max_samples(slots)), generator


def bench_audio(bench):
    symbols, rhythm, wave, _ = random_tones(32, 10)
    seconds = wave.numel() / SAMPLE_RATE
    torch.set_num_threads(1)
    synthesis = bench.measure(lambda: play(symbols, rhythm, wave.shape[1]))
    scoring = bench.measure(lambda: find_tones(wave))
    torch.set_num_threads(bench.threads)
    bench.report('synthesis, one core', seconds / synthesis, 'times real time')
    bench.report('scoring, one core', seconds / scoring, 'times real time')


# --- a training step ---

def draws_of(bench, settings, c, size, synthesis):
    """A function that makes an Example of a config's task, as train.py does, but without replay and
    in the window of the longest"""
    task = settings['tasks']
    aloud = bool(settings.get('aloud'))
    sound = settings.get('sound', 'clean')
    hide = settings.get('hide', 0.0) if TASKS[task].hides and c.pointer else 0.0
    block = GRAPH_BLOCK if bench.on_gpu else BLOCK
    teaches = TASKS[task].so_far and (TASKS[task].so_far_aloud or not aloud)

    def draw():
        batch = make_batch(task, 'train', size, sound=sound, aloud=aloud, synthesis=synthesis,
                           block=block, pauses=int(settings.get('pauses', 0)), **bench.random)
        hiding = hide and hide_from(batch, hide, size, slice(None), c, bench.generator)
        may_generate = ~batch.repeats if c.pointer else None
        labels = so_far(task, batch.asked) if teaches else None
        return Example(batch, may_generate, hiding or None, labels, last_line(task, batch, aloud))

    return draw


def time_step(bench, label, settings, c, draw, *beside):
    """Milliseconds of an update, as train.py makes it; on a GPU the next examples are made beside
    it. ValueError if the machine cannot have such a layer."""
    torch.compiler.reset()  # or it gives up compiling at the ninth
    torch.manual_seed(0)
    model = MiniJMamba(c).to(bench.device)
    fast.use(model, compiled=bench.on_gpu)
    loss_parts, distance = losses, fast.distance(bench.device)
    if bench.on_gpu:
        loss_parts = fast.compiled(losses)
    lr = torch.tensor(1e-4, device=bench.device)
    muon = settings.get('muon', False)
    optimizer = make_optimizer(model.named_parameters(), lr, 0.1, muon, bench.on_gpu)
    optimizer.found_inf = torch.zeros((), device=bench.device)  # all numbers are good

    def update(example):
        batch = example.batch
        with torch.autocast('cuda', torch.bfloat16, enabled=bench.on_gpu):
            answer = model(batch.question, batch.lengths, example.may_generate, example.hiding)
            found = loss_parts(model, answer, example, WEIGHTS, distance)
            loss = sum(WEIGHTS[key] * part for key, part in found.items())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    example = draw()
    side = torch.cuda.Stream() if bench.on_gpu else None

    def step():
        if not bench.on_gpu:
            update(draw())
            return
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            draw()
        update(example)
        torch.cuda.current_stream().wait_stream(side)

    seconds = bench.measure(step, graph=True)
    bench.report(label, 1000 * seconds, 'ms a step', *beside)
    n = sum(p.numel() for p in model.parameters())
    rate = len(example.batch.lengths) / seconds
    bench.rows[-1].update(parameters=n, examples_per_second=rate)
    print(f"    {rate:,.0f} examples/s, {n:,} parameters", flush=True)
    return 1000 * seconds


def config_path(name):
    return os.path.join(HERE, 'config', name + '.py')


def config_of(settings):
    known = settings.keys() & JMambaConfig.__dataclass_fields__.keys()
    sizes = {'n_symbols': len(SYMBOLS), 'n_so_far': n_labels()}
    return JMambaConfig(**sizes, **{key: settings[key] for key in known})


def bench_step(bench):
    synthesis = fast.synthesis(bench.device)
    for name in configs.split(','):
        settings = run_config(config_path(name))
        c = config_of(settings)
        size = batch_size or (settings.get('batch_size', 16) if bench.on_gpu else 16)
        draw = draws_of(bench, settings, c, size, synthesis)
        label = f"{name}, d {c.d_model}, batch {size}: "
        bench.report(label + 'the audio alone', 1000 * bench.measure(draw, graph=True), 'ms')
        ours = time_step(bench, label + 'Mini-JMamba', settings, c, draw)
        for other, layer in OTHER_LAYERS.items() if settings['tasks'] == 'mod' else ():
            try:
                time_step(bench, label + other, settings, replace(c, layer=layer), draw,
                          'Mini-JMamba', ours)
            except ValueError as e:
                bench.skip(label + other, str(e))


# --- what updates cost, as train.py makes them ---

def costs_of(bench, name, folder):
    """Run train.py on a config and show its table -> the rows"""
    flags = dict(costs=True, device=bench.device, init_from='scratch', out_dir=folder)
    if not bench.on_gpu:
        flags['compile'] = False
    if batch_size or not bench.on_gpu:
        flags['batch_size'] = batch_size or 16
    command = [sys.executable, os.path.join(HERE, 'train.py'), config_path(name)]
    command += [f'--{key}={value}' for key, value in flags.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        for line in training.stdout:
            print(line, end='', flush=True)
    if training.returncode:
        raise ValueError(f"train.py could not say what an update of {name} costs")
    with open(os.path.join(folder, 'costs.json'), encoding='utf-8') as f:
        return json.load(f)


def bench_update(bench):
    if bench.on_gpu:
        torch.cuda.empty_cache()  # what earlier parts needed
    for name in configs.split(','):
        with tempfile.TemporaryDirectory() as folder:
            rows = costs_of(bench, name, folder)
        for row in rows:
            bench.report(f"{name}, {row['task']}: an update", row['update'], 'ms')
            bench.rows[-1].update(row)


# --- a Mamba-2 layer between its two projections, forward and backward ---

def ways_to_mix(T):
    """For T tokens: name, mixer, and why it is skipped, '' if it is not"""
    compiled = functools.partial(torch.compile, dynamic=False)
    no_compiler = "there is no C++ compiler"
    ways = [('plain', mixer, '')]
    if not torch.cuda.is_available():
        ways += [('compiled', compiled(mixer), '' if shutil.which('g++') else no_compiler)]
        return ways + [(name, None, "it needs an NVIDIA GPU")
                       for name in ('four kernels', 'mamba_ssm kernel')]
    from fast.kernels import KERNEL_FROM, TritonMixer, kernel_missing, ssd_kernel
    by_kernel = functools.partial(mixer, scan=ssd_kernel)
    return ways + [
        ('compiled', compiled(mixer), ''),
        ('four kernels', TritonMixer.apply, '' if T < KERNEL_FROM else "it is too long"),
        ('mamba_ssm kernel', compiled(by_kernel), kernel_missing()),
    ]


def bench_mixer(bench):
    for T in [T for T in (32, 64, 128, 256, 1024, 4096, 16384) if T <= tokens]:
        torch.compiler.reset()  # or it gives up compiling at the ninth
        n = max(1, (2 ** 16 if bench.on_gpu else 2 ** 12) // T)
        channels = H * P + 2 * N
        pace = torch.ones(n, T, 1, device=bench.device)
        inputs = [bench.normal(n, T, H * P + channels + H)]
        inputs += [bench.uniform(D_CONV, channels) - 0.5, bench.uniform(channels)]
        inputs += [bench.uniform(H), -bench.uniform(H), 1 + bench.uniform(H)]  # dt_bias, A, D
        for x in inputs:
            x.requires_grad_()
        dy = bench.normal(n, T, H * P)  # dense, as in training

        def gradients(mix, pace=pace, inputs=inputs, dy=dy):
            zxBCdt, *weights = inputs
            y = mix(zxBCdt, pace, *weights, P, N)
            return torch.autograd.grad(y, inputs, dy.to(y.dtype))

        first = ()
        for name, mix, why in ways_to_mix(T):
            label = f"mixer, {n} x {T} tokens: {name}"
            if why:
                bench.skip(label, why)
                continue
            took = 1000 * bench.measure(functools.partial(gradients, mix), graph=True)
            bench.report(label, took, 'ms', *first)
            first = first or (name, took)


# --- answers ---

def resident():
    """The most bytes of this process that were in memory since /proc/self/clear_refs was told 5"""
    with open('/proc/self/status') as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith('VmHWM'))


def peak(bench, f):
    """f() -> the most bytes that it took beyond what was taken before; 0 if that is unknown"""
    gc.collect()
    if bench.on_gpu:
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


def bench_length(bench):
    model = MiniJMamba(JMambaConfig()).eval().to(bench.device)
    fast.use(model)
    costs = []
    for seconds in [s for s in (1, 3, 10, 30, 100, 300, 600) if s <= 60 * minutes]:
        wave = 0.1 * bench.uniform(1, seconds * SAMPLE_RATE)
        answer = functools.partial(converse, model, wave)
        memory = peak(bench, answer)
        took = bench.measure(answer)
        bench.report(f"answer to {seconds} s of sound", seconds / took, 'x real time')
        if memory:
            bench.report("    memory", memory / 2 ** 20, 'MiB')
        if seconds >= 10:
            costs.append({'length': seconds, 'time': took, 'memory': memory})
    for what in 'time', 'memory':
        if len(costs) > 1 and costs[-1][what]:
            x, y = (np.log([cost[key] for cost in costs]) for key in ('length', what))
            power = np.polyfit(x, y, 1)[0]
            bench.report(f"{what} grows with length to the power of, from 10 s on", power, '')


def release(bench):
    model, _ = load_checkpoint(device=bench.device, init_from='release')
    fast.use(model)
    return model


def bench_digits(bench):
    model = release(bench)
    for n in [n for n in (10, 30, 100, 300, 1000) if n <= digits]:
        question = play_text('3141592653' * (n // 10) + '%325')[None].to(bench.device)
        t0 = time.perf_counter()
        thought = conversation(model, question, think=100 * n, brief=brief_pass)
        (_, passes), = deque(thought, maxlen=1)
        seconds = time.perf_counter() - t0
        bench.report(f"{n} digits, {int(passes)} passes", seconds, 's')


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
        noise = torch.randn(len(sound), generator=g)
        sounds.append(sound + TONE_RMS * gain(-20 * loudness) * noise)
        wants.append(wanted)
    begins = np.cumsum([0, *map(len, sounds)]) / SAMPLE_RATE
    return torch.cat(sounds), begins[:-1], wants


def bench_listen(bench):
    """On a clock as if the sound came live to this machine"""
    model = release(bench)
    sound, begins, wants = stream_of_questions()
    answers = [[] for _ in wants]
    decided, computed = [], []
    arrived = ready = 0.0  # seconds of the stream, and when what it asks is answered
    t0 = time.perf_counter()
    for recording, thought in answers_to(model, iter(sound.split(STREAM_BLOCK)), 64):
        arrived = min(arrived + STREAM_BLOCK / SAMPLE_RATE, len(sound) / SAMPLE_RATE)
        ready = max(ready, arrived) + time.perf_counter() - t0
        if thought:
            played, _ = thought
            which = bisect.bisect(begins, arrived - recording.quiet) - 1
            answers[which] += transcribe(played[-1].cpu())
            decided.append(recording.quiet)
            computed.append(ready - arrived)
        t0 = time.perf_counter()
    right = sum([wanted] == found for wanted, found in zip(wants, answers, strict=True))
    early = sum(len(found) > 1 for found in answers)
    late = sum(not found for found in answers)
    bench.report(f"listening, {len(wants)} questions", 100 * right / len(wants), '% right')
    print(f"    {early} were answered too early, and again, {late} too late or never")
    bench.report("    to the decision, 95 of 100", 1000 * np.quantile(decided, 0.95), 'ms')
    bench.report("    from there to the answer", 1000 * np.quantile(computed, 0.95), 'ms')


def bench_scorer(bench):
    symbols, _, wave, generator = random_tones(500, 20)
    wanted = [decode(row) for row in symbols]
    power = wave[wave != 0].square().mean()  # of the tones, without the gaps
    for db in (10, 0, -5, -10, math.inf):  # the last is clean
        noise = torch.randn(wave.shape, generator=generator)
        noisy = wave + (power * 10 ** (-db / 10)).sqrt() * noise
        wrong = sum(map(edit_distance, transcribe(noisy), wanted))
        bench.report(f"scorer, 10,000 symbols, {db} dB signal to noise", 100 - wrong / 100,
                     '% right')


# --- the program ---

PARTS = {
    'limits': bench_limits,
    'audio': bench_audio,
    'step': bench_step,
    'update': bench_update,
    'mixer': bench_mixer,
    'length': bench_length,
    'digits': bench_digits,
    'listen': bench_listen,
    'scorer': bench_scorer,
}


def main():
    bounds(globals(), repeats=1, batch_size=0, minutes=0.01, tokens=32, questions=3, digits=1)
    chosen = names_of(globals(), 'parts', PARTS)
    for name in configs.split(','):
        settings = run_config(config_path(name))
        if 'step' in chosen and settings.get('tasks') not in TASKS:
            fail(f"configs of step are some that train one task, not {name!r}")
    bench = Bench(pick_device(device), repeats)
    print(f"{bench.rows[0]['machine']}, {bench.threads} threads on {os.cpu_count()} cores, torch "
          f"{torch.__version__}")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        for part in chosen:
            PARTS[part](bench)
        write_json(out, bench.rows)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {out}: {e.strerror}")


if __name__ == '__main__':
    main()
