"""
What an update costs, part by part, as the code that trains makes it:

$ python -m lab.bench --parts=update --configs=seven
$ python train.py config/seven.py --costs=true  # the same; costs.json goes to out_dir

A row a task, then the mean by the config's mix; ms, medians, each window as often as a Lot has it.

update           all of it, with its share of a Lot
kernels, short   on a GPU: how many, with copies and fills, and how many of under 5 us
forward          with the losses
backward         forward and backward, less forward
replay           of conversations: how replies sound, if they are right, how it goes on
optimizer        with clipping
examples         taking them from the Lot, sound, hiding
lot              drawing it, without how conversations go on
tokens, counted  of a window, and per cent of them that are no padding

The rest is the least that the Mamba-2 layers could take at the rates of large matrices. products:
both projections, forward and twice as much backward. memory: what stands between projections and
mixers (the residual stream in fp32, and in half precision what the norm, both projections and the
mixer give) written and read, read again backward, and its gradient written and read.
"""
import math
import os
from collections import Counter
from functools import partial
from types import SimpleNamespace

import torch
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from fast import LOT
from fast.graphs import WARM_UPS
from lab.bench import Bench
from lessons import go_on, reply
from system import write_json

COLUMNS = ('update', 'kernels', 'short', 'forward', 'backward', 'replay', 'optimizer', 'examples',
           'lot', 'tokens', 'counted', 'examples/s', 'products', 'memory')


def kernels_of(f):
    """How many kernels f() starts on a GPU, and how many of them take less than 5 us, by update"""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        f()
        torch.cuda.synchronize()
    gpu = torch.autograd.DeviceType.CUDA
    took = [event.device_time for event in found.events() if event.device_type == gpu]
    return Counter(kernels=len(took) / LOT, short=sum(us < 5 for us in took) / LOT)


def in_window(t, task, n_samples):
    """Seconds of each part in a window of so many samples; `t` has the names of train.py"""
    def make():
        return list(t.examples(task, n_samples))

    def answers():
        for example in made:
            inputs = example.batch.question, example.batch.lengths
            with t.amp:
                answer = t.model(*inputs, example.may_generate, example.hiding)
                parts = t.measure(t.model, answer, example, t.weights, t.distance)
                loss = sum(t.weights[key] * part for key, part in parts.items())
            yield answer, loss

    def forward():
        for _ in answers():
            pass

    def backward():
        t.optimizer.zero_grad(set_to_none=True)
        for _, loss in answers():
            loss.backward()

    def move():
        for p, gradient in gradients:
            p.grad = gradient
        clip_grad_norm_(t.model.parameters(), t.grad_clip or math.inf)
        t.optimizer.step()

    def replay():
        for (batch, *_, talk), frames in zip(made, played, strict=True):
            t.lots.replied(task, talk, *reply(t.model, frames[-len(talk):], batch))

    made = make()
    found = {f.__name__: t.seconds(f) for f in (forward, backward)}
    found['backward'] -= found['forward']
    backward()
    gradients = [(p, p.grad) for p in t.model.parameters() if p.grad is not None]
    t.optimizer.found_inf = torch.zeros((), device=t.device)  # all numbers are good
    found |= {'optimizer': t.seconds(move), 'examples': t.seconds(make)}
    t.optimizer.zero_grad(set_to_none=True)
    if len(made[0].talk):
        played = [answer.frames for answer, _ in answers()]
        found['replay'] = t.seconds(replay)
    return found


def of_task(t, task):
    """A row's numbers by column, times in seconds; full: tokens of an example that count"""
    lots, going_on, row = t.lots, 0, Counter()
    refill, first_runs = partial(lots.refill, task), WARM_UPS + 1 if t.cuda_graphs else 1
    for _ in range(first_runs):
        refill()
    lot = t.bench.measure(refill) / LOT
    if task in lots.talks:
        new = lots.drawn(task, lots.n_own)
        going_on = t.seconds(partial(go_on, task, lots.talks[task], new, lots.generator)) / LOT
    if t.bench.on_gpu:
        row.update(kernels_of(refill))  # which adds
    t.next_window(task)  # which draws a Lot
    windows = lots.windows[task]

    def updates(batches=range(LOT)):
        for i in batches:
            lots.which.fill_(i)
            t.update(task, windows[i])

    at = {n_samples: i for i, n_samples in enumerate(windows)}
    for i in at.values():
        updates(first_runs * [i])
    row.update(lot=lot - going_on, replay=going_on, update=lot + t.bench.measure(updates) / LOT)
    if t.bench.on_gpu:
        row.update(kernels_of(updates))
    row['tokens'] = sum(windows) / LOT / t.c.token
    row['full'] = lots.lots[task].drawn.lengths.double().mean().item() / t.c.token
    for n_samples, n in Counter(windows).items():
        lots.which.fill_(at[n_samples])
        parts = in_window(t, task, n_samples)
        row.update({part: n / LOT * took for part, took in parts.items()})
    return row


def limits(t, tokens, flops, moved):
    """Seconds that the Mamba-2 layers need at least for so many tokens of each example, at so many
    operations and bytes a second"""
    tokens *= t.n_rows * t.gradient_accumulation_steps
    half = getattr(torch, t.dtype).itemsize
    products = memory = 0
    for layer in t.model.mamba_layers():
        W, D = layer.in_proj.weight.shape
        HP = layer.out_proj.in_features
        products += 6 * tokens * D * (W + HP)
        memory += 5 * tokens * (4 * D + half * (D + W + HP + D))
    return {'products': products / flops, 'memory': memory / moved}


def finish(t, name, numbers):
    """A row with all that follows from its numbers, times in ms, printed"""
    as_they_are = {key: numbers[key] for key in ('kernels', 'short', 'tokens') if key in numbers}
    times = {**numbers, **limits(t, numbers['tokens'], *t.rates)}
    row = {key: 1000 * x for key, x in times.items() if key in COLUMNS} | as_they_are
    row['counted'] = 100 * numbers['full'] / numbers['tokens']
    row['examples/s'] = t.batch_size * t.gradient_accumulation_steps / numbers['update']
    shown = [f"{row[key]:.4g}" if key in row else '-' for key in COLUMNS]
    print(f"{name:10}", *(f"{x:>10}" for x in shown), flush=True)
    return {'task': name, **row}


def show(train):
    """Print the table, and write it into out_dir; train: the names of train.py before its loop"""
    train['iter_num'] = train['max_iters']  # the difficulty has risen
    t = SimpleNamespace(**train)
    t.bench = Bench(t.device, 10 if t.kind == 'cuda' else 1)
    t.bench.generators += t.generator, t.lots.generator
    t.seconds = partial(t.bench.measure, graph=t.cuda_graphs)
    # Fresh weights must not break: they move as little as in a first update.
    lr = t.get_lr(0)
    for group in t.optimizer.param_groups:
        group['lr'] = group['lr'].fill_(lr) if t.cuda_graphs else lr
    t.rates = t.bench.rates(getattr(torch, t.dtype))
    print(f"{t.rates[0] / 1e12:.4g} TFLOP/s, {t.rates[1] / 1e9:.4g} GB/s, batch {t.batch_size}")
    print(f"{'task':10}", *(f"{key:>10}" for key in COLUMNS), flush=True)

    shares, mean, rows = t.shares or dict.fromkeys(t.names, 1), Counter(), []
    for task in t.names:
        row, share = of_task(t, task), shares[task] / sum(shares.values())
        mean.update({key: share * x for key, x in row.items()})
        rows.append(finish(t, task, row))
    rows.append(finish(t, 'mean', mean))
    write_json(os.path.join(t.out_dir, 'costs.json'), rows)
