"""
Is it balanced? V says yes, X no.

    ( ( ) )  ->  V . . .

Aloud, a line of working deletes the pairs that meet; V when all are gone, X when none meet:

    ( ( ) ( ) )  ->  ( . . . . )  ->  V . . . . .
"""
from itertools import accumulate

import torch
import torch.nn.functional as F

from tasks.task import REST, Task, encode, lines_later

OPEN, CLOSE, VALID, INVALID = encode('()VX')
# How unbalanced strings fail, and their shares in training. The first three are as long as the
# balanced ones.
SHARES = {
    'shuffled': 0.2, 'swapped': 0.35, 'flipped': 0.05, 'extra': 0.1, 'far': 0.1, 'runs': 0.2,
}
SAME_LENGTH = 0.6
NESTED = 0.1     # share of the balanced ones that are as deep as they can be
KEEP_ENDS = 0.9  # share of those with ( in front and ) at the end


# --- in text ---

def depth_of(text):
    """Brackets in text -> the depth after each"""
    return list(accumulate(1 if c == '(' else -1 for c in text))


def solve(text):
    if set(text) - set('()'):
        raise ValueError
    depth = depth_of(text)
    return verdict(depth[-1] == 0 and min(depth) >= 0)


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


def verdict(is_balanced):
    return 'V' if is_balanced else 'X'


def equal_counts(text):
    return verdict(text.count('(') == text.count(')'))


def fitting_ends(text):
    return verdict(text[0] + text[-1] == '()')


def even_length(text):
    return verdict(len(text) % 2 == 0)


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


def answer(q):
    """Rows (B, N) -> the verdict in the first slot (B, N)"""
    depth, below = depths(q)
    balanced = (depth[:, -1] == 0) & ~below[:, -1]
    a = torch.full_like(q, REST)
    a[:, 0] = torch.where(balanced, VALID, INVALID)
    return a


def balanced(half, slots, generator):
    """Strings of 2 * half (n, 1) brackets, uniform by the cycle lemma (Dvoretzky, Motzkin, 1947):
    of the rotations of k + 1 opening and k closing brackets, just one stays above 0. -> which slots
    open (n, slots) bool"""
    at = torch.arange(slots, device=half.device)
    within = (at <= 2 * half).expand(len(half), -1)
    key = torch.rand(within.shape, generator=generator, device=half.device)
    key = torch.where(within, key, 2.0)
    opens = key.argsort(1).argsort(1) <= half  # k + 1 of the first 2k + 1
    height = torch.where(within, (2 * opens - 1).cumsum(1), slots + 2)
    lowest = slots - 1 - height.flip(1).argmin(1, keepdim=True)  # the last minimum
    # Rotate, and drop the opening bracket in front.
    return opens.gather(1, (lowest + 2 + at) % (2 * half + 1))


def draw(n, generator, device, low=2, high=12, kind='mixed', uniform=False, aloud=False, level=1.0):
    """Even rows are balanced, `low` to `high` brackets long. The odd row after each is not, and is
    as long or one bracket longer.

    kind: what is wrong with the odd rows: mixed, one of SHARES, or odd (a mixture that is one
    longer). With runs, the even rows are runs too. uniform=True weights lengths by how many
    balanced strings they have, so that each of those counts alike; otherwise longer ones are drawn
    more often, as many of them are held out. aloud=True asks a random line of the working."""
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    def pick(mask):
        """One place of each row where mask (n, slots) is true -> (n, 1)"""
        return torch.where(mask, rand(n, slots), -1.0).argmax(1, keepdim=True)

    # Lengths. A curriculum starts at length 10, as only brackets over length 6 are held out.
    pairs = torch.arange(low // 2, high // 2 + 1, device=device)
    log_catalan = torch.lgamma(2.0 * pairs + 1) - 2 * torch.lgamma(pairs + 1.0)
    catalan = torch.exp(log_catalan) / (pairs + 1)
    known = pairs <= 5 + level * (high // 2 - 5)
    weight = catalan if uniform else pairs.float().square()
    below = (weight * known).cumsum(0)
    drawn = torch.searchsorted(below / below[-1], rand(n // 2)).clamp(max=len(pairs) - 1)
    half = pairs[drawn].repeat_interleave(2)[:, None]  # (n, 1)
    slots = high + 1
    at = torch.arange(slots, device=device)
    share = NESTED if kind == 'mixed' else float(kind == 'runs')
    nested = rand(n // 2, 1).repeat_interleave(2, 0) < share
    right = torch.where(nested, at < half, balanced(half, slots, generator))

    # Unbalanced strings. Most keep their ends, as either would give them away.
    inside = at < 2 * half
    keeps_ends = (rand(n, 1) < KEEP_ENDS) & (half > 2)
    ends = (at == 0) | (at == 2 * half - 1)
    free = inside & ~(keeps_ends & ends)
    key = torch.where(free, rand(n, slots), at - 0.5)  # the first is below 0, the last above 1
    key = torch.where(inside, key, 2.0 * slots)
    flip = pick(free)
    swapped = right.scatter(1, pick(right & free), False)
    extra = pick(at <= 2 * half)
    moved = right.gather(1, (at - (at > extra).long()))  # what is behind it moves on
    bias = (1.5 * rand(n, 1) - 0.25).clamp(0, 1)
    cut = (2 * half * (3 * rand(n, 1) - 1).clamp(0, 1)).long()
    coin = rand(n, 1) < 1 / 2
    wrong = {
        'shuffled': key.argsort(1).argsort(1) < half,
        'swapped': swapped.scatter(1, pick(~right & free), True),
        'flipped': right.scatter(1, flip, ~right.gather(1, flip)),
        'extra': torch.where(at == extra, coin, moved),
        'far': rand(n, slots) < bias,
        'runs': (at < cut) == coin,
    }
    r = rand(n, 1)
    one_more = rand(n, 1) < 1 / 2
    if kind == 'odd':
        r = SAME_LENGTH + (1 - SAME_LENGTH) * r
        one_more = r > 0
    odd = torch.arange(n, device=device)[:, None] % 2 == 1
    opens, length, above = right, 2 * half, 0.0
    for name, share in SHARES.items():
        chosen = odd & (r >= above) & (r < above + share)
        if kind in SHARES:
            chosen = odd & (r >= 0 if kind == name else r < 0)
        opens = torch.where(chosen, wrong[name], opens)
        if name == 'extra':
            length = length + chosen
        elif name in ('far', 'runs'):
            length = length + (chosen & one_more)
        above += share

    q = torch.where(at < length, torch.where(opens, OPEN, CLOSE), REST)
    depth, below = depths(q)
    as_asked = ((depth[:, -1] == 0) & ~below[:, -1]) == ~odd[:, 0]
    if aloud:
        skip = 4 * rand(n, 1).square()  # 0 is likely, or most of the lines would be verdicts
        q = lines_later(q, next_line, skip, 3)
    return q, as_asked


def of_length(n):
    return dict(low=n, high=n)


task = Task(
    name='bracket',
    symbols='()',
    example='(()())',
    draw=draw,
    solve=solve,
    answer=answer,
    working=working,
    next_line=next_line,
    paired=True,
    few=few,
    so_far=so_far,
    n_so_far=3,
    so_far_aloud=True,
    hard=hard,
    shortcuts={'equal counts': equal_counts, 'its ends': fitting_ends, 'even length': even_length},
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
        'odd': dict(low=8, kind='odd'),
        'extra_bracket': dict(high=40, kind='extra'),
        'runs': dict(high=100, kind='runs'),
        'far': dict(high=100, kind='far'),
        'wrong_order': dict(low=8, kind='shuffled'),
        'one_swap': dict(low=8, kind='swapped'),
    },
    said={
        'iid': '8 to 13 brackets',
        'seen_short': 'up to 6, all trained on',
        'ood_length_14': '14 or 15 brackets',
        'ood_length_20': '20 or 21 brackets',
        'ood_length_40': '40 or 41 brackets',
        'ood_length_100': '100 or 101 brackets',
        'odd': '9 to 13, odd',
        'extra_bracket': 'one too many',
        'runs': 'runs, up to 100',
        'far': 'far from balanced, up to 100',
        'wrong_order': 'equal counts, wrong order',
        'one_swap': 'one swap from balanced',
    },
    of_length=of_length,
)
