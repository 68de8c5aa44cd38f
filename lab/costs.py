"""
What an update costs, part by part, as the code that trains makes it:

$ python -m lab.bench --parts=update --configs=seven
$ python train.py config/seven.py --costs=true  # the same, and costs.json in out_dir

A row a task, then the mean by the config's mix; times in ms, medians, each window as often as a Lot
has it. Weights are fresh: conversations get nowhere, so they are of first lines.

update           all of it, with its share of a Lot
kernels, short   on a GPU, copies and fills too; those under 5 us
forward          with the losses
backward         forward and backward, less forward
replay           how the replies sound, whether they are right, and how conversations go on
optimizer        with clipping
examples         taking them from the Lot, sound, hiding
lot              drawing it, without how conversations go on
tokens, counted  of a window, and per cent of them that are no padding

Of the ten Mamba-2 layers alone, what the machine could do at best, by rates that it has for large
matrices: `products` is both projections, forward and twice as much backward. `memory` is one pass
over all that stands between these and the mixers: the residual stream in fp32, what the norm, both
projections and the mixer give in half precision; written and read, read again backward, and its
gradient written and read.
"""
import math
import os
import statistics
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace

import torch
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

import fast
from fast.graphs import WARM_UPS
from lessons import go_on, reply
from system import write_json

LOT = fast.LOT
COLUMNS = ('task', 'update', 'kernels', 'short', 'forward', 'backward', 'replay', 'optimizer',
           'examples', 'lot', 'tokens', 'counted', 'examples/s', 'products', 'memory')


# --- measuring ---

def graph_of(f, *generators):
    """f() on a GPU -> a function that replays it as a CUDA graph, after first runs"""
    # PyTorch asks that these are on a stream of their own.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            f()
    torch.cuda.current_stream().wait_stream(side)
    return fast.capture(f, *generators)[0].replay


def seconds(f, on_gpu, runs=10, in_a_row=1):
    """Median seconds of f() after a first run; several in a row hide how long a launch takes"""
    def timed():
        if not on_gpu:
            t0 = time.perf_counter()
            f()
            return time.perf_counter() - t0
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(in_a_row):
            f()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / in_a_row

    f()
    return statistics.median(timed() for _ in range(runs))


def rates(measure, n, **how):
    """Seconds of a function, by measure(f), and the side of a matrix -> at most so many operations
    of a product in a second, and bytes that a copy reads and writes"""
    a = torch.randn(n, n, **how)
    flops = 2 * n ** 3 / measure(lambda: a @ a)
    return flops, 2 * a.numel() * a.element_size() / measure(a.clone)


def kernels_of(f):
    """How many kernels f() starts on a GPU, and how many of them take less than 5 us"""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        f()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    took = [e.device_time for e in found.events() if e.device_type == on_gpu]
    return len(took), sum(us < 5 for us in took)


# --- the parts of an update; `t` has the names of train.py ---

def part_seconds(t, f):
    """Seconds of a part alone, a CUDA graph if training has one"""
    if t.cuda_graphs:
        return seconds(graph_of(f, t.generator, t.lots.generator), True, in_a_row=5)
    return seconds(f, t.kind == 'cuda', runs=1)


def answers(t, made):
    """The model's Answer to each Example that was made, and the loss"""
    for example in made:
        batch = example.batch
        with t.amp:
            answer = t.model(batch.question, batch.lengths, example.may_generate, example.hiding)
            parts = t.measure(t.model, answer, example, t.weights, t.distance)
            loss = sum(t.weights[key] * part for key, part in parts.items())
        yield answer, loss


def backward(t, made):
    for _, loss in answers(t, made):
        loss.backward()


def there_and_back(t, made):
    backward(t, made)
    t.optimizer.zero_grad(set_to_none=True)


def move(t, gradients):
    for p, gradient in gradients:
        p.grad = gradient
    clip_grad_norm_(t.model.parameters(), t.grad_clip or math.inf)
    t.optimizer.step()


def optimizer_seconds(t, made):
    backward(t, made)
    gradients = [(p, p.grad) for p in t.model.parameters() if p.grad is not None]
    t.optimizer.found_inf = torch.zeros((), device=t.device)
    took = part_seconds(t, partial(move, t, gradients))
    t.optimizer.zero_grad(set_to_none=True)
    return took


def reply_seconds(t, task, made):
    if not len(made[0].talk):
        return 0.0
    frames = [answer.frames for answer, _ in answers(t, made)]

    def replies():
        for played, (batch, *_, talk) in zip(frames, made, strict=True):
            t.lots.replied(task, talk, *reply(t.model, played[-len(talk):], batch))

    return part_seconds(t, replies)


def in_window(t, task, n_samples):
    """Seconds of each part in a window of so many samples, by their columns"""
    made = list(t.examples(task, n_samples))
    forward = part_seconds(t, lambda: [None for _ in answers(t, made)])
    return {
        'forward': forward,
        'backward': part_seconds(t, lambda: there_and_back(t, made)) - forward,
        'optimizer': optimizer_seconds(t, made),
        'replay': reply_seconds(t, task, made),
        'examples': part_seconds(t, lambda: list(t.examples(task, n_samples))),
    }


def go_on_seconds(t, task):
    talks = t.lots.talks.get(task)
    if not talks:
        return 0.0
    new = t.lots.drawn(task, t.lots.n_own)
    return part_seconds(t, lambda: go_on(task, talks, new, t.lots.generator))


# --- a row of the table ---

def of_task(t, task, flops, moved):
    """A task's row, given rates(): columns, and `full`, tokens that are no padding"""
    lots, on_gpu, first_runs = t.lots, t.kind == 'cuda', WARM_UPS + 1
    for _ in range(first_runs if t.cuda_graphs else 1):
        lots.refill(task)
    went_on = go_on_seconds(t, task) / LOT
    lot = seconds(lambda: lots.refill(task), on_gpu) / LOT
    t.next_window(task)  # which draws a Lot
    windows = lots.windows[task]

    def updates(which=range(LOT)):
        for i in which:
            lots.which.fill_(i)
            t.update(task, windows[i])

    at = {n_samples: i for i, n_samples in enumerate(windows)}
    for i in at.values():
        updates([i] * (first_runs if t.cuda_graphs else 1))
    update = seconds(updates, on_gpu, runs=5 if on_gpu else 1) / LOT + lot
    row = Counter(task=task)
