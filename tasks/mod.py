"""
Remainders, from the left: A % B % C ... The answer ends where the question ends.

    1 7 % 5  ->  . . . 2

Aloud, a line of working takes B away from the shortest leading part of A that is >= B, or drops % B
if there is none. What is used up falls silent, the rest stays where it was:

    9 8 7 % 3 2 5 % 7
    6 6 2 % 3 2 5 % 7
    3 3 7 % 3 2 5 % 7
    . 1 2 % 3 2 5 % 7
    . . . . . 1 2 % 7
    . . . . . . 5 % 7
    . . . . . . . . 5

A remainder 0 is silent, unless it is the answer:  7 % 7  ->  . % 7  ->  . . 0
Without a divisor, or with 0 for one, there is no answer, and X says so:  7 % 0  ->  . . X
A number alone is its own answer.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tasks.task import (
    REST,
    Split,
    Task,
    close_gaps,
    dice,
    drawn_kinds,
    encode,
    exactly,
    only_last,
    randint,
)

ZERO, PERCENT, NONE = encode('0%X')
LABELS = 99      # remainders under it are labels for what a question comes to so far
BARE_DIGITS = 8  # digits of a number alone in training, at most
SHARES = {'zeros': 0.1, 'bare': 0.1, 'no_answer': 0.1}  # of the training questions
SILENT = 0.06  # share of the lines of working whose A has gone


# --- in text ---

def leading(a, b):
    """How many digits has the shortest leading part of A that is >= B, both in text? 0 if A < B"""
    for k in range(1, len(a) + 1):
        if int(a[:k]) >= int(b):
            return k
    return 0


def working(text):
    lines = [text]
    while '%' in lines[-1]:
        a, b, *rest = lines[-1].split('%')
        if not int(b or 0):
            return [*lines, 'X']
        k = leading(a, b)
        if k:  # leading zeros fall silent, all of A if there is nothing else
            a = (str(int(a[:k]) - int(b)) + a[k:]).lstrip('0')
            rest = [b, *rest]
        elif a:
            a = str(int(a))
        elif not rest:
            a = '0'
        lines.append('%'.join([a, *rest]))
    return lines


def solve(text):
    if set(text) - set('0123456789%'):
        raise ValueError
    return working(text)[-1]


def hard(line):
    if '%' not in line:
        return {}
    a, b = line.split('%')[:2]
    divisor = int(b or 0)
    if not divisor:
        return {}
    lead = int(a[:leading(a, b)] or 0)
    borrows, carry = 0, 0
    for place in range(len(b)):
        power = 10 ** place
        carry = lead // power % 10 < divisor // power % 10 + carry
        borrows += carry
    return {
        'digits': len(a),
        'divisor digits': len(b),
        'quotient': lead // divisor,
        'A < B': int(a or 0) < divisor,
        'borrows': borrows,
    }


def ignore_the_rest(text):
    return working('%'.join(text.split('%')[:2]))[-1]


def only_the_last(text):
    numbers = text.split('%')
    return working('%'.join([numbers[0], *numbers[1:][-1:]]))[-1]


# --- in rows of slots ---

def read_number(q, mask):
    """The number that the digits of rows (B, N) under a mask spell -> (B, 1), and the power of ten
    that each slot's digit counts (B, N), for up to 18 digits"""
    behind = mask.flip(1).cumsum(1).flip(1) - mask.long()
    power = 10 ** behind.clamp(max=18)
    worth = torch.where(mask, (q - ZERO) * power, 0)
    return worth.sum(1, keepdim=True), power


def write_number(x, power):
    """Numbers (B, 1) -> their digits at these powers of ten as symbols (B, N), REST in front of the
    first, and everywhere for 0"""
    return torch.where(x >= power, x // power % 10 + ZERO, REST)


def parts(q):
    """Rows (B, N) -> which slots hold digits, and how many % there have been at each"""
    return (q >= ZERO) & (q < PERCENT), (q == PERCENT).cumsum(1)


def next_line(q):
    """Rows (B, N) -> the next line of working (B, N); what is finished stays as it is"""
    is_digit, n_percent = parts(q)
    in_a = is_digit & (n_percent == 0)
    in_b = is_digit & (n_percent == 1)
    a, a_power = read_number(q, in_a)
    b, b_power = read_number(q, in_b)
    n_steps = n_percent[:, -1:]

    # Take B away from the shortest leading part that is >= B. That part ends in the slot with the
    # highest power of ten that leaves A // power >= B.
    fits = in_a & (a // a_power >= b)
    power = torch.where(fits, a_power, 0).amax(1, keepdim=True)  # 0 if none is
    less = torch.where(in_a, write_number(a - b * power, a_power), q)

    # Or write A, which is then no longer than B, in the place of B. A zero is written if A had
    # one, or if it is the answer.
    sounds = in_a.any(1, keepdim=True) | (n_steps == 1)
    is_zero = (a == 0) & (b_power == 1) & sounds
    moved = torch.where(is_zero, ZERO, write_number(a, b_power))
    dropped = torch.where(n_percent > 1, q, REST)
    dropped = torch.where(in_b, moved, dropped)

    line = torch.where(power > 0, less, dropped)
    line = torch.where(b == 0, only_last(q, NONE), line)
    return torch.where(n_steps == 0, q, line)


def answer(q):
    """Rows (B, N) -> answers (B, N), at once; A may have any number of digits"""
    is_digit, n_percent = parts(q)
    in_a = is_digit & (n_percent == 0)
    n_steps = n_percent[:, -1:]

    # A % B, digit by digit, as A may be too long for a number
    b, power = read_number(q, is_digit & (n_percent == 1))
    left = torch.zeros_like(b)
    for digit, counts in zip(q.split(1, 1), in_a.split(1, 1), strict=True):
        longer = (10 * left + digit - ZERO) % b.clamp(min=1)
        left = torch.where(counts, longer, left)

    # What is left of it, by one divisor after another
    none = b == 0
    for k in range(2, q.shape[1] // 2 + 2):
        is_there = n_steps >= k
        b, b_power = read_number(q, is_digit & (n_percent == k))
        none = none | is_there & (b == 0)
        left = torch.where(is_there & (b > 0), left % b.clamp(min=1), left)
        power = torch.where(is_there, b_power, power)

    # It is written in the place of the last divisor.
    written = write_number(left, power)
    written = torch.where((left == 0) & (power == 1), ZERO, written)
    written = torch.where(is_digit & (n_percent == n_steps), written, REST)
    written = torch.where(none, only_last(q, NONE), written)
    return torch.where(n_steps == 0, q, written)


def so_far(q):
    """The remainder if the question ended with this symbol; -1 before the first divisor, if there
    is none, and from LABELS on"""
    last = torch.zeros_like(q[:, 0])  # the number that is being read
    left = last - 1                   # what the steps before it have left; -1 before the first %
    remainder = last
    none = last > 0                   # has there been a divisor 0?
    found = []
    for c in q.unbind(1):
        is_percent = c == PERCENT
        none = none | is_percent & (left >= 0) & (last == 0)
        after = torch.where(left < 0, last, remainder)
        left = torch.where(is_percent, after, left)
        longer = torch.where(c == REST, last, 10 * last + c - ZERO)
        last = torch.where(is_percent, 0, longer)
        remainder = left % last.clamp(min=1)
        known = (left >= 0) & (last > 0) & ~none & (remainder < LABELS)
        found.append(torch.where(known, remainder, -1))
    return torch.stack(found, 1)


def few(q):
    """Questions of up to three symbols are too few to hold out: all are trained on."""
    return (q != REST).sum(1) <= 3


# --- drawing ---

class Number(NamedTuple):
    """How numbers are to be spelt"""
    digits: torch.Tensor  # (..., W)
    length: torch.Tensor  # (...) how many of the digits count, from the right
    zeros: torch.Tensor   # (...) how many zeros stand in front of them


def spell(number):
    """A Number -> symbols (..., W + 2), REST in front"""
    digits = F.pad(number.digits, (2, 0))
    power = torch.arange(digits.shape[-1] - 1, -1, -1, device=digits.device)
    length = number.length[..., None]
    symbols = torch.where(power < length, digits + ZERO, ZERO)
    return torch.where(power < length + number.zeros[..., None], symbols, REST)


def lay_out(a, divisors, used):
    """The Numbers A (n,) and its divisors (n, k), and which of these are used (n, k) -> rows with
    gaps"""
    each = F.pad(spell(divisors), (1, 0), value=PERCENT)
    each = torch.where(used[:, :, None], each, REST)
    return torch.cat([spell(a), each.flatten(1)], 1)


def split_digits(x, width):
    """Numbers (...) -> the Number of their last digits (..., width)"""
    power = 10 ** torch.arange(width - 1, -1, -1, device=x.device)
    length = (x[..., None] >= power).sum(-1).clamp(min=1)
    return Number(x[..., None] // power % 10, length, torch.zeros_like(x))


def random_number(length, width, generator):
    """Lengths (n,) -> a Number of random digits (n, width), which does not begin with 0"""
    n, device = len(length), length.device
    digits = torch.randint(10, (n, width), generator=generator, device=device)
    first = torch.randint(1, 10, (n, 1), generator=generator, device=device)
    power = torch.arange(width - 1, -1, -1, device=device)
    leads = (power > 0) & (power == length[:, None] - 1)
    return Number(torch.where(leads, first, digits), length, torch.zeros_like(length))


def chain(n, k, high, generator, device):
    """Numbers (n,) up to `high` and k divisors of each (n, k), made from the end: no divisor is
    larger than what is left for it, so that every step really divides."""
    def largest(i):
        return 999 // 2 ** i  # those in front of it must be larger

    one = torch.ones(n, device=device, dtype=torch.long)
    left = randint(0 * one, (largest(k - 1) - 1) * one, generator)
    divisors = []
    for i in reversed(range(k)):
        ends = left + 1, largest(i) * one
        divisor = randint(*ends, generator).minimum(randint(*ends, generator))
        most = largest(i - 1) - 1 if i else high
        times = randint(one, ((most - left) // divisor).clamp(min=1), generator)
        left = left + times * divisor
        divisors.insert(0, divisor)
    return left, torch.stack(divisors, 1)


def with_quotient(divisor, quotient, high, generator):
    """Divisors (n,) -> numbers (n,) up to about `high` which they divide so many times, (lowest,
    highest), and for which divisors there are such numbers (n,)"""
    low, most = quotient
    largest = high // divisor
    times = randint(torch.full_like(divisor, low), largest.clamp(max=most), generator)
    rest = randint(0 * divisor, divisor - 1, generator)
    return times * divisor + rest, largest >= low


def draw(n, generator, device, kind='plain', digits=(1, 6), divisors=(1, 3),
         steps=(1, 2), quotient=None, most=12,
         aloud=False, pairs=False, level=1.0):
    """A % B % C ...: how many digits A has, how many each divisor, and how many there are, (lowest,
    highest), in `most` symbols at most. quotient=(lowest, highest) is A // B of the first step.

    kind: plain; zeros (in front of numbers); bare (a number alone); no_answer; equal (A = B);
    divides (every step really does); mixed, as in training. aloud=True asks lines of working, too,
    in which A may have gone silent. pairs=True: two rows each go on with the same divisors."""
    rand, _, integers = dice(n, generator, device, level)
    row = torch.arange(n, device=device)
    same = row - row % 2 if pairs else row  # whose kind and divisors each row has
    k = steps[1]
    longest = max(digits[1], BARE_DIGITS) if kind == 'mixed' else digits[1]
    is_kind = drawn_kinds(SHARES, rand(n)[same], kind)
    fewest = torch.full_like(row, steps[0])
    n_steps = randint(fewest, torch.full_like(row, k), generator)[same]
    n_steps = torch.where(is_kind['bare'], 0, n_steps)
    used = torch.arange(k, device=device) < n_steps[:, None]  # (n, k)
    length = integers(*divisors, k)
    b = randint(10 ** (length - 1), 10 ** length - 1, generator)[same]  # (n, k)

    as_asked = torch.ones_like(row, dtype=torch.bool)
    if kind == 'divides':
        a, b = chain(n, k, 10 ** longest - 1, generator, device)
        a = split_digits(a, longest)
    elif kind == 'equal':
        a = split_digits(b[:, 0], longest)
    elif quotient:
        a, as_asked = with_quotient(b[:, 0], quotient, 10 ** longest - 1, generator)
        a = split_digits(a, longest)
    else:
        # The longer of two lengths, as longer numbers take more lines
        length = integers(*digits).maximum(integers(*digits))
        if kind == 'mixed':
            length = torch.where(is_kind['bare'], integers(1, longest), length)
        a = random_number(length, longest, generator)

    # Where there is no answer, one of the divisors is 0 or missing.
    which = randint(0 * n_steps, n_steps - 1, generator)[same][:, None]
    spoilt = is_kind['no_answer'][:, None] & (torch.arange(k, device=device) == which)
    b = split_digits(torch.where(spoilt, 0, b), divisors[1])
    zero_or_none = integers(0, 1)[same][:, None]
    b = b._replace(length=torch.where(spoilt, zero_or_none, b.length))

    # Zeros in front, and an A that has gone silent
    a = a._replace(zeros=torch.where(is_kind['zeros'], integers(0, 2), 0))
    has_zeros = is_kind['zeros'] | is_kind['no_answer']
    has_zeros = used & has_zeros[:, None]
    b = b._replace(zeros=torch.where(has_zeros, integers(0, 1, k)[same], 0))
    if kind == 'zeros':
        as_asked = a.zeros + b.zeros.sum(1) > 0
    if aloud:
        gone = (rand(n) < SILENT) & ~is_kind['bare']
        a = a._replace(length=torch.where(gone, 0, a.length))

    q = lay_out(a, b, used)
    slots = min(most, max(longest, digits[1] + k * (1 + divisors[1])))
    as_asked = as_asked & ((q != REST).sum(1) <= slots)
    return close_gaps(q, slots), as_asked


def of_length(n):
    return exactly(digits=n) | dict(most=n + 8)


def first_quotient(low, high):
    return exactly(steps=1) | dict(quotient=(low, high))


def all_divide(n_steps, most):
    return exactly(steps=n_steps) | dict(kind='divides', most=most)


SPLITS = {
    'train': Split('training', 'train', dict(kind='mixed', steps=(1, 3))),
    'val': Split('validation', 'val'),
    'val_ood': Split('validation, A of 10 digits', 'far',
                     exactly(digits=10) | dict(steps=(1, 4), most=26)),
    'iid': Split('one or two %', 'test'),
    'small': Split('A of 1 to 3 digits, B of 1', 'test', dict(digits=(1, 3), divisors=(1, 1))),
    'bare': Split('a number alone', 'test', dict(kind='bare', digits=(4, 12))),
    'leading_zeros': Split('leading zeros', 'test', dict(kind='zeros')),
    'no_answer': Split('no answer', 'test', dict(kind='no_answer')),
    'ood_digits_8': Split('A of 8 digits', 'far', of_length(8)),
    'ood_digits_12': Split('A of 12 digits', 'far', of_length(12)),
    'ood_digits_20': Split('A of 20 digits', 'far', of_length(20)),
    'ood_divisor': Split('B of 4 digits', 'far',
                         exactly(divisors=4, steps=1) | dict(digits=(5, 7))),
    'compose_2': Split('two steps, both divide', 'test', all_divide(2, 12)),
    'compose_3': Split('three that divide', 'test', all_divide(3, 18)),
    'compose_5': Split('five that divide', 'test', all_divide(5, 26)),
    'compose_8': Split('eight that divide', 'test', all_divide(8, 38)),
    'quotient_0': Split('A < B', 'test', first_quotient(0, 0)),
    'quotient_1_3': Split('quotient 1 to 3', 'test', first_quotient(1, 3)),
    'quotient_4_9': Split('quotient 4 to 9', 'test', first_quotient(4, 9)),
    'quotient_10': Split('quotient from 10', 'test', first_quotient(10, 999999)),
    'equal': Split('A = B', 'test', exactly(steps=1) | dict(kind='equal')),
}

task = Task(
    name='mod',
    symbols='0123456789%',
    example='987%65%7',
    draw=draw,
    splits=SPLITS,
    wishes=('level', 'aloud', 'pairs'),
    few=few,
    of_length=of_length,
    answer=answer,
    solve=solve,
    next_line=next_line,
    working=working,
    hides=True,
    so_far=so_far,
    n_labels=LABELS,
    first_label=0,
    hard=hard,
    shortcuts={'A % B, ignore the rest': ignore_the_rest, 'A % the last': only_the_last},
)
