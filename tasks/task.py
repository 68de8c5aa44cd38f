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


# --- what a task is ---

class Split(NamedTuple):
    """Questions of one kind, and which of them may be drawn. A hash of its symbols puts each
    question into one of the buckets train, val and test. Questions that training cannot draw need
    not be held out: the bucket of their split is called far, and all of them may be drawn."""
    said: str             # in words, for pictures
    bucket: str           # train, val, test or far
    arguments: dict = {}  # of the task's draw


class Task(NamedTuple):
    """All that is particular to one task; README.md in this folder explains it with an example.

    draw(n, generator, device, **arguments) -> questions (n, N), and which are as asked (n,).
    """
    name: str
    symbols: str              # a typed question belongs to the task in whose symbols it is written
    example: str              # a question
    draw: Callable
    splits: dict              # name -> Split: train, val, val_ood, iid, and others that are asked
    answer: Callable          # (B, N) -> (B, N), at once
    solve: Callable           # text -> text; ValueError if it is no question of this task
    slots: Callable = len     # question in text -> slots that it and its answer take

    # Training may draw more than the splits say: what of this has draw as parameters?
    #   level: 0 to 1, how far the difficulty has risen
    #   aloud: whether lines of working are asked, too
    #   pairs: whether two rows each end alike, to take each other's place when something is hidden
    #   mixed_symbols: what share of the symbols is drawn from those of all tasks
    wishes: tuple = ()
    paired: bool = False      # draw gives pairs of rows, which are kept or dropped together
    few: Callable = None      # (B, N) -> (B,) which questions are too few to hold out
    of_length: Callable = None  # length -> arguments of draw, to find out where it breaks
    levels: tuple = ()        # splits that are easy, medium and hard

    # If it is worked out aloud, both of these
    next_line: Callable = None  # (B, N) -> (B, N), one line of working; the last stays as it is
    working: Callable = None  # text -> all lines of working
    between: str = ''         # 'module:function', waves -> waves, that is called between two lines

    # If each tone of the answer is that of one slot of the question: which one, (B, N) -> (B, N)
    source: Callable = None
    hides: bool = False       # most of an answer is copied, and can be hidden in training

    # Labels for what a question comes to so far, if they are taught
    so_far: Callable = None   # (B, N) -> (B, N) from 0 at each slot; -1: unknown
    n_labels: int = 0         # how many there are
    first_label: int = 0      # the model's number for the first; no two tasks share one
    so_far_aloud: bool = False  # they are taught when it is worked out aloud, too

    # For those who look at results
    hard: Callable = None     # a question or line in text -> dict of what is hard about it
    shortcuts: dict = {}      # what a sceptic would try -> text -> text


# --- drawing ---

def randint(low, high, generator):
    """Tensors (n,) of bounds, both included, the upper one perhaps fractional -> integers (n,)"""
    dtype = torch.float32 if low.is_mps else torch.float64  # Apple's GPUs have no doubles
    r = torch.rand(low.shape, generator=generator, device=low.device, dtype=dtype)
    return low + (r * (high.floor() - low + 1)).long()


def dice(n, generator, device, level):
    """Random numbers for n questions -> three functions: rand(*shape), from 0 to 1; index(size,
    *shape), an integer under `size`; integers(low, high, *shape), which have the shape (n, *shape)
    and go from low to high as far as the level of difficulty has risen"""
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    def index(size, *shape):
        return (rand(*shape) * size).long()

    def integers(low, high, *shape):
        low = torch.full((n, *shape), low, device=device)
        return randint(low, low + level * (high - low), generator)

    return rand, index, integers


def exactly(**counts):
    """Arguments of draw, where it takes (lowest, highest): so many of each, no more, no fewer"""
    return {name: (count, count) for name, count in counts.items()}


def letters(n, generator, device):
    """n rows of the ten letters that are trained on, in random order (n, 10)"""
    key = torch.rand(n, 10, generator=generator, device=device)
    order = key.argsort(1)
    return encode('A')[0] + order + (order >= 5)  # K is left out


def drawn_kinds(shares, drawn, kind):
    """{kind: share} and random numbers from 0 to 1 of any shape -> {kind: which questions are of
    it}: all of them, if it is the kind that is named, or as the shares say if that is 'mixed'"""
    is_kind, above = {}, 0.0
    for name, share in shares.items():
        is_kind[name] = torch.full_like(drawn, name == kind, dtype=torch.bool)
        if kind == 'mixed':
            is_kind[name] = (drawn >= above) & (drawn < above + share)
        above += share
    return is_kind


@functools.cache
def constant(values, device):
    """Nested tuples -> a tensor, made once: a CUDA graph cannot make one"""
    return torch.tensor(values, device=device)


# --- lines of working ---

def lines_later(q, next_line, skip, most):
    """Rows (B, N) -> the lines of working that come so many lines later, skip (B, 1), at most
    `most`"""
    for i in range(1, most + 1):
        q = torch.where(i <= skip, next_line(q), q)
    return q


def last_line(q, next_line, most):
    """Rows (B, N) -> the last lines of their working, which has at most so many"""
    for _ in range(most):
        q = next_line(q)
    return q


def in_their_slots(q, next_line):
    """Rows (B, N) with pauses anywhere -> their next lines, in the slots in which they sound"""
    sounds = q != REST
    line = next_line(close_gaps(q, q.shape[1]))
    rank = (sounds.cumsum(1) - 1).clamp(min=0)
    return torch.where(sounds, line.gather(1, rank), REST)


# --- rows of slots ---

def close_gaps(q, slots):
    """Rows (B, N) -> what sounds in them, one slot after another, (B, slots)"""
    order = (q == REST).long().argsort(stable=True, dim=1)  # what sounds, then the rest
    return q.gather(1, order)[:, :slots]


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
    found = q.gather(1, slot.clamp(0, q.shape[1] - 1))
    return torch.where(inside, found, REST)
