"""
Is it balanced? V says yes, X no.

    ( ( ) )  ->  V . . .

Aloud, a line of working deletes the pairs that meet; V when all are gone, X when none meet:

    ( ( ) ( ) )  ->  ( . . . . )  ->  V . . . . .
"""
from itertools import accumulate

import torch
import torch.nn.functional as F

from tasks.task import REST, Split, Task, dice, drawn_kinds, encode, lines_later

OPEN, CLOSE, VALID, INVALID = encode('()VX')
# How unbalanced strings fail, and their shares in training. The first three are as long as the
# balanced ones.
SHARES = {
    'shuffled': 0.2, 'swapped': 0.35, 'flipped': 0.05, 'extra': 0.1, 'biased': 0.1, 'runs': 0.2,
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
    # For each slot, the next and the previous one that sound: N and -1 if there is none
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
    decided = torch.where(all_gone, VALID, INVALID)
    decided = torch.where(at == first, decided, REST)
    return torch.where(all_gone | ~unfinished, decided, left)


def answer(q):
    """Rows (B, N) -> the verdict in the first slot (B, N)"""
    depth, below = depths(q)
    balanced = (depth[:, -1] == 0) & ~below[:, -1]
    a = torch.full_like(q, REST)
    a[:, 0] = torch.where(balanced, VALID, INVALID)
    return a


# --- drawing ---

def lengths(n, low, high, uniform, level, rand, device):
    """Lengths are drawn for pairs of rows -> half of each (n, 1). See draw."""
    half = torch.arange(low // 2, high // 2 + 1, device=device)
    # How many balanced strings there are of each length: the Catalan numbers
    log_catalan = torch.lgamma(2.0 * half + 1) - 2 * torch.lgamma(half + 1.0)
    catalan = torch.exp(log_catalan) / (half + 1)
    weight = catalan if uniform else half.float().square()
    # A curriculum starts at length 10, as only brackets over length 6 are held out.
    known = half <= 5 + level * (high // 2 - 5)
    below = (weight * known).cumsum(0)
    drawn = torch.searchsorted(below / below[-1], rand(n // 2))
    drawn = drawn.clamp(max=len(half) - 1)
    return half[drawn].repeat_interleave(2)[:, None]


def balanced(half, slots, rand):
    """Strings of 2 * half (n, 1) brackets, uniform by the cycle lemma (Dvoretzky, Motzkin, 1947):
    of the rotations of k + 1 opening and k closing brackets, just one stays above 0. -> which slots
    open (n, slots) bool"""
    at = torch.arange(slots, device=half.device)
    within = at <= 2 * half
    key = torch.where(within, rand(len(half), slots), 2.0)
    opens = key.argsort(1).argsort(1) <= half  # k + 1 of the first 2k + 1
    height = torch.where(within, (2 * opens - 1).cumsum(1), slots + 2)
    lowest = slots - 1 - height.flip(1).argmin(1, keepdim=True)  # the last minimum
    # Rotate, and drop the opening bracket in front.
    return opens.gather(1, (lowest + 2 + at) % (2 * half + 1))


def unbalanced(right, half, rand):
    """Balanced strings of 2 * half (n, 1) brackets, as slots that open (n, slots) -> {one of
    SHARES: strings that fail in this way (n, slots)}"""
    n, slots = right.shape
    at = torch.arange(slots, device=right.device)

    def pick(mask):
        """One slot of each row in which mask (n, slots) is true -> (n, 1)"""
        return torch.where(mask, rand(n, slots), -1.0).argmax(1, keepdim=True)

    # Most keep their ends, as either would give them away.
    keeps_ends = (rand(n, 1) < KEEP_ENDS) & (half > 2)
    ends = (at == 0) | (at == 2 * half - 1)
    inside = at < 2 * half
    free = inside & ~(keeps_ends & ends)

    # shuffled: the slots with the lowest keys open; ends that are kept have the first and the last.
    key = torch.where(free, rand(n, slots), at - 0.5)
    key = torch.where(inside, key, 2.0 * slots)
    shuffled = key.argsort(1).argsort(1) < half
    # flipped: one bracket is turned; swapped: one that opens and one that closes
    flip = pick(free)
    flipped = right.scatter(1, flip, ~right.gather(1, flip))
    swapped = right.scatter(1, pick(right & free), False)
    # extra: one more, so that what is behind it moves on
    extra = pick(at <= 2 * half)
    moved = right.gather(1, at - (at > extra).long())
    # biased: each drawn alone; runs: all up to some slot are alike, and the others
    bias = (1.5 * rand(n, 1) - 0.25).clamp(0, 1)
    share = (3 * rand(n, 1) - 1).clamp(0, 1)
    cut = (2 * half * share).long()
    coin = rand(n, 1) < 1 / 2
    return {
        'shuffled': shuffled,
        'swapped': swapped.scatter(1, pick(~right & free), True),
        'flipped': flipped,
        'extra': torch.where(at == extra, coin, moved),
        'biased': rand(n, slots) < bias,
        'runs': (at < cut) == coin,
    }


def draw(n, generator, device, low=2, high=12, kind='mixed', uniform=False,
         aloud=False, level=1.0):
    """Even rows are balanced, `low` to `high` brackets long. The odd row after each is not, and is
    as long or one bracket longer.

    kind: what is wrong with the odd rows: mixed, one of SHARES, or odd (a mixture that is one
    longer). With runs, the even rows are runs too. uniform=True weights lengths by how many
    balanced strings they have, so that each of those counts alike; otherwise longer ones are drawn
    more often, as many of them are held out. aloud=True asks a random line of the working."""
    rand, *_ = dice(n, generator, device, level)
    slots = high + 1
    at = torch.arange(slots, device=device)
    half = lengths(n, low, high, uniform, level, rand, device)
    share = NESTED if kind == 'mixed' else float(kind == 'runs')
    nested = rand(n // 2, 1).repeat_interleave(2, 0) < share
    right = torch.where(nested, at < half, balanced(half, slots, rand))
    wrong = unbalanced(right, half, rand)

    # The odd rows fail in one of these ways, and some are one bracket longer.
    drawn, longer = rand(n, 1), rand(n, 1) < 1 / 2
    if kind == 'odd':
        drawn = SAME_LENGTH + (1 - SAME_LENGTH) * drawn
        longer = torch.ones_like(longer)
    longer_by = {'extra': 1, 'biased': longer, 'runs': longer}
    odd = torch.arange(n, device=device)[:, None] % 2 == 1
    opens, length = right, 2 * half
    for name, chosen in drawn_kinds(SHARES, drawn, 'mixed' if kind == 'odd' else kind).items():
        opens = torch.where(chosen & odd, wrong[name], opens)
        length = length + (chosen & odd) * longer_by.get(name, 0)

    q = torch.where(at < length, torch.where(opens, OPEN, CLOSE), REST)
    depth, below = depths(q)
    is_balanced = (depth[:, -1] == 0) & ~below[:, -1]
    as_asked = is_balanced == ~odd[:, 0]
    if aloud:
        skip = 4 * rand(n, 1).square()  # 0 is likely, or most of the lines would be verdicts
        q = lines_later(q, next_line, skip, 3)
    return q, as_asked


def of_length(n):
    return dict(low=n, high=n)


# Up to length 6 all are trained on (seen_short), and the other splits start at 8.
SPLITS = {
    'train': Split('training', 'train'),
    'val': Split('validation', 'val', dict(low=8, uniform=True)),
    'val_ood': Split('validation, 60 or 61 brackets', 'far', of_length(60)),
    'iid': Split('8 to 13 brackets', 'test', dict(low=8, uniform=True)),
    'seen_short': Split('up to 6, all trained on', 'train', dict(high=6)),
    'ood_length_14': Split('14 or 15 brackets', 'far', of_length(14)),
    'ood_length_20': Split('20 or 21 brackets', 'far', of_length(20)),
    'ood_length_40': Split('40 or 41 brackets', 'far', of_length(40)),
    'ood_length_100': Split('100 or 101 brackets', 'far', of_length(100)),
    'odd': Split('9 to 13, odd', 'test', dict(low=8, kind='odd')),
    'extra_bracket': Split('one too many', 'test', dict(high=40, kind='extra')),
    'runs': Split('runs, up to 100', 'test', dict(high=100, kind='runs')),
    'far': Split('far from balanced, up to 100', 'test', dict(high=100, kind='biased')),
    'wrong_order': Split('equal counts, wrong order', 'test', dict(low=8, kind='shuffled')),
    'one_swap': Split('one swap from balanced', 'test', dict(low=8, kind='swapped')),
}

task = Task(
    name='bracket',
    symbols='()',
    example='(()())',
    draw=draw,
    splits=SPLITS,
    wishes=('level', 'aloud'),
    paired=True,
    few=few,
    of_length=of_length,
    answer=answer,
    solve=solve,
    next_line=next_line,
    working=working,
    so_far=so_far,
    n_labels=3,
    first_label=99,
    so_far_aloud=True,
    hard=hard,
    shortcuts={'equal counts': equal_counts, 'its ends': fitting_ends, 'even length': even_length},
)
