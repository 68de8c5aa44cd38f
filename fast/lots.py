"""
Examples for several updates at once. Half of a window would be padding if a batch were as it is
drawn. So the examples of LOT updates are drawn together and sorted: those of one update are about
equally long, and its window is no longer than they are. That also saves a GPU hundreds of small
kernels an update.
"""
import math
import random
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map

from fast import processes
from lessons import begin, go_on, last_line
from prepare import BLOCK, Drawn, max_samples
from tasks import TASKS, so_far

LOT = 32  # updates


class Lot(NamedTuple):
    """Examples for some batches of n rows, the shortest first"""
    drawn: Drawn            # (batches * n, ...)
    so_far: torch.Tensor    # (batches * n, N) labels of what comes out so far; -1: unknown
    is_last: torch.Tensor   # (batches * n,) 1.0 where the answer is the last line
    talk: torch.Tensor      # (batches, m) which of the Talks the last rows of each batch are


def by_length(drawn):
    """Examples and their neighbours, the shortest first"""
    longest = drawn.lengths.view(-1, 2).amax(1)
    first = 2 * longest.argsort()
    rows = torch.stack([first, first + 1], 1).flatten()
    return tree_map(lambda t: t[rows], drawn)


def make_lot(task, fresh, talks, aloud, n_batches):
    """What is Drawn, and Talks or None, the shortest first -> Lot of so many batches, each with its
    share of both"""
    def joined(*ts):
        return torch.cat([t.unflatten(0, (n_batches, -1)) for t in ts], 1).flatten(0, 1)

    drawn = fresh
    order = fresh.lengths[:0]
    if talks:
        order = talks.drawn.lengths.argsort()
        again = tree_map(lambda t: t[order], talks.drawn)
        drawn = tree_map(joined, fresh, again)
    labels = torch.full_like(drawn.asked, -1)
    if TASKS[task].so_far:
        labels = so_far(task, drawn.asked)
    is_last = last_line(task, drawn, aloud)
    return Lot(drawn, labels, is_last, order.view(n_batches, -1))


def window(samples):
    """Samples -> a window that holds them, of some blocks. Few sizes are enough, as each costs a
    GPU a graph: from eight blocks on they are even."""
    block = BLOCK if samples <= 8 * BLOCK else 2 * BLOCK
    return -(-samples // block) * block


def kept(old, new):
    """A tree of tensors, written over the old one, if there is one: a CUDA graph reads that"""
    return tree_map(torch.Tensor.copy_, old, new) if old else new


class Lots:
    """The Lots of several tasks. draw(task, n, generator) -> n examples Drawn; aloud: tasks that
    are; n_rows of a batch, of which n_own are conversations if the task is aloud; n_batches for
    each update; block: of the window that the longest examples may have"""

    def __init__(self, draw, aloud, n_rows, n_own, n_batches, block, device):
        self.draw = draw
        self.aloud = aloud
        self.n_rows = n_rows
        self.n_own = n_own
        self.n_batches = n_batches
        self.block = block
        self.generator = torch.Generator(device)
        # Which of the LOT updates is next
        self.which = torch.zeros((), dtype=torch.int64, device=device)
        # For each task
        self.lots = {}
        self.talks = {}
        self.windows = {}

    def drawn(self, task, n):
        """n examples for each batch of a Lot, the shortest first; of those of all processes mine"""
        sizes = self.n_batches * LOT, processes.world, n
        examples = self.draw(task, math.prod(sizes), self.generator)

        def mine(t):
            by_process = t.unflatten(0, sizes)
            return by_process[:, processes.rank].flatten(0, 1)

        return tree_map(mine, by_length(examples))

    def refill(self, task):
        """Draw a task's next Lot, and let its conversations go on"""
        aloud, talks = task in self.aloud, self.talks.get(task)
        n_own = self.n_own if aloud else 0
        fresh = self.drawn(task, self.n_rows - n_own)
        if n_own:
            new = self.drawn(task, n_own)
            if talks:
                kept(talks, go_on(task, talks, new, self.generator))
            else:
                talks = begin(new, max_samples(new.asked.shape[1], self.block))
                self.talks[task] = talks
        lot = make_lot(task, fresh, talks, aloud, self.n_batches * LOT)
        self.lots[task] = kept(self.lots.get(task), lot)

    def next(self, task, n, seed):
        """Choose the batches of a task's update n -> how many samples their window has"""
        n, i = divmod(n, LOT)
        # Each Lot has a seed of its own, so that a run that is resumed draws it again.
        chance = random.Random(f'{seed} {task} {n}')
        lot_seed = chance.getrandbits(62)
        order = chance.sample(range(LOT), LOT)
        if not i or task not in self.lots:
            self.generator.manual_seed(lot_seed)
            self.refill(task)
            lengths = self.lots[task].drawn.lengths.view(LOT, -1)
            longest = processes.largest(lengths.amax(1))
            self.windows[task] = [*map(window, longest.tolist())]
        # They are shuffled: an order of lengths would be one of difficulty.
        self.which.fill_(order[i])
        return self.windows[task][order[i]]

    def batch(self, task, i, n_samples):
        """Batch i of the update that is next -> Drawn, labels of what comes out so far, which
        answers are the last, and of the conversations which they are and what they hear"""
        lot, talks = self.lots[task], self.talks.get(task)
        batch = self.n_batches * self.which + i
        rows = self.n_rows * batch + torch.arange(self.n_rows, device=batch.device)
        chosen = tree_map(lambda t: t[rows], lot[:3])
        talk = lot.talk[batch[None]][0]  # a mere number as an index is read on the CPU
        own = ()
        if len(talk):
            sound = talks.own[talk, :n_samples].float()
            own = sound, talks.is_own[talk]
        return *chosen, talk, own

    def replied(self, task, talk, wave, is_right):
        """Keep what the model answered in some conversations"""
        self.talks[task].played[talk, :wave.shape[1]] = wave.half()
        self.talks[task].is_right[talk] = is_right
