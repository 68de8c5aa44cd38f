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

import torch
import torch.nn.functional as F

from tasks.task import REST, Task, close_gaps, constant, dice, encode, last_slot, letters

ASK, TO, A, J, K = encode('?>AJK')
ROOM = 5  # slots behind a question


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


# (level, what is done to the letters first, which of them then stand where). 'sort' puts them in
# order of pitch, 'shift' takes each one's next, A behind J.
RULES = [
    (1, '', reverse), (1, '', turn_left), (1, '', turn_right), (1, '', drop_first),
    (1, '', drop_last),
    (2, '', every_second), (2, '', the_others), (2, '', swap_pairs), (2, '', swap_ends),
    (2, '', interleave), (2, 'sort', as_it_is), (2, 'shift', as_it_is),
    (3, 'sort', reverse), (3, 'shift', reverse), (3, '', then(turn_left, drop_first)),
    (3, '', then(swap_pairs, reverse)),
]


# --- in text ---

def apply(rule, text):
    _, letters_first, places = RULES[rule]
    order = 'ABCDEFGHIJ'
    if letters_first == 'sort':
        text = sorted(text, key=order.index)
    elif letters_first == 'shift':
        text = [order[(order.index(x) + 1) % 10] for x in text]
    return ''.join(places(list(text)))


def shots_of(text):
    """A question in text -> pairs of what went in and what came out, and what is asked"""
    if not re.fullmatch(r'(?:[A-J]+>[A-J]+\?)+[A-J]+>', text):
        raise ValueError
    *shots, asked = text[:-1].split('?')
    return [shot.split('>') for shot in shots], asked


def solve(text):
    """The answer of all rules that fit the examples; ValueError if none does, or if they differ"""
    shots, asked = shots_of(text)
    fits = [r for r in range(len(RULES)) if all(apply(r, a) == b for a, b in shots)]
    answers = {apply(rule, asked) for rule in fits}
    if len(answers) != 1 or not 1 <= len(min(answers)) <= ROOM:
        raise ValueError
    return answers.pop()


def slots(text):
    return len(text) + ROOM


def copy(text):
    return shots_of(text)[1]


def last_shown(text):
    return shots_of(text)[0][-1][1]


# --- in rows of slots ---

@functools.cache
def places(width, device):
    """For each rule and length, which letter stands at each place, (16, width + 1, width), -1 where
    none does"""
    table = torch.full((len(RULES), width + 1, width), -1)
    for rule, (_, _, order) in enumerate(RULES):
        for length in range(1, width + 1):
            found = order(list(range(length)))
            table[rule, length, :len(found)] = torch.tensor(found, dtype=torch.long)
    return table.to(device)


def apply_all(x):
    """Letters (..., W), REST behind them -> what each rule makes of them, (16, ..., W)"""
    W = x.shape[-1]
    length = (x != REST).sum(-1)
    place = x - A - (x > K).long()  # 0 to 9
    following = (place + 1) % 10
    shifted = torch.where(x == REST, REST, A + following + (following >= K - A).long())
    in_order = torch.where(x == REST, 99, x).sort(-1).values
    in_order = torch.where(in_order == 99, REST, in_order)
    table = places(W, x.device)
    out = []
    for rule, (_, letters_first, _) in enumerate(RULES):
        start = {'': x, 'sort': in_order, 'shift': shifted}[letters_first]
        source = table[rule][length]
        out.append(torch.where(source < 0, REST, start.gather(-1, source.clamp(min=0))))
    return torch.stack(out)


def shots_in(q, W, most):
    """Rows (B, N) -> what went in and what came out, (B, most, W) each, REST behind them; the last
    that there is has nothing behind its >"""
    shot = (q == ASK).cumsum(1)
    part = (q == TO).cumsum(1) - shot  # 0 before its >, 1 behind it
    is_letter = (q >= A) & (q <= J)
    cell = 2 * shot + part
    # A letter's place within its cell: how many letters of it came before
    same = (cell[:, :, None] == cell[:, None]) & is_letter[:, None]
    place = same.tril(-1).sum(2)
    index = (cell * W + place).clamp(max=2 * most * W - 1)
    index = torch.where(is_letter & (place < W), index, 2 * most * W)
    found = q.new_full((len(q), 2 * most * W + 1), REST).scatter(1, index, q)
    cells = found[:, :-1].unflatten(1, (most, 2, W))
    return cells[:, :, 0], cells[:, :, 1]


def fitting(q, W):
    """Rows (B, N) -> what each rule makes of what is asked (16, B, W), and which of the rules fit
    all examples (16, B)"""
    n_shots = (q == ASK).sum(1)
    most = q.shape[1] // 4 + 1  # no example takes fewer slots
    went_in, came_out = shots_in(q, W, most)
    made = apply_all(went_in)  # (16, B, most, W)
    asked = n_shots[:, None] == torch.arange(most, device=q.device)
    given = torch.arange(most, device=q.device) < n_shots[:, None]
    fits = ((made == came_out).all(3) | ~given).all(2)
    made = torch.where(asked[:, :, None], made, 0).sum(2)
    return made, fits


def answer(q):
    """Rows (B, N) -> what the first fitting rule makes of what is asked, at the end of ROOM slots
    behind it"""
    made, fits = fitting(q, ROOM)
    rule = fits.long().argmax(0)
    made = made.gather(0, rule[None, :, None].expand(1, -1, ROOM))[0]
    behind = last_slot(q) + 1 + torch.arange(ROOM, device=q.device)
    slot = behind + (made == REST).sum(1, keepdim=True)
    room = F.pad(torch.full_like(q, REST), (0, 2 * ROOM), value=REST)
    return room.scatter(1, slot, made)[:, :q.shape[1]]


def draw(n, generator, device, levels=(1, 2), shots=(1, 3), length=(3, 4), kind='plain',
         level=1.0):
    """Examples of a rule of these levels, (lowest, highest), of so many letters each. Only where
    all rules that fit the examples give the same answer. kind='no_copy': and where that is neither
    what is asked nor what the last example showed."""
    rand, between = dice(n, generator, device, level)

    W, most = length[1], shots[1] + 1
    known = tuple(i for i, r in enumerate(RULES) if levels[0] <= r[0] <= levels[1])
    known = constant(known, device)
    rule = known[(rand(n) * len(known)).long()]
    x = letters(n * most, generator, device)[:, :W].unflatten(0, (n, most))
    x = torch.where(torch.arange(W, device=device) < between(*length, most)[:, :, None], x, REST)
    n_shots = between(*shots, 1)
    made = apply_all(x)[rule, torch.arange(n, device=device)]  # (n, most, W)
    at = torch.arange(most, device=device)
    to = torch.full_like(x[:, :, :1], TO)
    end = torch.full_like(to, ASK)
    is_asked = (at == n_shots)[:, :, None]
    came_out = torch.where(is_asked, REST, torch.cat([made, end], 2))
    each = torch.cat([x, to, came_out], 2)
    each = torch.where((at <= n_shots)[:, :, None], each, REST)
    longest = shots[1] * (2 * W + 2) + W + 1
    q = F.pad(close_gaps(each.flatten(1), longest), (0, ROOM), value=REST)

    made, fits = fitting(q, W)
    rightly = made[rule, torch.arange(n, device=device)]
    as_asked = ((made == rightly).all(2) | ~fits).all(0)
    easier = constant(tuple(r[0] < levels[0] for r in RULES), device)
    as_asked &= ~(fits & easier[:, None]).any(0)
    if kind == 'no_copy':
        asked = torch.where(is_asked, x, 0).sum(1)
        shown = torch.where((at == n_shots - 1)[:, :, None], each[:, :, W + 1:2 * W + 1], 0).sum(1)
        as_asked &= (rightly != asked).any(1) & (rightly != shown).any(1)
    return q, as_asked


task = Task(
    name='inducto',
    symbols='ABCDEFGHIJ>?',
    example='BDJH>HJDB?IJA>AJI?AJC>',
    draw=draw,
    answer=answer,
    solve=solve,
    slots=slots,
    shortcuts={'copy what is asked': copy, 'what was shown last': last_shown},
    splits={
        'train': {},
        'val': {},
        'val_ood': dict(shots=(4, 4)),
        'iid': {},
        'level_1': dict(levels=(1, 1), shots=(3, 3)),
        'level_2': dict(levels=(2, 2), shots=(3, 3)),
        'shots_1': dict(shots=(1, 1)),
        'shots_3': dict(shots=(3, 3)),
        'no_copy': dict(kind='no_copy'),
        'ood_level_3': dict(levels=(3, 3), shots=(3, 3)),
        'ood_shots_5': dict(shots=(5, 5)),
        'ood_shots_10': dict(shots=(10, 10)),
        'ood_length_5': dict(length=(5, 5), shots=(3, 3)),
    },
    said={
        'iid': '1 to 3 examples',
        'level_1': 'rules of level 1',
        'level_2': 'rules of level 2',
        'shots_1': 'one example',
        'shots_3': 'three examples',
        'no_copy': 'nothing to copy',
        'ood_level_3': 'rules of level 3',
        'ood_shots_5': '5 examples',
        'ood_shots_10': '10 examples',
        'ood_length_5': '5 letters',
    },
    levels=('level_1', 'level_2', 'ood_level_3'),
)
