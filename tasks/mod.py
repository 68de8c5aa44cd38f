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
import torch
import torch.nn.functional as F

from tasks.task import REST, Task, close_gaps, dice, encode, only_last, randint

ZERO, PERCENT, NONE = encode('0%X')
LABELS = 99   # remainders under it are labels for what a question comes to so far
BARE_DIGITS = 8  # digits of a number alone in training, at most
SHARES = {'zeros': 0.1, 'bare': 0.1, 'no_answer': 0.1}  # of the training questions
SILENT = 0.06    # share of the lines of working whose A has gone


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

def number(q, mask):
    """The number that the digits of rows (B, N) under a mask spell -> (B, 1), and the power of ten
    that each slot's digit counts (B, N), for up to 18 digits"""
    behind = mask.flip(1).cumsum(1).flip(1) - mask.long()
    power = 10 ** behind.clamp(max=18)
    worth = torch.where(mask, (q - ZERO) * power, 0)
    return worth.sum(1, keepdim=True), power


def digits_of(x, power):
    """Numbers (B, 1) -> their digits at these powers of ten as symbols (B, N), REST in front of the
    first, and everywhere for 0"""
    return torch.where(x >= power, x // power % 10 + ZERO, REST)


def parts(q):
    """Rows (B, N) -> which slots hold digits, and how many % there have been at each"""
    return (q >= ZERO) & (q < PERCENT), (q == PERCENT).cumsum(1)


def next_line(q):
    """Rows (B, N) -> the next line of working (B, N); what is finished stays as it is"""
    digit, n_percent = parts(q)
    in_a = digit & (n_percent == 0)
    in_b = digit & (n_percent == 1)
    a, a_power = number(q, in_a)
    b, b_power = number(q, in_b)

    # Take B away from the shortest leading part that is >= B.
    fits = in_a & (a // a_power >= b)
    power = torch.where(fits, a_power, 0).amax(1, keepdim=True)  # 0 if none is
    less = torch.where(in_a, digits_of(a - b * power, a_power), q)

    # Or write A, which is then no longer than B, in the place of B.
    last = n_percent[:, -1:]
    sounds = in_a.any(1, keepdim=True) | (last == 1)
    is_zero = (a == 0) & (b_power == 1) & sounds
    moved = torch.where(is_zero, ZERO, digits_of(a, b_power))
    dropped = torch.where(n_percent > 1, q, REST)
    dropped = torch.where(in_b, moved, dropped)

    line = torch.where(power > 0, less, dropped)
    line = torch.where(b == 0, only_last(q, NONE), line)
    return torch.where(last == 0, q, line)


def answer(q):
    """Rows (B, N) -> answers (B, N), at once; A may have any number of digits"""
    digit, n_percent = parts(q)
    in_a = digit & (n_percent == 0)
    b, power = number(q, digit & (n_percent == 1))
    left = torch.zeros_like(b)
    for i in range(q.shape[1]):
        now = slice(i, i + 1)
        longer = (10 * left + q[:, now] - ZERO) % b.clamp(min=1)
        left = torch.where(in_a[:, now], longer, left)
    none = b == 0
    end = power
    steps = n_percent[:, -1:]
    for k in range(2, q.shape[1] // 2 + 2):
        asked = steps >= k
        b, power = number(q, digit & (n_percent == k))
        left = torch.where(asked & (b > 0), left % b.clamp(min=1), left)
        none = none | asked & (b == 0)
        end = torch.where(asked, power, end)
    shown = digits_of(left, end)
    shown = torch.where((left == 0) & (end == 1), ZERO, shown)
    shown = torch.where(digit & (n_percent == steps), shown, REST)
    shown = torch.where(none, only_last(q, NONE), shown)
    return torch.where(steps == 0, q, shown)


def so_far(q):
    """The remainder if the question ended with this symbol; -1 before the first divisor, if there
    is none, and from LABELS on"""
    number = torch.zeros_like(q[:, 0])
    remainder = number
    left = number - 1
    none = number > 0
    found = []
    for c in q.unbind(1):
        is_percent = c == PERCENT
        none = none | is_percent & (left >= 0) & (number == 0)
        after = torch.where(left < 0, number, remainder)
        left = torch.where(is_percent, after, left)
        longer = torch.where(c < 0, number, 10 * number + c - ZERO)
        number = torch.where(is_percent, 0, longer)
        remainder = left % number.clamp(min=1)
        known = (left >= 0) & (number > 0) & ~none & (remainder < LABELS)
        found.append(torch.where(known, remainder, -1))
    return torch.stack(found, 1)


def few(q):
    """Questions of up to three symbols are too few to hold out: all are trained on."""
    return (q != REST).sum(1) <= 3


def n_digits(x, most):
    """Numbers (...) of at most so many digits -> how many each has"""
    return 1 + (x[..., None] >= 10 ** torch.arange(1, most, device=x.device)).sum(-1)


def chain(n, k, high, generator, device):
    """Numbers a (n,) up to `high` and k divisors of each (n, k), made from the end: no divisor is
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


def draw(n, generator, device, kind='plain', digits=(1, 6), divisors=(1, 3), steps=(1, 2),
         quotient=None, most=12, aloud=False, pairs=False, level=1.0):
    """A % B % C ...: how many digits A has, how many each divisor, and how many there are, (lowest,
    highest), in `most` symbols at most. quotient=(lowest, highest) is A // B of the first step.

    kind: plain; zeros (in front of numbers); bare (a number alone); no_answer; equal (A = B);
    divides (every step really does); mixed, as in training. aloud=True asks lines of working, too,
    in which A may have gone silent. pairs=True: two rows each go on with the same divisors."""
    def full(x, *shape):
        return torch.full((n, *shape), x, device=device)

    _, between = dice(n, generator, device, level)

    # What kind of question each is, the same for both rows of a pair
    k = steps[-1]
    longest = max(digits[-1], BARE_DIGITS) if kind == 'mixed' else digits[-1]
    first = torch.arange(n, device=device)
    if pairs:
        first = first - first % 2
    drawn = torch.rand(n, generator=generator, device=device)[first]
    is_kind, above = {}, 0.0
    for name, share in SHARES.items():
        is_kind[name] = full(kind == name)
        if kind == 'mixed':
            is_kind[name] = (drawn >= above) & (drawn < above + share)
        above += share

    # Numbers: a_length (n,) digits of a (n, W), and divisors b (n, k), of which n_ops are used
    n_ops = randint(full(steps[0]), full(k), generator)[first]
    n_ops = torch.where(is_kind['bare'], 0, n_ops)
    used = torch.arange(k, device=device) < n_ops[:, None]
    b_length = between(*divisors, k)
    b = randint(10 ** (b_length - 1), 10 ** b_length - 1, generator)[first]
    as_asked = full(True)
    a = None
    if kind == 'divides':
        a, b = chain(n, k, 10 ** longest - 1, generator, device)
    elif kind == 'equal':
        a = b[:, 0]
    elif quotient:
        low, high = quotient
        largest = (10 ** longest - 1) // b[:, 0]
        as_asked = largest >= low
        a = randint(full(low), largest.clamp(max=high), generator) * b[:, 0]
        a = a + randint(0 * a, b[:, 0] - 1, generator)
    place = torch.arange(longest - 1, -1, -1, device=device)  # of ten
    if a is None:
        a_length = between(*digits).maximum(between(*digits))  # as longer ones take more lines
        if kind == 'mixed':
            a_length = torch.where(is_kind['bare'], between(1, longest), a_length)
        a = torch.randint(10, (n, longest), generator=generator, device=device)
        first_digit = torch.randint(1, 10, (n, 1), generator=generator, device=device)
        leads = (place > 0) & (place == a_length[:, None] - 1)
        a = torch.where(leads, first_digit, a)
    else:
        a_length = n_digits(a, longest)
        a = a[:, None] // 10 ** place % 10
    b_length = n_digits(b, divisors[-1])

    # No answer: one of the divisors is 0, or is missing.
    which = randint(0 * n_ops, n_ops - 1, generator)[first]
    which = torch.where(is_kind['no_answer'], which, -1)
    spoilt = torch.arange(k, device=device) == which[:, None]
    b = torch.where(spoilt, 0, b)
    zero_or_none = between(0, 1)[first][:, None]
    b_length = torch.where(spoilt, zero_or_none, b_length)
    # Zeros in front, and an A that has gone silent
    has_zeros = is_kind['zeros'] | is_kind['no_answer']
    a_zeros = torch.where(is_kind['zeros'], between(0, 2), 0)
    b_zeros = torch.where(has_zeros[:, None], between(0, 1, k)[first], 0) * used
    if kind == 'zeros':
        as_asked = a_zeros + b_zeros.sum(1) > 0
    if aloud:
        gone = torch.rand(n, generator=generator, device=device) < SILENT
        a_length = torch.where(gone & ~is_kind['bare'], 0, a_length)

    # Lay the symbols out in slots: write all that there could be, then close the gaps.
    def spell(digits, length, zeros):
        """Digits (..., W), how many count and zeros in front of these -> symbols, REST before"""
        place = torch.arange(digits.shape[-1] - 1, -1, -1, device=device)
        length, zeros = length[..., None], zeros[..., None]
        symbols = torch.where(place < length, digits + ZERO, ZERO)
        return torch.where(place < length + zeros, symbols, REST)

    b_place = torch.arange(divisors[-1], -1, -1, device=device)
    b = spell(b[..., None] // 10 ** b_place % 10, b_length, b_zeros)
    b = torch.where(used[:, :, None], F.pad(b, (1, 0), value=PERCENT), REST)
    q = torch.cat([spell(F.pad(a, (2, 0)), a_length, a_zeros), b.flatten(1)], 1)
    slots = min(most, max(longest, digits[-1] + k * (1 + divisors[-1])))
    as_asked = as_asked & ((q != REST).sum(1) <= slots)
    return close_gaps(q, slots), as_asked


def of_length(n):
    return dict(digits=(n, n), most=n + 8)


task = Task(
    name='mod',
    symbols='0123456789%',
    example='987%65%7',
    draw=draw,
    solve=solve,
    answer=answer,
    working=working,
    next_line=next_line,
    few=few,
    hides=True,
    so_far=so_far,
    n_so_far=LABELS,
    hard=hard,
    shortcuts={'A % B, ignore the rest': ignore_the_rest, 'A % the last': only_the_last},
    splits={
        'train': dict(kind='mixed', steps=(1, 3)),
        'val': {},
        'val_ood': dict(digits=(10, 10), steps=(1, 4), most=26),
        'iid': {},
        'small': dict(digits=(1, 3), divisors=(1, 1)),
        'bare': dict(kind='bare', digits=(4, 12)),
        'leading_zeros': dict(kind='zeros'),
        'no_answer': dict(kind='no_answer'),
        'ood_digits_8': dict(digits=(8, 8), most=16),
        'ood_digits_12': dict(digits=(12, 12), most=20),
        'ood_digits_20': dict(digits=(20, 20), most=28),
        'ood_divisor': dict(digits=(5, 7), divisors=(4, 4), steps=(1, 1)),
        'compose_2': dict(kind='divides', steps=(2, 2)),
        'compose_3': dict(kind='divides', steps=(3, 3), most=18),
        'compose_5': dict(kind='divides', steps=(5, 5), most=26),
        'compose_8': dict(kind='divides', steps=(8, 8), most=38),
        'quotient_0': dict(steps=(1, 1), quotient=(0, 0)),
        'quotient_1_3': dict(steps=(1, 1), quotient=(1, 3)),
        'quotient_4_9': dict(steps=(1, 1), quotient=(4, 9)),
        'quotient_10': dict(steps=(1, 1), quotient=(10, 999999)),
        'equal': dict(steps=(1, 1), kind='equal'),
    },
    said={
        'iid': 'one or two %',
        'small': 'A of 1 to 3 digits, B of 1',
        'bare': 'a number alone',
        'leading_zeros': 'leading zeros',
        'no_answer': 'no answer',
        'ood_digits_8': 'A of 8 digits',
        'ood_digits_12': 'A of 12 digits',
        'ood_digits_20': 'A of 20 digits',
        'ood_divisor': 'B of 4 digits',
        'compose_2': 'two steps, both divide',
        'compose_3': 'three that divide',
        'compose_5': 'five that divide',
        'compose_8': 'eight that divide',
        'quotient_0': 'A < B',
        'quotient_1_3': 'quotient 1 to 3',
        'quotient_4_9': 'quotient 4 to 9',
        'quotient_10': 'quotient from 10',
        'equal': 'A = B',
    },
    of_length=of_length,
)
