"""
If BDJH becomes HJDB, and IJA becomes AJI, what becomes of AJC? Examples of a rule, and what it is
to be done with. The answer follows.

    B D J H > H J D B ? I J A > A J I ? A J C > . . . . .
    . . . . . . . . . . . . . . . . . . . . . . . . C J A

The rule is one of sixteen, at three levels, drawn anew for each question. The answer ends with the
last of five slots, so that nobody can tell its length from the question's.
"""
import functools
import re
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

from tasks.task import (
    REST,
    Split,
    Task,
    close_gaps,
    constant,
    dice,
    encode,
    exactly,
    last_slot,
    letters,
)

ASK, TO, A, J, K = encode('?>AJK')
ALPHABET = 'ABCDEFGHIJ'
BEHIND = 5  # slots behind a question, for its answer


# --- the rules ---

def drop_first(s):
    return s[1:]


def drop_last(s):
    return s[:-1]


def reverse(s):
    return s[::-1]


def turn_left(s):
    return s[1:] + s[:1]


def turn_right(s):
    return s[-1:] + s[:-1]


def every_second(s):
    return s[::2]


def the_others(s):
    return s[1::2]


def swap_pairs(s):
    return [x for i in range(0, len(s), 2) for x in reversed(s[i:i + 2])]


def swap_ends(s):
    return s[-1:] + s[1:-1] + s[:1]


def interleave(s):
    """The first half and the second, one of each in turn"""
    half = (len(s) + 1) // 2
    return [x for i in range(half) for x in (s[i], *s[half + i:half + i + 1])]


def as_it_is(s):
    return s


def then(first, second):
    def both(s):
        return second(first(s))
    return both


class Rule(NamedTuple):
    level: int
    order: Callable    # letters -> which of them stand where
    before: str = ''   # what is done to the letters first: 'sort' puts them in order of pitch,
                       # 'shift' takes each one's next, A behind J


RULES = [
    Rule(1, reverse),
    Rule(1, turn_left),
    Rule(1, turn_right),
    Rule(1, drop_first),
    Rule(1, drop_last),
    Rule(2, every_second),
    Rule(2, the_others),
    Rule(2, swap_pairs),
    Rule(2, swap_ends),
    Rule(2, interleave),
    Rule(2, as_it_is, 'sort'),
    Rule(2, as_it_is, 'shift'),
    Rule(3, reverse, 'sort'),
    Rule(3, reverse, 'shift'),
    Rule(3, then(turn_left, drop_first)),
    Rule(3, then(swap_pairs, reverse)),
]


# --- in text ---

def apply(rule, text):
    if rule.before == 'sort':
        text = sorted(text, key=ALPHABET.index)
    elif rule.before == 'shift':
        text = [ALPHABET[(ALPHABET.index(x) + 1) % 10] for x in text]
    return ''.join(rule.order(list(text)))


def shots_of(text):
    """A question in text -> pairs of what went in and what came out, and what is asked"""
    if not re.fullmatch(r'(?:[A-J]+>[A-J]+\?)+[A-J]+>', text):
        raise ValueError
    *shots, asked = text[:-1].split('?')
    return [shot.split('>') for shot in shots], asked


def solve(text):
    """The answer of all rules that fit the examples; ValueError if none does, or if they differ"""
    shots, asked = shots_of(text)
    fits = [rule for rule in RULES if all(apply(rule, a) == b for a, b in shots)]
    answers = {apply(rule, asked) for rule in fits}
    if len(answers) != 1 or not 1 <= len(min(answers)) <= BEHIND:
        raise ValueError
    return answers.pop()


def slots(text):
    return len(text) + BEHIND


def copy(text):
    return shots_of(text)[1]


def last_shown(text):
    return shots_of(text)[0][-1][1]


# --- in rows of slots ---

@functools.cache
def sources(width, device):
    """For each rule and number of letters, which letter stands where, (16, width + 1, width), -1
    where none does"""
    table = torch.full((len(RULES), width + 1, width), -1)
    for i, rule in enumerate(RULES):
        for length in range(1, width + 1):
            order = rule.order(list(range(length)))
            table[i, length, :len(order)] = torch.tensor(order, dtype=torch.long)
    return table.to(device)


def apply_all(x):
    """Letters (..., W), REST behind them -> what each rule makes of them, (16, ..., W)"""
    silent = x == REST
    length = (~silent).sum(-1)
    # The next letter: among the symbols, K stands in between and is none of the ten.
    following = (x - A - (x > K).long() + 1) % 10
    shifted = A + following + (following >= K - A).long()
    shifted = torch.where(silent, REST, shifted)
    # In order of pitch: silence is sorted behind all symbols.
    in_order = torch.where(silent, 99, x).sort(-1).values
    in_order = torch.where(in_order == 99, REST, in_order)
    start = {'': x, 'sort': in_order, 'shift': shifted}
    made = []
    table = sources(x.shape[-1], x.device)
    for i, rule in enumerate(RULES):
        source = table[i][length]  # (..., W)
        moved = start[rule.before].gather(-1, source.clamp(min=0))
        made.append(torch.where(source < 0, REST, moved))
    return torch.stack(made)


def shots_in(q, W, most):
    """Rows (B, N) -> what went in and what came out, (B, most, W) each, REST behind them; the last
    that there is has nothing behind its >"""
    shot = (q == ASK).cumsum(1)
    part = (q == TO).cumsum(1) - shot  # 0 before its >, 1 behind it
    cell = 2 * shot + part
    # A letter's place within its cell: how many letters of the cell came before
    is_letter = (q >= A) & (q <= J)
    same = (cell[:, :, None] == cell[:, None]) & is_letter[:, None]  # (B, N, N)
    place = same.tril(-1).sum(2)
    # All that is no such letter goes into one cell more, which is dropped.
    size = 2 * most * W
    index = (cell * W + place).clamp(max=size - 1)
    index = torch.where(is_letter & (place < W), index, size)
    found = q.new_full((len(q), size + 1), REST).scatter(1, index, q)
    cells = found[:, :-1].unflatten(1, (most, 2, W))
    return cells[:, :, 0], cells[:, :, 1]


def fitting(q, W):
    """Rows (B, N) -> what each rule makes of what is asked (16, B, W), and which of the rules fit
    all examples (16, B)"""
    n_shots = (q == ASK).sum(1, keepdim=True)
    most = q.shape[1] // 4 + 1  # no example takes fewer slots
    went_in, came_out = shots_in(q, W, most)
    made = apply_all(went_in)  # (16, B, most, W)
    shot = torch.arange(most, device=q.device)
    agrees = (made == came_out).all(3)
    fits = (agrees | (shot >= n_shots)).all(2)
    is_asked = (shot == n_shots)[:, :, None]
    return torch.where(is_asked, made, 0).sum(2), fits


def answer(q):
    """Rows (B, N) -> what the first fitting rule makes of what is asked, at the end of the slots
    behind it"""
    made, fits = fitting(q, BEHIND)
    rule = fits.long().argmax(0)[None, :, None]
    made = made.gather(0, rule.expand(1, -1, BEHIND))[0]  # (B, BEHIND)
    # Its silences, which stand behind it, are written beyond the last slot, and cut off.
    slot = last_slot(q) + 1 + torch.arange(BEHIND, device=q.device)
    slot = slot + (made == REST).sum(1, keepdim=True)
    longer = F.pad(torch.full_like(q, REST), (0, 2 * BEHIND), value=REST)
    return longer.scatter(1, slot, made)[:, :q.shape[1]]


# --- drawing ---

def draw(n, generator, device, levels=(1, 2), shots=(1, 3), length=(3, 4),
         kind='plain', level=1.0):
    """Examples of a rule of these levels, (lowest, highest), of so many letters each. Only where
    all rules that fit the examples give the same answer. kind='no_copy': and where that is neither
    what is asked nor what the last example showed."""
    _, index, integers = dice(n, generator, device, level)
    easiest, hardest = levels
    known = [i for i, r in enumerate(RULES) if easiest <= r.level <= hardest]
    known = constant(tuple(known), device)
    rule = known[index(len(known), n)]
    row = torch.arange(n, device=device)

    # What goes in: that of the examples and, behind them, what is asked
    W, most = length[1], shots[1] + 1
    x = letters(n * most, generator, device)[:, :W]
    x = x.unflatten(0, (n, most))  # (n, most, W)
    n_letters = integers(*length, most)[:, :, None]
    x = torch.where(torch.arange(W, device=device) < n_letters, x, REST)
    n_shots = integers(*shots, 1)
    shot = torch.arange(most, device=device)
    is_asked = (shot == n_shots)[:, :, None]

    # What comes out of it, and the signs between
    to = torch.full_like(x[:, :, :1], TO)
    end = torch.full_like(to, ASK)
    came_out = torch.cat([apply_all(x)[rule, row], end], 2)
    came_out = torch.where(is_asked, REST, came_out)
    each = torch.cat([x, to, came_out], 2)
    each = torch.where((shot <= n_shots)[:, :, None], each, REST)
    longest = shots[1] * (2 * W + 2) + W + 1
    q = F.pad(close_gaps(each.flatten(1), longest), (0, BEHIND), value=REST)

    # Do all rules that fit give the same answer, and is none of a lower level among them?
    made, fits = fitting(q, W)
    wanted = made[rule, row]  # (n, W)
    as_asked = ((made == wanted).all(2) | ~fits).all(0)
    easier = constant(tuple(r.level < easiest for r in RULES), device)
    as_asked &= ~(fits & easier[:, None]).any(0)
    if kind == 'no_copy':
        asked = torch.where(is_asked, x, 0).sum(1)
        is_last = (shot == n_shots - 1)[:, :, None]
        shown = torch.where(is_last, came_out[:, :, :W], 0).sum(1)
        as_asked &= (wanted != asked).any(1) & (wanted != shown).any(1)
    return q, as_asked


SPLITS = {
    'train': Split('training', 'train'),
    'val': Split('validation', 'val'),
    'val_ood': Split('validation, 4 examples', 'far', exactly(shots=4)),
    'iid': Split('1 to 3 examples', 'test'),
    'level_1': Split('rules of level 1', 'test', exactly(levels=1, shots=3)),
    'level_2': Split('rules of level 2', 'test', exactly(levels=2, shots=3)),
    'shots_1': Split('one example', 'test', exactly(shots=1)),
    'shots_3': Split('three examples', 'test', exactly(shots=3)),
    'no_copy': Split('nothing to copy', 'test', dict(kind='no_copy')),
    'ood_level_3': Split('rules of level 3', 'far', exactly(levels=3, shots=3)),
    'ood_shots_5': Split('5 examples', 'far', exactly(shots=5)),
    'ood_shots_10': Split('10 examples', 'far', exactly(shots=10)),
    'ood_length_5': Split('5 letters', 'far', exactly(length=5, shots=3)),
}

task = Task(
    name='inducto',
    symbols='ABCDEFGHIJ>?',
    example='BDJH>HJDB?IJA>AJI?AJC>',
    draw=draw,
    splits=SPLITS,
    wishes=('level',),
    levels=('level_1', 'level_2', 'ood_level_3'),
    answer=answer,
    solve=solve,
    slots=slots,
    shortcuts={'copy what is asked': copy, 'what was shown last': last_shown},
)
