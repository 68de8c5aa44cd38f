"""
Is it balanced? V says yes, X no.

    ( ( ) )  ->  V . . .

Aloud, a line of working deletes the pairs that meet; V when all are gone, X when none meet:

    ( ( ) ( ) )  ->  ( . . . . )  ->  V . . . . .
"""
from itertools import accumulate

import torch
import torch.nn.functional as F

from tasks.task import REST, Task, encode

OPEN, CLOSE, VALID, INVALID = encode('()VX')
SHUFFLED, SWAPPED = 0.25, 0.67  # shares of the unbalanced strings; the others are one flip away
KEEP_ENDS = 0.9                 # share of them with ( in front and ) at the end


# --- in text ---

def depth_of(text):
    """Brackets in text -> the depth after each"""
    return list(accumulate(1 if c == '(' else -1 for c in text))


def solve(text):
    if set(text) - set('()'):
        raise ValueError
    depth = depth_of(text)
    return 'V' if depth[-1] == 0 and min(depth) >= 0 else 'X'


def working(text):
    lines = [text]
    while set(lines[-1]) & set('()'):
        left = lines[-1].replace('()', '')
        if not left:
            left = 'V'
        elif left == lines[-1]:
            left = 'X'
        lines.append(left)
    return lines


def hard(line):
    if set(line) - set('()'):
        return {}
    depth = depth_of(line)
    below = [i for i, d in enumerate(depth) if d < 0]
    return {
        'length': len(line),
        'deepest': max(depth),
        'first violation': below[0] if below else 'none',
    }


# --- in rows of slots ---

def depths(q):
    """Bracket symbols (B, N) -> depth after each symbol, and whether it has been below 0 by then"""
    depth = ((q == OPEN).long() - (q == CLOSE).long()).cumsum(1)
    return depth, depth.cummin(1).values < 0


def so_far(q):
    """0 if a bracket has closed that was not open, 1 if all are closed, 2 if some are open"""
    depth, below = depths(q)
    return torch.where(below, 0, torch.where(depth == 0, 1, 2))


def few(q):
    """Brackets up to length 6 are too few to hold out: all are trained on."""
    brackets = (q == OPEN) | (q == CLOSE)
    return brackets.any(1) & (brackets.sum(1) <= 6)


def next_line(q):
    """Rows (B, N) -> the next line of working (B, N). Pairs that meet, with pauses between at
    most, fall silent. The verdict sounds in the slot of the first bracket and stays as it is."""
    N = q.shape[1]
    at = torch.arange(N, device=q.device)
    silent = q == REST
    # The next and the last slot that sound, N and -1 if there is none.
    from_the_end = torch.where(silent, N, at).flip(1).cummin(1).values
    following = F.pad(from_the_end.flip(1)[:, 1:], (0, 1), value=N)
    from_the_start = torch.where(silent, -1, at).cummax(1).values
    previous = F.pad(from_the_start[:, :-1], (1, 0), value=-1)
    padded = F.pad(q, (1, 1), value=REST)
    behind = padded.gather(1, following + 1)
    before = padded.gather(1, previous + 1)
    opens = (q == OPEN) & (behind == CLOSE)
    closes = (q == CLOSE) & (before == OPEN)
    gone = opens | closes
    left = torch.where(gone, REST, q)

    all_gone = (left == REST).all(1, keepdim=True)
    unfinished = (gone | (q >= VALID)).any(1, keepdim=True)  # or the verdict has been given
    first = (q != REST).long().argmax(1, keepdim=True)
    verdict = torch.where(all_gone, VALID, INVALID)
    answer = torch.where(at == first, verdict, REST)
    return torch.where(all_gone | ~unfinished, answer, left)


def draw(n, generator, device, low=2, high=12, kind='mixed', uniform=False, aloud=False, level=1.0):
    """Even rows are balanced; the odd row after each is not, and has the same length.

    kind: mixed, or 'shuffled' (equal counts, wrong order) or 'swapped' (one swap from balanced).
    uniform=True weights lengths by how many balanced strings they have, so that each of those
    counts alike; otherwise longer ones are drawn more often, as many of them are held out.
    aloud=True asks a random line of the working, and the answer is the next line."""
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    def pick(mask):
        """One place of each row where mask (n, high) is true -> (n, 1)"""
        return torch.where(mask, rand(n, high), -1.0).argmax(1, keepdim=True)

    # Lengths. A curriculum starts at length 10, as only brackets over length 6 are held out.
    pairs = torch.arange(low // 2, high // 2 + 1, device=device)
    log_catalan = torch.lgamma(2.0 * pairs + 1) - 2 * torch.lgamma(pairs + 1.0)
    catalan = torch.exp(log_catalan) / (pairs + 1)
    known = pairs <= 5 + level * (high // 2 - 5)
    weight = catalan if uniform else pairs.float().square()
    share = (weight * known).cumsum(0)
    drawn = torch.searchsorted(share / share[-1], rand(n // 2)).clamp(max=len(pairs) - 1)
    half = pairs[drawn].repeat_interleave(2)[:, None]  # (n, 1)

    # Balanced strings, uniform by the cycle lemma (Dvoretzky and Motzkin, 1947): of the rotations
    # of k + 1 opening and k closing brackets, just one stays above 0.
    at = torch.arange(high + 1, device=device)
    within = at <= 2 * half
    key = torch.where(within, rand(n, high + 1), 2.0)
    up = key.argsort(1).argsort(1) <= half  # k + 1 of the first 2k + 1 are opening brackets
    step = 2 * up - 1
    height = torch.where(within, step.cumsum(1), high + 2)
    lowest = high - height.flip(1).argmin(1, keepdim=True)  # the last minimum
    at = at[:high]
    # Rotate, and drop the opening bracket in front.
    up = up.gather(1, (lowest + 2 + at) % (2 * half + 1))

    # Unbalanced strings. Most keep their ends, as either would give them away.
    inside = at < 2 * half
    keeps_ends = (rand(n, 1) < KEEP_ENDS) & (half > 2)
    ends = (at == 0) | (at == 2 * half - 1)
    free = inside & ~(keeps_ends & ends)
    key = torch.where(free, rand(n, high), at - 0.5)  # the first is below 0, the last above 1
    key = torch.where(inside, key, 2.0 * high)
    shuffled = key.argsort(1).argsort(1) < half
    swapped = up.scatter(1, pick(up & free), False)
    swapped = swapped.scatter(1, pick(~up & free), True)
    flip = pick(free)
    flipped = up.scatter(1, flip, ~up.gather(1, flip))
    if kind == 'mixed':
        r = rand(n, 1)
        wrong = torch.where(r < SHUFFLED + SWAPPED, swapped, flipped)
        wrong = torch.where(r < SHUFFLED, shuffled, wrong)
    else:
        wrong = {'shuffled': shuffled, 'swapped': swapped}[kind]

    odd = torch.arange(n, device=device)[:, None] % 2 == 1
    up = torch.where(odd, wrong, up)
    q = torch.where(inside, torch.where(up, OPEN, CLOSE), REST)
    depth, below = depths(q)
    balanced = (depth[:, -1] == 0) & ~below[:, -1]
    as_asked = balanced == ~odd[:, 0]
    if aloud:
        skip = 4 * rand(n, 1).square()  # 0 is likely, or most of the lines would be verdicts
        for i in range(1, 4):
            q = torch.where(i <= skip, next_line(q), q)
        return q, next_line(q), as_asked
    a = torch.full_like(q, REST)
    a[:, 0] = torch.where(balanced, VALID, INVALID)
    return q, a, as_asked


task = Task(
    name='bracket',
    symbols='()',
    example='(()())',
    draw=draw,
    solve=solve,
    working=working,
    paired=True,
    few=few,
    so_far=so_far,
    n_so_far=3,
    so_far_aloud=True,
    hard=hard,
    # Up to length 6 all are trained on (seen_short), and the other splits start at 8.
    splits={
        'train': {},
        'val': dict(low=8, uniform=True),
        'val_ood': dict(low=60, high=60),
        'iid': dict(low=8, uniform=True),
        'seen_short': dict(high=6),
        'ood_length_14': dict(low=14, high=14),
        'ood_length_20': dict(low=20, high=20),
        'ood_length_40': dict(low=40, high=40),
        'ood_length_100': dict(low=100, high=100),
        'wrong_order': dict(low=8, kind='shuffled'),
        'one_swap': dict(low=8, kind='swapped'),
    },
    said={
        'iid': '8 to 12 brackets',
        'seen_short': 'up to 6, all trained on',
        'ood_length_14': '14 brackets',
        'ood_length_20': '20 brackets',
        'ood_length_40': '40 brackets',
        'ood_length_100': '100 brackets',
        'wrong_order': 'equal counts, wrong order',
        'one_swap': 'one swap from balanced',
    },
)
