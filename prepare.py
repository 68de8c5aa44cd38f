"""
The data: a tone synthesizer, three tasks played in tones, and their splits. Everything is batched tensor code that
runs on any device; nothing here knows about the model.

$ python prepare.py --task=mirror --split=ood_length --num_samples=16 --out_dir=data

writes data/mirror/ood_length/000000_question.wav, 000000_answer.wav, ... and a metadata.jsonl. Training needs none of
it: train.py makes its examples as it goes.

A symbol is a sine of about 100 ms and a gap of about 50 ms. Question and answer share one rhythm, a row of slots, so
an answer symbol always sounds in the slot of a question symbol (a dot is a slot in which nothing sounds):

    mirror    C A B B  ->  C A B B            play what you heard
    bracket   ( ( ) )  ->  V . . .            V balanced, X not
    mod       1 7 % 5  ->  . . . 2            the remainder, ending where the question ends
    Worked out aloud, the answer is the next line of the working; what is used up falls silent, the rest stays where it was:
    bracket   ( ( ) ( ) )  ->  ( . . . . )  ->  V . . . . .    pairs that meet go; V when all are gone, X when none meet
    mod       a line replaces the shortest leading part of A that is >= B by its remainder, or drops % B if there is none
              9 8 7 % 6 5 % 7  ->  3 3 7 % 6 5 % 7  ->  . 1 2 % 6 5 % 7  ->  . . . . 1 2 % 7  ->  . . . . . 5 % 7  ->  . . . . . . . 5
              (a remainder 0 is silent, unless it is the answer:  1 4 % 7  ->  . . % 7  ->  . . . 0)
"""
import io
import json
import math
import os
import re
import warnings
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import wavfile

SAMPLE_RATE = 16000
TONE, GAP, FADE = 0.100, 0.050, 0.005  # seconds
JITTER = 0.1       # of both durations, either way
DETUNE = 4.0       # Hz either way
LEAD = 0.02        # seconds of silence before the first slot, at most
LOUDNESS = 0.65    # amplitude of a tone of middle loudness
NOISE = 0.03       # standard deviation of the white noise in a question, at most
BLOCK = 6400       # samples; batches are padded to a multiple of it: whole tokens of the model, and a size that GPUs like
# In order of pitch. K and L are never trained on: L lies at the edge of mirror's band, K inside it.
SYMBOLS = 'LABCDEKFGHIJ()VX0123456789%'
REST = -1
LOWEST, SPACING = 400.0, 100.0  # Hz


def encode(text):
    """'AB' -> [1, 2]. ValueError names the symbol that has no tone."""
    for c in text:
        if c not in SYMBOLS:
            raise ValueError(f"{c!r} is not a symbol; the symbols are {SYMBOLS}")
    return [SYMBOLS.index(c) for c in text]


def decode(row):
    """A row of symbol numbers -> text; rests are skipped and a sound that is no symbol is written '?'."""
    return ''.join('?' if i >= len(SYMBOLS) else SYMBOLS[i] for i in map(int, row) if i >= 0)


# --- the synthesizer ---

class Rhythm(NamedTuple):
    """How each slot is played, (B, N) each: start and length of its tone in seconds, hertz off pitch, peak amplitude,
    phase in radians; and where the last gap ends, (B,), in seconds."""
    start: torch.Tensor
    length: torch.Tensor
    detune: torch.Tensor
    amplitude: torch.Tensor
    phase: torch.Tensor
    end: torch.Tensor


def make_rhythm(n, slots, generator=None, device='cpu'):
    """A random rhythm for n examples of `slots` slots."""
    r = torch.rand(6, n, slots, generator=generator, device=device)
    length, gap = TONE * (1 - JITTER + 2 * JITTER * r[0]), GAP * (1 - JITTER + 2 * JITTER * r[1])
    after = LEAD * r[5, :, :1] + (length + gap).cumsum(1)  # where each slot's gap ends
    return Rhythm(after - length - gap, length, DETUNE * (2 * r[2] - 1), 0.5 + 0.3 * r[3], 2 * math.pi * r[4], after)


def max_samples(slots):
    """Samples that hold any rhythm of so many slots, a multiple of BLOCK"""
    return math.ceil(round(SAMPLE_RATE * (LEAD + slots * (TONE + GAP) * (1 + JITTER))) / BLOCK) * BLOCK


def slot_at(start, n, step, offset=0.0):
    """Which slot was the last to start by time offset + step * i, i < n. (B, N), in seconds -> (B, n), -1 before any"""
    first = ((start - offset) / step).ceil().long().clamp(0, n)  # the first i that is not before the slot
    count = torch.zeros(start.shape[0], n + 1, dtype=torch.int32, device=start.device)
    count.scatter_add_(1, first, torch.ones_like(first, dtype=torch.int32))
    return count[:, :n].cumsum(1) - 1


def play(symbols, rhythm, n_samples):
    """Symbols (B, N), REST where nothing sounds -> waveforms (B, n_samples) of sines with raised-cosine fades."""
    n = SAMPLE_RATE // 100  # samples in a block, which is shorter than a gap: no more than one slot sounds in it
    slot = slot_at(rhythm.start, -(-n_samples // n), n / SAMPLE_RATE, n / SAMPLE_RATE).clamp(min=0)
    of = lambda x: x.gather(1, slot)[:, :, None]  # (B, N) -> (B, blocks, 1)
    first = (rhythm.start * SAMPLE_RATE).ceil()  # sample of each tone; differences of samples, not of seconds, stay exact
    t = (torch.arange(slot.shape[1] * n, device=slot.device).view(-1, n) - of(first)) / SAMPLE_RATE
    edge = torch.minimum(t, of(rhythm.length) - t)  # seconds to the nearer end of the tone
    fade = torch.sin((edge / FADE).clamp(0, 1) * (math.pi / 2)).square()
    hertz = LOWEST + SPACING * symbols + rhythm.detune
    wave = torch.sin(t * of(2 * math.pi * hertz) + of(rhythm.phase))
    return (wave * fade * of(rhythm.amplitude * (symbols >= 0))).flatten(1)[:, :n_samples]


def play_text(text, seed=0):
    """One question as train.py would play it, without noise -> (samples,)"""
    if not text:
        raise ValueError("a question needs at least one symbol")
    g = torch.Generator().manual_seed(seed)
    rhythm = make_rhythm(1, len(text), g)
    return play(torch.tensor([encode(text)]), rhythm, round(float(rhythm.end[0, -1]) * SAMPLE_RATE))[0]


# --- the tasks: each draws n questions and their answers as (n, N) symbols, padded with REST, and says which of the
# --- n are as asked; draw() below keeps those. `level`, 0 to 1, a number or a tensor (), is how far the difficulty
# --- that training knows has risen.

OPEN, CLOSE, VALID, INVALID, ZERO, PERCENT = encode('()VX0%')
L, A, K = encode('LAK')


def randint(low, high, generator):
    """Tensors (n,) of bounds, both included, the upper one perhaps fractional -> integers (n,)"""
    r = torch.rand(low.shape, generator=generator, device=low.device, dtype=torch.float64)
    return low + (r * (high.floor() - low + 1)).long()


def mirror(n, generator, device, low=3, high=10, unseen=False, foreign=0.0, level=1.0):
    """Letters; `foreign` is the share that is drawn from the symbols of all tasks: to play a tone back it must not matter which it is."""
    shortest = torch.full((n,), low, device=device)
    length = randint(shortest, shortest + level * (high - low), generator)
    at = torch.arange(high, device=device)
    one = lambda: at == randint(torch.zeros_like(length), length - 1, generator)[:, None]
    q = A + torch.randint(10, (n, high), generator=generator, device=device)
    if foreign:  # but for one, which says that it is mirror that is asked
        other = A + torch.randint(len(SYMBOLS) - 2, (n, high), generator=generator, device=device)
        q = torch.where((torch.rand(n, high, generator=generator, device=device) < foreign) & ~one(), other, q)
    q += q >= K  # the symbols on either side of K
    if unseen:  # a third of the symbols, and one for certain
        new = (torch.rand(n, high, generator=generator, device=device) < 0.3) | one()
        q = torch.where(new, torch.where(torch.rand(q.shape, generator=generator, device=device) < 0.5, K, L), q)
    q = torch.where(at < length[:, None], q, REST)
    return q, q, torch.ones(n, dtype=torch.bool, device=device)


def depths(q):
    """Bracket symbols (B, N) -> depth after each symbol, and whether it has been below 0 by then"""
    depth = ((q == OPEN).long() - (q == CLOSE).long()).cumsum(1)
    return depth, depth.cummin(1).values < 0


def meet(q):
    """Rows of brackets (n, N) -> the next line of working: pairs that meet, with rests between at most, fall silent. If that is all,
    the verdict is V, and if none do, X; it sounds in the slot of the first bracket, and is its own next line."""
    at, N = torch.arange(q.shape[1], device=q.device), q.shape[1]
    after = F.pad(torch.where(q == REST, N, at).flip(1).cummin(1).values.flip(1)[:, 1:], (0, 1), value=N)  # the next slot that sounds
    before = F.pad(torch.where(q == REST, -1, at).cummax(1).values[:, :-1], (1, 0), value=-1)
    symbol = lambda slot: F.pad(q, (1, 1), value=REST).gather(1, slot + 1)
    gone = ((q == OPEN) & (symbol(after) == CLOSE)) | ((q == CLOSE) & (symbol(before) == OPEN))
    left = torch.where(gone, REST, q)
    verdict = torch.where((left == REST).all(1), VALID, torch.where(gone.any(1) | (q >= VALID).any(1), REST, INVALID))[:, None]
    first = (q != REST).long().argmax(1, keepdim=True)
    return torch.where(verdict == REST, left, torch.where(at == first, verdict, REST))


def bracket(n, generator, device, low=2, high=12, kind='mixed', uniform=False, aloud=False, level=1.0):
    """Even rows are balanced; the odd row after each is not and has the same length. Balanced strings of one length are
    uniform by the cycle lemma: of the rotations of k+1 opening and k closing brackets just one stays above 0 (Dvoretzky
    and Motzkin, 1947). The unbalanced ones: 1/4 shuffled (equal counts), 2/3 one swap from balanced (equal counts), the
    rest one flip from it; most of them keep ( in front and ) at the end, or either would give them away.
    uniform=True weights lengths by how many balanced strings they have, so that each of those counts alike; otherwise
    longer ones are drawn more often, as many of them are held out. aloud=True asks a random line of the working, and the
    answer is the next line."""
    rand = lambda *shape: torch.rand(*shape, generator=generator, device=device)
    pairs = torch.arange(low // 2, high // 2 + 1, device=device)
    catalan = torch.exp(torch.lgamma(2.0 * pairs + 1) - 2 * torch.lgamma(pairs + 1.0)) / (pairs + 1)
    known = pairs <= 5 + level * (high // 2 - 5)  # a curriculum starts at length 10: only longer ones than 6 are held out
    share = ((catalan if uniform else pairs.float().square()) * known).cumsum(0)
    half = pairs[torch.searchsorted(share / share[-1], rand(n // 2)).clamp(max=len(pairs) - 1)]
    half = half.repeat_interleave(2)[:, None]
    at = torch.arange(high + 1, device=device)
    key = torch.where(at <= 2 * half, rand(n, high + 1), 2.0)
    up = key.argsort(1).argsort(1) <= half  # k + 1 of the first 2k + 1
    height = torch.where(at <= 2 * half, (2 * up - 1).cumsum(1), high + 2)
    lowest = high - height.flip(1).argmin(1, keepdim=True)  # the last minimum
    up = up.gather(1, (lowest + 2 + at[:high]) % (2 * half + 1))  # rotate; drop the opening bracket in front
    inside = at[:high] < 2 * half
    kept = (rand(n, 1) < 0.9) & (half > 2)
    free = inside & ~(kept & ((at[:high] == 0) | (at[:high] == 2 * half - 1)))
    pick = lambda mask: torch.where(mask, rand(n, high), -1.0).argmax(1, keepdim=True)
    key = torch.where(inside, torch.where(free, rand(n, high), at[:high] - 0.5), 2.0 * high)  # first below 0, last above 1
    shuffled = key.argsort(1).argsort(1) < half
    swapped = up.scatter(1, pick(up & free), False).scatter(1, pick(~up & free), True)
    flip = pick(free)
    flipped = up.scatter(1, flip, ~up.gather(1, flip))
    r = rand(n, 1) if kind == 'mixed' else torch.full((n, 1), {'shuffled': 0.0, 'swapped': 0.5}[kind], device=device)
    wrong = torch.where(r < 0.25, shuffled, torch.where(r < 0.92, swapped, flipped))
    odd = torch.arange(n, device=device)[:, None] % 2 == 1
    q = torch.where(inside, torch.where(torch.where(odd, wrong, up), OPEN, CLOSE), REST)
    depth, below = depths(q)
    balanced = (depth[:, -1] == 0) & ~below[:, -1]
    if aloud:
        skip = 4 * rand(n, 1).square()  # 0 is likely, or most of the lines would be verdicts
        for i in range(1, 4):
            q = torch.where(i <= skip, meet(q), q)
        return q, meet(q), balanced == ~odd[:, 0]
    a = torch.full_like(q, REST)
    a[:, 0] = torch.where(balanced, VALID, INVALID)
    return q, a, balanced == ~odd[:, 0]


def leads(x, width):
    """Numbers (...) of at most `width` digits -> the leading parts of each, (..., width): all but the last width - 1 digits, ..., all
    but the last, all; and the powers of ten that divide them off, (width,)"""
    powers = 10 ** torch.arange(width - 1, -1, -1, device=x.device)
    return x[..., None] // powers, powers


def n_digits(x, width):
    return (leads(x, width)[0] > 0).sum(-1).clamp(min=1)


def mod(n, generator, device, digits=None, high=999, steps=(1, 2), quotient=None, equal=False, aloud=False, pairs=False, level=1.0):
    """A % B % C ... with A of so many digits or up to `high`; quotient=(low, high) is A // B of the first step.
    aloud=True asks a random line of the working, and the answer is the next line. pairs=True: two rows each have the same divisors left to
    go on with, and lines that only drop a divisor are drawn half as often."""
    full = lambda x: torch.full((n,), x, device=device)
    k = steps[-1]
    b = randint(torch.ones(n, k, device=device, dtype=torch.long), 99 * 10.0 ** (level - torch.ones(n, k, device=device)), generator)
    first = torch.arange(n, device=device)
    first = first - first % 2 * pairs  # of a pair
    b = b[first]
    ok = torch.ones(n, dtype=torch.bool, device=device)
    if equal:
        a = b[:, 0].clone()
    elif quotient:
        a = randint(full(quotient[0]), full(quotient[1]).minimum(high // b[:, 0]), generator) * b[:, 0]
        a, ok = a + randint(full(0), b[:, 0] - 1, generator), quotient[0] <= high // b[:, 0]
        ok = ok & (a <= high)
    else:
        a = randint(full(10 ** (digits - 1)), full(10 ** digits - 1), generator) if digits else \
            randint(full(0), high * 100.0 ** (level - full(1.0)), generator)
    n_ops = randint(full(steps[0]), full(steps[0]) + level * (k - steps[0]), generator)[first]
    # lay the symbols out in slots: write all that there could be, then close the gaps
    width, live = digits or len(str(high)), torch.arange(k, device=device) < n_ops[:, None]

    def put(x, width):
        lead, powers = leads(x, width)
        return torch.where((lead > 0) | (powers == 1), lead % 10 + ZERO, REST)

    divisors = torch.where(live[:, :, None], F.pad(put(b, 2), (1, 0), value=PERCENT), REST)
    q = torch.cat([put(a, width), divisors.flatten(1)], 1)
    q = q.gather(1, (q == REST).long().argsort(stable=True, dim=1))
    ends = torch.cat([n_digits(a, width)[:, None], (1 + n_digits(b, 2)) * live], 1).cumsum(1) - 1  # last slot of each number
    slots = torch.arange(q.shape[1], device=device)

    zero = a == 0

    def line(a, done):
        """What is written when the first `done` of the B's are used up and `a` is left, its last digit where theirs was. An `a` that has
        become 0 is silent until it is the answer: what a leading part becomes must not depend on what comes behind it."""
        place = ends.gather(1, done[:, None]) - slots
        digit = a[:, None] // 10 ** place.clamp(0, 12) % 10 + ZERO
        length = torch.where((a > 0) | zero | (done == n_ops), n_digits(a, width), 0)
        return torch.where(place < 0, q, torch.where(place < length[:, None], digit, REST))

    def step(a, done):
        """The shortest leading part of `a` that is >= B becomes its remainder; if there is none, B is used up"""
        c = b.gather(1, done.clamp(max=k - 1)[:, None])
        lead, powers = leads(a, width)
        power = torch.where((lead >= c) & (done < n_ops)[:, None], powers, 0).amax(1)  # of the shortest one; 0 if there is none
        lead, c = a // power.clamp(min=1), c[:, 0]
        return a - (lead - lead % c) * power, done + ((done < n_ops) & (a < c)).long()

    if not aloud:
        for i in range(k):
            a = torch.where(live[:, i], a % b[:, i], a)
        return q, line(a, n_ops), ok
    done, start = torch.zeros_like(n_ops), randint(full(0), 2 * n_ops - 1, generator)  # lines to skip
    for i in range(2 * k - 1):
        s = step(a, done)
        a, done = torch.where(i < start, s[0], a), torch.where(i < start, s[1], done)
    following = step(a, done)
    if pairs:
        drops = (following[0] == a) & (a > 0) & (done < n_ops)
        ok = ok & (done == done[first]) & (~drops | (torch.rand(n, generator=generator, device=device)[first] < 1 / 2))
    return line(a, done), line(*following), ok


TASKS = {'mirror': mirror, 'bracket': bracket, 'mod': mod}


def so_far(task, q):
    """Symbols of bracket or mod (B, N) -> what it would come to if it ended with this symbol, (B, N): the remainder, -1 before
    the first divisor; of brackets 99 if one has closed that was not open, 100 if all are closed, 101 if some are open"""
    if task == 'bracket':
        depth, below = depths(q)
        return torch.where(below, 99, torch.where(depth == 0, 100, 101))
    number = remainder = torch.zeros_like(q[:, 0])
    left, found = number - 1, []
    for c in q.unbind(1):
        left = torch.where(c == PERCENT, torch.where(left < 0, number, remainder), left)
        number = torch.where(c == PERCENT, 0, torch.where(c < 0, number, 10 * number + c - ZERO))
        remainder = left % number.clamp(min=1)
        found.append(torch.where((left < 0) | (number == 0), -1, remainder))
    return torch.stack(found, 1)


def strew(rows, rests, generator):
    """Up to `rests` silent slots strewn before, between and behind the symbols of each (n, N) in rows, in all of them alike -> (n, N + rests)
    each. Few examples get many, and then most of them in one place: a pause."""
    n, N = rows[0].shape
    rand = lambda *shape: torch.rand(*shape, generator=generator, device=rows[0].device)
    share = (rand(n, N + 1) + 0.01) ** -2
    share = share.cumsum(1)[:, :N] / share.sum(1, keepdim=True)
    slot = torch.arange(N, device=share.device) + (share * rand(n, 1).square() * (rests + 1)).long().clamp(max=rests)
    return [row.new_full((n, N + rests), REST).scatter(1, slot, row) for row in rows]


def leading(a, b):
    """How many digits has the shortest leading part of A that is >= B, both in text? 0 if A < B"""
    return next((k for k in range(1, len(a) + 1) if int(a[:k]) >= int(b)), 0)


def depth_of(text):
    """Brackets in text -> the depth after each"""
    return list(accumulate(1 if c == '(' else -1 for c in text))


def working(text):
    """A question of mod or bracket in text -> its lines of working, from the question to the answer"""
    lines = [text]
    while set(lines[-1]) & set('()'):
        left = lines[-1].replace('()', '')
        lines.append('V' if not left else 'X' if left == lines[-1] else left)
    while '%' in lines[-1]:
        a, b, *rest = lines[-1].split('%')
        lead = leading(a, b)
        if lead:  # leading zeros fall silent, all of A if there is nothing else
            lines.append('%'.join([(str(int(a[:lead]) % int(b)) + a[lead:]).lstrip('0'), b, *rest]))
        else:
            lines.append('%'.join([a and str(int(a)) or ('' if rest else '0'), *rest]))
    return lines


def solve(task, text):
    """The right answer to a question in text, of any length -> text. ValueError if the task has no such question."""
    encode(text)
    if not text:
        raise ValueError("a question needs at least one symbol")
    if task == 'mirror':
        return text
    if task == 'bracket' and set(text) <= set('()'):
        depth = depth_of(text)
        return 'V' if depth[-1] == 0 and min(depth) >= 0 else 'X'
    if task == 'mod' and set(text) <= set('0123456789%') and all(text.split('%')):
        if 0 not in map(int, text.split('%')[1:]):
            return working(text)[-1]
    raise ValueError(f"{text!r} is not a question of {task}, which asks such things as "
                     + {'mirror': 'ABCA', 'bracket': '(()())', 'mod': '987%65%7'}[task])


def task_of(text):
    """Which task a typed question belongs to, by its symbols"""
    return 'bracket' if set(text) <= set('()') else 'mod' if set(text) <= set('0123456789%') else 'mirror'


# --- the splits: by a fixed hash of the question's symbols, so that no training run can meet a test question. val and
# --- val_ood are for choosing among checkpoints and settings: val_ood is as far out as the tests, but at no test's length.

TRAIN, VAL = 70, 10  # per cent of all questions; the other 20 are for the tests

SPLITS = {
    'mirror': {'train': {}, 'val': {}, 'val_ood': dict(low=30, high=30), 'iid': {},
               'ood_length_15': dict(low=15, high=15), 'ood_length_20': dict(low=20, high=20),
               'ood_length_40': dict(low=40, high=40), 'ood_symbol': dict(unseen=True),
               'ood_compose_20': dict(low=20, high=20, unseen=True)},
    # brackets up to length 6 are too few to hold out: all are trained on (seen_short), and the other splits start at 8
    'bracket': {'train': {}, 'val': dict(low=8, uniform=True), 'val_ood': dict(low=60, high=60),
                'iid': dict(low=8, uniform=True), 'seen_short': dict(high=6),
                'ood_length_14': dict(low=14, high=14), 'ood_length_20': dict(low=20, high=20),
                'ood_length_40': dict(low=40, high=40), 'ood_length_100': dict(low=100, high=100),
                'wrong_order': dict(low=8, kind='shuffled'), 'one_swap': dict(low=8, kind='swapped')},
    'mod': {'train': {}, 'val': {}, 'val_ood': dict(digits=6, steps=(1, 4)), 'iid': {},
            'ood_digits_4': dict(digits=4), 'ood_digits_5': dict(digits=5),
            'ood_compose_3': dict(steps=(3, 3)), 'ood_compose_5': dict(steps=(5, 5)),
            'quotient_0': dict(steps=(1, 1), quotient=(0, 0)), 'quotient_1_3': dict(steps=(1, 1), quotient=(1, 3)),
            'quotient_4_9': dict(steps=(1, 1), quotient=(4, 9)),
            'quotient_10': dict(steps=(1, 1), quotient=(10, 999)), 'equal': dict(steps=(1, 1), equal=True)},
}


def hash100(q):
    """Symbols (B, N) -> a number 0-99 for each row that depends on its symbols alone, not on rests or padding"""
    def mix(h):
        for _ in range(2):  # once would leave it to a few low digits
            h = (h * 48271 + 11) % 2147483647
            h = h ^ (h >> 15)
        return h
    sounds = q >= 0
    return mix((mix(q + 32 * sounds.cumsum(1)) * sounds).sum(1) % 2147483647) % 100  # of which symbol stands at which place


def bucket_of(q):
    """Symbols (B, N) -> 0 for train, 1 for val, 2 for test. Questions too few to hold out are all for training:
    brackets of length 6 and less, and numbers without a %, which are the last lines of working."""
    h = hash100(q)
    bucket = (h >= TRAIN).long() + (h >= TRAIN + VAL).long()
    brackets = (q == OPEN) | (q == CLOSE)
    few = (brackets.any(1) & (brackets.sum(1) <= 6)) | (((q >= ZERO) & (q < PERCENT)).any(1) & ~(q == PERCENT).any(1))
    return torch.where(few, 0, bucket)


def draw(task, split, n, generator=None, device='cpu', rests=0, **override):
    """n questions and answers of a split as symbols, (n, N) each, REST where a slot is silent"""
    spec = {**SPLITS[task][split], **override}
    bucket, far = {'train': 0, 'seen_short': 0, 'val': 1}.get(split, 2), 'ood' in split
    # Far more than are needed are drawn at once (no loop that would make a GPU wait): that too few of them fit
    # has a probability of under 1e-20 for training, and is seen at once in the fixed splits.
    in_pairs = task == 'bracket' or spec.get('pairs')
    pool = (8 if in_pairs else 2) * n + 512 if bucket == 0 or far else 600 * n + 4000
    q, a, ok = TASKS[task](pool, generator, device, **spec)
    if not far:  # what training cannot draw need not be held out
        ok &= bucket_of(q) == bucket
    if in_pairs:  # keep both or neither; of brackets, a balanced one and an unbalanced one of equal length
        ok = ok.view(-1, 2).all(1).repeat_interleave(2)
    order = (~ok).long().argsort(stable=True)[:n]
    if bucket and not bool(ok[order].all()):
        raise RuntimeError(f"too few {task} questions were drawn for {split}")
    return strew([q[order], a[order]], rests, generator) if rests else (q[order], a[order])


class Batch(NamedTuple):
    question: torch.Tensor   # (B, S) waveform with noise
    answer: torch.Tensor     # (B, S) waveform without
    lengths: torch.Tensor    # (B,) samples of the question that count, the same for the answer
    changed: torch.Tensor    # (B,) samples up to the end of the last slot in which the answer is not the question
    asked: torch.Tensor      # (B, N) symbols
    wanted: torch.Tensor     # (B, N) symbols
    rhythm: Rhythm


def make_batch(task, split, n, generator=None, device='cpu', part=slice(None), shuffled=False, **override):
    """n examples of a split, or part of them, rendered. The generator lives on `device`, except for the splits that must be
    the same anywhere: give those a CPU generator and move the batch. shuffled=True gives every question another's answer."""
    asked, wanted = draw(task, split, n, generator, device, **override)
    if shuffled:
        wanted = wanted[torch.rand(n, generator=generator, device=device).argsort()]
    rhythm = make_rhythm(n, asked.shape[1], generator, device)
    n_samples = max_samples(asked.shape[1])
    noise = NOISE * torch.rand(n, 1, generator=generator, device=device) * torch.randn(n, n_samples, generator=generator, device=device)
    at = torch.arange(asked.shape[1], device=asked.device)
    last = torch.where((asked != REST) | (wanted != REST), at, 0).amax(1)
    if split == 'train':  # silence behind the last symbol may count as well: a recording has it, and a line of working whose end is used up
        last += (torch.rand(n, generator=generator, device=last.device) ** 3 * (asked.shape[1] - last)).long()
    asked, wanted, rhythm, noise, last = asked[part], wanted[part], Rhythm(*[t[part] for t in rhythm]), noise[part], last[part]
    end = (rhythm.end * SAMPLE_RATE).round().long()
    lengths, changed = end.gather(1, last[:, None])[:, 0], torch.where(asked != wanted, end, 0).amax(1)
    clean = play(asked, rhythm, n_samples)
    question = clean + noise
    if task == 'mirror':
        return Batch(question, clean, lengths, changed, asked, wanted, rhythm)
    # what is played anew, not repeated, is played plainly: on pitch and of middle loudness
    new = asked != wanted
    plain = rhythm._replace(detune=rhythm.detune.where(~new, 0), amplitude=rhythm.amplitude.where(~new, LOUDNESS))
    return Batch(question, play(wanted, plain, n_samples), lengths, changed, asked, wanted, rhythm)


def split_batches(task, split, n, seed=1337, device='cpu', **override):
    """The first n examples of a fixed test set, the same on any machine, in batches of about 2**23 samples"""
    g, parts = torch.Generator().manual_seed(seed), []
    for i in range(0, n, 50):
        parts.append(make_batch(task, split, 50, g, **override))
        if i + 50 >= n or len(parts) * parts[0].question.numel() >= 2 ** 23:
            join = lambda *t: torch.cat(t)[:n - i - 50 + 50 * len(t)].to(device)
            yield Batch(*[Rhythm(*map(join, *x)) if isinstance(x[0], Rhythm) else join(*x) for x in zip(*parts)])
            parts = []


# --- WAV files ---

def fresh_folder(folder, pattern):
    """Make a folder, or remove the files whose whole name fits the pattern: those of an earlier, perhaps larger set"""
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if re.fullmatch(pattern, name):
            os.remove(os.path.join(folder, name))


def write_wav(path, wave):
    """(samples,) in -1..1 -> 16-bit PCM"""
    wave = np.asarray(wave, dtype=np.float64)
    wavfile.write(path, SAMPLE_RATE, (wave.clip(-1, 1) * 32767).round().astype(np.int16))


def read_wav(path, name=None):
    """A WAV file, by its path or open for reading (8, 16, 24, 32-bit PCM or float, any channels, any rate from 6.5 kHz) -> (samples,) float32 at 16 kHz, the mean of its
    channels. ValueError says what is wrong with the file."""
    name = name or path
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', category=wavfile.WavFileWarning)
            warnings.filterwarnings('error', message='.*EOF.*', category=wavfile.WavFileWarning)
            rate, x = wavfile.read(path)
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except OSError as e:
        raise ValueError(f"{name}: cannot be read: {e.strerror or e}") from None
    except Exception:  # scipy raises a dozen kinds on a broken header
        raise ValueError(f"{name}: not a whole WAV file of PCM or float samples") from None
    if x.size == 0:
        raise ValueError(f"{name}: the WAV file has no samples")
    if not 6500 <= rate <= 384000:
        raise ValueError(f"{name}: a sample rate of {rate} Hz cannot hold these tones; it must be 6,500 to 384,000 Hz")
    full_scale = {'u': 128, 'i': 2.0 ** (8 * x.dtype.itemsize - 1), 'f': 1}[x.dtype.kind]
    x = (x.astype(np.float64) - (128 if x.dtype.kind == 'u' else 0)) / full_scale
    if not (np.abs(x) < 1e9).all():
        raise ValueError(f"{name}: the WAV file has samples that are no sound: not numbers, or huge")
    x = x.reshape(len(x), -1).mean(1)
    x /= max(1.0, np.abs(x).max())  # floats that were never scaled to -1..1
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # half a second to import, and seldom needed
        ratio = Fraction(SAMPLE_RATE, rate).limit_denominator(1000)  # odd rates: a millionth off pitch, not a huge filter
        x = resample_poly(x, ratio.numerator, ratio.denominator)
    return torch.from_numpy(x.astype(np.float32))


def read_wav_until_silence(file, name='standard input', silence=0.4):
    """A WAV from a pipe -> (samples,) as soon as a sound has been followed by so many seconds of silence, or at its end. What its
    header says of its length, which a recorder cannot know, does not matter."""
    kind, chunk = b'', file.read(12)
    if chunk[:4] + chunk[8:] != b'RIFFWAVE':
        raise ValueError(f"{name}: not a WAV file")
    while (chunk := file.read(8))[:4] != b'data':
        size = int.from_bytes(chunk[4:], 'little')
        if len(chunk) < 8 or size > 2 ** 16:
            raise ValueError(f"{name}: not a whole WAV file of PCM or float samples")
        kind = file.read(size + size % 2) if chunk[:4] == b'fmt ' else file.read(size + size % 2) and kind
    rate, align = int.from_bytes(kind[4:8], 'little'), int.from_bytes(kind[12:14], 'little')
    if not 6500 <= rate <= 384000 or not align:
        raise ValueError(f"{name}: its header names no rate or size of samples that are audio")

    def wave(data):
        sizes = [n.to_bytes(4, 'little') for n in (20 + len(kind) + len(data), len(kind), len(data))]
        whole = b'RIFF' + sizes[0] + b'WAVEfmt ' + sizes[1] + kind + b'data' + sizes[2] + data
        return read_wav(io.BytesIO(whole), name)
    data, loudest, quiet = b'', 0.0, 0.0
    while quiet < silence and len(block := file.read(rate // 20 * align)) >= align:
        data += block[:len(block) // align * align]
        level = float(wave(block[:len(block) // align * align]).square().mean().sqrt())
        loudest = max(loudest, level)
        quiet = quiet + len(block) / align / rate if loudest > 0.003 and level < 0.1 * loudest else 0.0
    return wave(data)


def split_names(task, split):
    """'ood_length' stands for every split that begins so: ood_length_15, ood_length_20, ..."""
    names = [s for s in SPLITS[task] if s == split] or [s for s in SPLITS[task] if s.startswith(split + '_')]
    if not names:
        raise ValueError(f"{task} has no split {split!r}; it has {', '.join(SPLITS[task])}")
    return names


if __name__ == '__main__':
    from configurator import SEEDS, bounds, configure, fail
    task = 'mirror'       # mirror, bracket or mod
    split = 'iid'         # train, val, iid, ood_length, ... : see SPLITS
    num_samples = 16      # examples to write
    out_dir = 'data'      # files go to out_dir/task/split
    seed = 1337           # 1337 gives the examples that score.py asks
    configure(globals())
    if task not in TASKS:
        fail(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    bounds(globals(), num_samples=1, seed=SEEDS)
    try:
        names = split_names(task, split)
        folder = os.path.join(out_dir, task, split)
        fresh_folder(folder, r'\d{6}_(question|answer)\.wav')
        rows = []
        for i, name in enumerate(names):
            share = len(range(i, num_samples, len(names)))
            for b in split_batches(task, name, share, seed):
                for j in range(len(b.lengths)):
                    stem, n = f'{len(rows):06d}', int(b.lengths[j])
                    for kind, wave in (('question', b.question), ('answer', b.answer)):
                        write_wav(os.path.join(folder, f'{stem}_{kind}.wav'), wave[j, :n])
                    rows.append({'question_file_name': f'{stem}_question.wav', 'answer_file_name': f'{stem}_answer.wav',
                                 'task': task, 'split': name, 'question_symbols': decode(b.asked[j]),
                                 'answer_symbols': decode(b.wanted[j]), 'duration': n / SAMPLE_RATE, 'seed': seed})
        with open(os.path.join(folder, 'metadata.jsonl'), 'w') as f:
            f.writelines(json.dumps(r) + '\n' for r in rows)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {e.filename or out_dir}: {e.strerror}")
    print(f"wrote {len(rows)} questions and answers and metadata.jsonl to {folder}")
