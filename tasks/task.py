"""
The alphabet that questions and answers are written in, and what a task is.

A row of slots is a row of symbol numbers, (N,), and REST where a slot is silent; a batch is (B, N).
"""
import functools
from typing import Callable, NamedTuple

import torch

# In order of pitch; new symbols go at the end, and = is to spare. K and L are never trained on: L
# lies at the edge of the letters' band, K inside it.
SYMBOLS = 'LABCDEKFGHIJ()VX0123456789%?>&|^~no='
LETTERS = 'LABCDEKFGHIJ'
NO_SYMBOL = '*'  # in text, a sound that is no symbol
REST = -1


def encode(text):
    """'AB' -> [1, 2]. ValueError names the symbol that has no tone."""
    for c in text:
        if c not in SYMBOLS:
            raise ValueError(f"{c!r} is not a symbol; the symbols are {SYMBOLS}")
    return [SYMBOLS.index(c) for c in text]


def decode(row):
    """A row of symbol numbers -> text without its silences"""
    text = ''
    for i in map(int, row):
        if i >= 0:
            text += SYMBOLS[i] if i < len(SYMBOLS) else NO_SYMBOL
    return text


def randint(low, high, generator):
    """Tensors (n,) of bounds, both included, the upper one perhaps fractional -> integers (n,)"""
    dtype = torch.float32 if low.is_mps else torch.float64  # Apple's GPUs have no doubles
    r = torch.rand(low.shape, generator=generator, device=low.device, dtype=dtype)
    return low + (r * (high.floor() - low + 1)).long()


# --- drawing, and rows, for the tasks ---

def dice(n, generator, device, level):
    """-> rand(*shape), numbers from 0 to 1; between(low, high, *shape), integers for n questions,
    (n, *shape), from low to high as far as the level has risen"""
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    def between(low, high, *shape):
        low = torch.full((n, *shape), low, device=device)
        return randint(low, low + level * (high - low), generator)

    return rand, between


def lines_later(q, next_line, skip, most):
    """Rows (B, N) -> the lines of working that come so many lines later, skip (B, 1), at most
    `most`"""
    for i in range(1, most + 1):
        q = torch.where(i <= skip, next_line(q), q)
    return q


@functools.cache
def constant(values, device):
    """Nested tuples -> a tensor, made once: a CUDA graph cannot make one"""
    return torch.tensor(values, device=device)


def letters(n, generator, device):
    """n rows of the ten letters that are trained on, in random order (n, 10)"""
    order = torch.rand(n, 10, generator=generator, device=device).argsort(1)
    return encode('A')[0] + order + (order >= 5)  # K is left out


def close_gaps(q, slots):
    """Rows (B, N) -> what sounds in them, one slot after another, (B, slots)"""
    return q.gather(1, (q == REST).long().argsort(stable=True, dim=1))[:, :slots]


def last_slot(q):
    """Rows (B, N) -> the last slot that sounds in each (B, 1), -1 if none does"""
    at = torch.arange(q.shape[1], device=q.device)
    return torch.where(q == REST, -1, at).amax(1, keepdim=True)


def only_last(q, symbol):
    """Rows (B, N) -> rows in which a symbol (B, 1), or one for all, sounds in that slot alone"""
    at = torch.arange(q.shape[1], device=q.device)
    return torch.where(at == last_slot(q), symbol, REST)


def first_slot(mask):
    """(B, N) bool -> the first slot that is true (B, 1), N if none is"""
    at = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, at, mask.shape[1]).amin(1, keepdim=True)


def symbol_at(q, slot):
    """Rows (B, N), slots (B, any) -> the symbols there, REST beyond the ends"""
    inside = (slot >= 0) & (slot < q.shape[1])
    return torch.where(inside, q.gather(1, slot.clamp(0, q.shape[1] - 1)), REST)


class Task(NamedTuple):
    """All that is particular to one task.

    draw(n, generator, device, **split) -> questions (n, N) and which of them are as asked (n,).
    train.py also gives it those of these that it has as parameters: level (0 to 1, how far the
    difficulty of training has risen), aloud, pairs and mixed_symbols (see train.py).
    """
    name: str
    symbols: str              # a typed question belongs to the task in whose symbols it is written
    example: str
    draw: Callable
    splits: dict              # name -> arguments of draw: train, val, val_ood, iid, ...
    answer: Callable          # (B, N) -> (B, N), at once
    solve: Callable           # text -> text; ValueError if it is no question of this task
    working: Callable = None  # text -> lines of working, if the task can be worked out aloud
    next_line: Callable = None  # (B, N) -> (B, N), one line of working
    paired: bool = False      # draw gives pairs of rows, which are kept or dropped together
    few: Callable = None      # (B, N) -> (B,) which questions are too few to hold out
    source: Callable = None   # (B, N) -> (B, N) if each tone is that of another slot: which one
    tool: Callable = None     # a line in text -> a row that is played instead; ValueError: no call
    hides: bool = False       # most of an answer is copied, and can be hidden (losses.py: Hiding)
    so_far: Callable = None   # (B, N) -> (B, N) what it would come to at each slot; -1: unknown
    n_so_far: int = 0         # how many such labels there are
    so_far_aloud: bool = False  # the labels are taught when it is worked out aloud, too
    hard: Callable = None     # a question or line in text -> dict of what is hard about it
    shortcuts: dict = {}      # what a sceptic would try -> text -> text
    said: dict = {}           # splits in words, for pictures
    slots: Callable = len     # question in text -> slots that it and its answer take
    levels: tuple = ()        # splits that are easy, medium and hard, for ask.py and summaries
    of_length: Callable = None  # length -> arguments of draw, to find out where it breaks
