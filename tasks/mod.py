"""
Remainders, from the left: A % B % C ... The answer ends where the question ends.

    1 7 % 5  ->  . . . 2

Aloud, a line of working replaces the shortest leading part of A that is >= B by its remainder, or
drops % B if there is none. What is used up falls silent, the rest stays where it was:

    9 8 7 % 6 5 % 7
    3 3 7 % 6 5 % 7
    . 1 2 % 6 5 % 7
    . . . . 1 2 % 7
    . . . . . 5 % 7
    . . . . . . . 5

A remainder 0 is silent, unless it is the answer:  1 4 % 7  ->  . . % 7  ->  . . . 0
"""
import torch
import torch.nn.functional as F

from tasks.task import REST, Task, encode, randint

ZERO, PERCENT = encode('0%')
LARGEST_B = 99


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
        k = leading(a, b)
        if k:  # leading zeros fall silent, all of A if there is nothing else
            a = (str(int(a[:k]) % int(b)) + a[k:]).lstrip('0')
            rest = [b, *rest]
        elif a:
            a = str(int(a))
        elif not rest:
            a = '0'
        lines.append('%'.join([a, *rest]))
    return lines


def solve(text):
    numbers = text.split('%')
    if not all(number and set(number) <= set('0123456789') for number in numbers):
        raise ValueError
    if 0 in map(int, numbers[1:]):
        raise ValueError
    return working(text)[-1]


def hard(line):
    if '%' not in line:
        return {}
    a, b = line.split('%')[:2]
    lead, divisor = int(a[:leading(a, b)] or 0), int(b)
    quotient = lead // divisor
    return {
        'digits': len(a),
        'quotient': quotient,
        'A < B': int(a or 0) < divisor,
        'borrow': lead % 10 < quotient * divisor % 10,
    }


# --- in rows of slots ---

def so_far(q):
    """The remainder if the question ended with this symbol, -1 before the first divisor"""
    number = torch.zeros_like(q[:, 0])
    remainder = number
    left = number - 1
    found = []
    for c in q.unbind(1):
        is_percent = c == PERCENT
        left = torch.where(is_percent, torch.where(left < 0, number, remainder), left)
        longer = torch.where(c < 0, number, 10 * number + c - ZERO)
        number = torch.where(is_percent, 0, longer)
        remainder = left % number.clamp(min=1)
        found.append(torch.where((left < 0) | (number == 0), -1, remainder))
    return torch.stack(found, 1)


def few(q):
    """Numbers without a %, the last lines of working, are all trained on."""
    digits = (q >= ZERO) & (q < PERCENT)
    return digits.any(1) & ~(q == PERCENT).any(1)


def leads(x, width):
    """Numbers (...) of at most `width` digits -> the leading parts of each, (..., width): all but
    the last width - 1 digits, ..., all but the last, all; and the powers of ten that divide them
    off, (width,)"""
    powers = 10 ** torch.arange(width - 1, -1, -1, device=x.device)
    return x[..., None] // powers, powers


def n_digits(x, width):
    return (leads(x, width)[0] > 0).sum(-1).clamp(min=1)


def write(x, width):
    """Numbers (...) -> their digits as symbols (..., width), REST in front of the first"""
    lead, powers = leads(x, width)
    return torch.where((lead > 0) | (powers == 1), lead % 10 + ZERO, REST)


def draw(n, generator, device, digits=None, high=999, steps=(1, 2), quotient=None, equal=False,
         aloud=False, pairs=False, level=1.0):
    """A % B % C ... with A of so many digits, or up to `high`. quotient=(lowest, highest) is A // B
    of the first step. equal=True: A = B.

    aloud=True asks a random line of the working, and the answer is the next line. pairs=True: two
    rows each go on with the same divisors, and lines that only drop a divisor are drawn half as
    often."""
    def full(x):
        return torch.full((n,), x, device=device)

    # The numbers: a (n,), its divisors b (n, k), of which n_ops (n,) are used.
    k = steps[-1]
    first = torch.arange(n, device=device)  # of a pair
    if pairs:
        first = first - first % 2
    ones = torch.ones(n, k, device=device, dtype=torch.long)
    largest = LARGEST_B * 10.0 ** (level - ones.float())
    b = randint(ones, largest, generator)[first]
    as_asked = torch.ones(n, dtype=torch.bool, device=device)
    if equal:
        a = b[:, 0].clone()
    elif quotient:
        low, most = quotient
        divisor = b[:, 0]
        largest = high // divisor
        a = randint(full(low), full(most).minimum(largest), generator) * divisor
        a = a + randint(full(0), divisor - 1, generator)
        as_asked = (low <= largest) & (a <= high)
    elif digits:
        a = randint(full(10 ** (digits - 1)), full(10 ** digits - 1), generator)
    else:
        largest = high * 100.0 ** (level - full(1.0))
        a = randint(full(0), largest, generator)
    fewest = full(steps[0])
    n_ops = randint(fewest, fewest + level * (k - steps[0]), generator)[first]
    used = torch.arange(k, device=device) < n_ops[:, None]  # (n, k)

    # Lay the symbols out in slots: write all that there could be, then close the gaps.
    width = digits or len(str(high))
    divisors = F.pad(write(b, 2), (1, 0), value=PERCENT)
    divisors = torch.where(used[:, :, None], divisors, REST)
    q = torch.cat([write(a, width), divisors.flatten(1)], 1)
    q = q.gather(1, (q == REST).long().argsort(stable=True, dim=1))
    lengths = torch.cat([n_digits(a, width)[:, None], (1 + n_digits(b, 2)) * used], 1)
    ends = lengths.cumsum(1) - 1  # the last slot of each number, (n, k + 1)
    slots = torch.arange(q.shape[1], device=device)
    asked_zero = a == 0

    def line(a, done):
        """What is written when `done` of the divisors are used up and `a` is left, its last digit
        where theirs was. An `a` that has become 0 is silent until it is the answer: what a leading
        part becomes must not depend on what comes behind it."""
        place = ends.gather(1, done[:, None]) - slots  # of ten, counted from the last digit
        digit = a[:, None] // 10 ** place.clamp(0, 12) % 10 + ZERO
        sounds = (a > 0) | asked_zero | (done == n_ops)
        length = torch.where(sounds, n_digits(a, width), 0)[:, None]
        number = torch.where(place < length, digit, REST)
        return torch.where(place < 0, q, number)

    def step(a, done):
        """The shortest leading part of `a` that is >= B becomes its remainder; if there is none,
        B is used up."""
        unfinished = done < n_ops
        divisor = b.gather(1, done.clamp(max=k - 1)[:, None])
        lead, powers = leads(a, width)
        fits = (lead >= divisor) & unfinished[:, None]
        power = torch.where(fits, powers, 0).amax(1)  # of the shortest one; 0 if there is none
        divisor = divisor[:, 0]
        lead = a // power.clamp(min=1)
        drops = unfinished & (a < divisor)
        return a - (lead - lead % divisor) * power, done + drops.long()

    if not aloud:
        for i in range(k):
            a = torch.where(used[:, i], a % b[:, i], a)
        return q, line(a, n_ops), as_asked

    done = torch.zeros_like(n_ops)
    start = randint(full(0), 2 * n_ops - 1, generator)  # lines to skip
    for i in range(2 * k - 1):
        next_a, next_done = step(a, done)
        a = torch.where(i < start, next_a, a)
        done = torch.where(i < start, next_done, done)
    next_a, next_done = step(a, done)
    if pairs:
        drops = (next_a == a) & (a > 0) & (done < n_ops)
        half = torch.rand(n, generator=generator, device=device)[first] < 1 / 2
        as_asked = as_asked & (done == done[first]) & (~drops | half)
    return line(a, done), line(next_a, next_done), as_asked


task = Task(
    name='mod',
    symbols='0123456789%',
    example='987%65%7',
    draw=draw,
    solve=solve,
    working=working,
    few=few,
    hides=True,
    so_far=so_far,
    n_so_far=LARGEST_B,
    hard=hard,
    splits={
        'train': {},
        'val': {},
        'val_ood': dict(digits=6, steps=(1, 4)),
        'iid': {},
        'ood_digits_4': dict(digits=4),
        'ood_digits_5': dict(digits=5),
        'ood_compose_3': dict(steps=(3, 3)),
        'ood_compose_5': dict(steps=(5, 5)),
        'quotient_0': dict(steps=(1, 1), quotient=(0, 0)),
        'quotient_1_3': dict(steps=(1, 1), quotient=(1, 3)),
        'quotient_4_9': dict(steps=(1, 1), quotient=(4, 9)),
        'quotient_10': dict(steps=(1, 1), quotient=(10, 999)),
        'equal': dict(steps=(1, 1), equal=True),
    },
    said={
        'iid': 'one or two %',
        'ood_digits_4': 'A of 4 digits',
        'ood_digits_5': 'A of 5 digits',
        'ood_compose_3': 'three %',
        'ood_compose_5': 'five %',
        'quotient_0': 'A < B',
        'quotient_1_3': 'quotient 1 to 3',
        'quotient_4_9': 'quotient 4 to 9',
        'quotient_10': 'quotient from 10',
        'equal': 'A = B',
    },
)
