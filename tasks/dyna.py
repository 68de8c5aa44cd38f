"""
What stands at 2, when 1 to 3 of DJAGE are turned around, and then all goes left by 2?

    D J A G E n 1 3 ^ 2 ? 2  ->  . . . . . . . . . . . E

The letters stand at 0, 1, 2, ... Operations: & i j swaps two; ^ k turns all to the left by k, | k
to the right; n i j turns i to j around. Asked is what stands at a place, or where a letter stands.
Aloud, a line of working carries out the first operation:

    D J A G E n 1 3 ^ 2 ? 2
    D G A J E . . . ^ 2 ? 2
    A J E D G . . . . . ? 2
    . . . . . . . . . . . E
"""
import re

import torch

from tasks.task import (
    REST,
    Task,
    close_gaps,
    constant,
    dice,
    encode,
    first_slot,
    last_slot,
    letters,
    lines_later,
    only_last,
    symbol_at,
)

ZERO, NINE, ASK, SWAP, LEFT, RIGHT, TURN, A, J = encode('09?&^|nAJ')
QUESTION = re.compile(r'([A-J]+)((?:[&n]\d\d|[\^|]\d)*)\?([A-J\d])')
OPERATION = re.compile(r'([&n])(\d)(\d)|([\^|])(\d)')


# --- in text ---

def carry_out(state, op):
    """A state and an operation in text -> the state; ValueError if it is none of this state"""
    i, *rest = map(int, op[1:])
    j = rest[0] if rest else i
    if j >= len(state) or i > j:
        raise ValueError
    if op[0] == '^':
        return state[i:] + state[:i]
    if op[0] == '|':
        return state[len(state) - i:] + state[:len(state) - i]
    if op[0] == 'n':
        return state[:i] + state[i:j + 1][::-1] + state[j + 1:]
    swapped = list(state)
    swapped[i], swapped[j] = state[j], state[i]
    return ''.join(swapped)


def working(text):
    """Lines of working; ValueError if it is no question"""
    parts = QUESTION.fullmatch(text)
    if not parts:
        raise ValueError
    state, ops, asked = parts.groups()
    lines = [text]
    for found in OPERATION.finditer(ops):
        state = carry_out(state, found[0])
        lines.append(f'{state}{ops[found.end():]}?{asked}')
    if asked in state:
        return [*lines, str(state.index(asked))]
    if not asked.isdigit() or int(asked) >= len(state):
        raise ValueError
    return [*lines, state[int(asked)]]


def solve(text):
    return working(text)[-1]


def untouched(text):
    state, _, asked = QUESTION.fullmatch(text).groups()
    return solve(f'{state}?{asked}')


def last_operation(text):
    state, ops, asked = QUESTION.fullmatch(text).groups()
    found = [op[0] for op in OPERATION.finditer(ops)]
    return solve(f'{state}{found[-1]}?{asked}')


# --- in rows of slots ---

def size_of(q):
    """How many letters the state has (B, 1): those in front of the first other symbol"""
    return first_slot((q < A) | (q > J))


def next_line(q):
    """Rows (B, N) -> the next line of working (B, N); what is finished stays as it is"""
    at = torch.arange(q.shape[1], device=q.device)
    size = size_of(q).clamp(min=1)
    op_at = first_slot((q == SWAP) | (q == LEFT) | (q == RIGHT) | (q == TURN))
    op = symbol_at(q, op_at)
    i = symbol_at(q, op_at + 1) - ZERO
    turns = (op == LEFT) | (op == RIGHT)
    j = torch.where(turns, i, symbol_at(q, op_at + 2) - ZERO)

    source = torch.where(at == i, j, torch.where(at == j, i, at))
    source = torch.where(op == LEFT, (at + i) % size, source)
    source = torch.where(op == RIGHT, (at - i) % size, source)
    inside = (at >= i) & (at <= j)
    source = torch.where(op == TURN, torch.where(inside, i + j - at, at), source)
    moved = torch.where(at < size, symbol_at(q, source), q)
    used = (at >= op_at) & (at <= op_at + torch.where(turns, 1, 2))
    line = torch.where(used, REST, moved)

    asked = symbol_at(q, last_slot(q))
    where = first_slot((q == asked) & (at < size)) + ZERO
    is_place = (asked >= ZERO) & (asked <= NINE)
    answered = torch.where(is_place, symbol_at(q, asked - ZERO), where)
    line = torch.where(op_at < q.shape[1], line, only_last(q, answered))
    return torch.where((q == ASK).any(1, keepdim=True), line, q)


def so_far(q):
    """The place of each letter of the state, and of the one that is asked when nothing is left to
    do; -1 elsewhere. There may be pauses anywhere."""
    sounds = q != REST
    place = sounds.cumsum(1) - 1
    q = close_gaps(q, q.shape[1])
    size, last = size_of(q), last_slot(q)
    asked = symbol_at(q, last)
    where = first_slot(q == asked)
    answered = (place == last) & (last == size + 1) & (where < size)
    label = torch.where(answered, where, torch.where(place < size, place, -1))
    return torch.where(sounds, label, -1)


def answer(q):
    line = q
    for _ in range(q.shape[1] // 2):  # no operation takes fewer slots
        line = next_line(line)
    return line


def draw(n, generator, device, state=(5, 8), ops=(1, 4), kind='plain', aloud=False, level=1.0):
    """States of so many letters and so many operations, (lowest, highest). kind='moved': those in
    which no operation at all would give another answer. aloud=True asks a random line of the
    working."""
    rand, between = dice(n, generator, device, level)

    size, n_ops = between(*state, 1), between(*ops, 1)
    order = letters(n, generator, device)[:, :state[1]]
    at = torch.arange(state[1], device=device)
    known = constant((SWAP, LEFT, RIGHT, TURN), device)
    op = known[(4 * rand(n, ops[1])).long()]
    turns = (op == LEFT) | (op == RIGHT)
    i = (rand(n, ops[1]) * size).long()
    j = (rand(n, ops[1]) * (size - 1)).long()
    j = j + (j >= i)
    i, j = i.minimum(j), i.maximum(j)
    i = torch.where(turns, 1 + (rand(n, ops[1]) * (size - 1)).long(), i)
    each = torch.stack([op, ZERO + i, torch.where(turns, REST, ZERO + j)], 2)
    exists = torch.arange(ops[1], device=device) < n_ops
    each = torch.where(exists[:, :, None], each, REST).flatten(1)

    place = (rand(n, 1) * size).long()
    asked = torch.where(rand(n, 1) < 1 / 2, ZERO + place, order.gather(1, place))
    order = torch.where(at < size, order, REST)
    q = torch.cat([order, each, torch.full_like(asked, ASK), asked], 1)
    q = close_gaps(q, q.shape[1])

    as_asked = torch.ones(n, dtype=torch.bool, device=device)
    if kind == 'moved':
        still = torch.cat([order, torch.full_like(asked, ASK), asked], 1)
        still = next_line(close_gaps(still, still.shape[1]))
        as_asked = answer(q).amax(1) != still.amax(1)
    if aloud:
        skip = (rand(n, 1) * (n_ops + 2)).long()
        q = lines_later(q, next_line, skip, ops[1] + 1)
    return q, as_asked


task = Task(
    name='dyna',
    symbols='ABCDEFGHIJ0123456789?&^|n',
    example='DJAGEn13^2?2',
    draw=draw,
    answer=answer,
    solve=solve,
    working=working,
    next_line=next_line,
    so_far=so_far,
    n_so_far=10,
    so_far_aloud=True,
    shortcuts={'the state unchanged': untouched, 'the last operation': last_operation},
    splits={
        'train': {},
        'val': {},
        'val_ood': dict(ops=(8, 8)),
        'iid': {},
        'moved': dict(kind='moved'),
        'ood_ops_6': dict(ops=(6, 6)),
        'ood_ops_12': dict(ops=(12, 12)),
        'ood_ops_50': dict(ops=(50, 50)),
        'ood_state_10': dict(state=(10, 10)),
    },
    said={
        'iid': '1 to 4 operations, 5 to 8 letters',
        'moved': 'the state matters',
        'ood_ops_6': '6 operations',
        'ood_ops_12': '12 operations',
        'ood_ops_50': '50 operations',
        'ood_state_10': '10 letters',
    },
    levels=('iid', 'ood_ops_6', 'ood_ops_12'),
)
