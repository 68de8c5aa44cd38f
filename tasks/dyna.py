"""
What stands at 2, when 1 to 3 of DJAGE are reversed, and then all goes left by 2?

    D J A G E n 1 3 ^ 2 ? 2  ->  . . . . . . . . . . . E

The letters stand at 0, 1, 2, ... Operations: & i j swaps two; ^ k rotates all to the left by k,
| k to the right; n i j reverses i to j. Asked is what stands at a place, or where a letter stands.
Aloud, a line of working carries out the first operation:

    D J A G E n 1 3 ^ 2 ? 2
    D G A J E . . . ^ 2 ? 2
    A J E D G . . . . . ? 2
    . . . . . . . . . . . E
"""
import re

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
    first_slot,
    last_line,
    last_slot,
    letters,
    lines_later,
    only_last,
    symbol_at,
)

ZERO, NINE, ASK, SWAP, LEFT, RIGHT, REVERSE, A, J = encode('09?&^|nAJ')
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
    op_at = first_slot((q == SWAP) | (q == LEFT) | (q == RIGHT) | (q == REVERSE))
    op = symbol_at(q, op_at)
    rotates = (op == LEFT) | (op == RIGHT)
    i = symbol_at(q, op_at + 1) - ZERO
    j = torch.where(rotates, i, symbol_at(q, op_at + 2) - ZERO)

    # From which place the first operation takes the letter of each
    source = torch.where(at == i, j, torch.where(at == j, i, at))
    source = torch.where(op == LEFT, (at + i) % size, source)
    source = torch.where(op == RIGHT, (at - i) % size, source)
    within = (at >= i) & (at <= j)
    source = torch.where(op == REVERSE, torch.where(within, i + j - at, at), source)
    moved = torch.where(at < size, symbol_at(q, source), q)
    used = (at >= op_at) & (at <= op_at + torch.where(rotates, 1, 2))
    line = torch.where(used, REST, moved)

    # If there is no operation left, the answer: where a letter stands, or what stands at a place
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
    return last_line(q, next_line, q.shape[1] // 2)  # no operation takes fewer slots


def random_operations(size, most, index):
    """For states of so many letters (n, 1), operations as symbols (n, most, 3)"""
    shape = len(size), most
    known = constant((SWAP, LEFT, RIGHT, REVERSE), size.device)
    op = known[index(4, *shape)]
    # Two places that differ, the lower one first
    i = index(size, *shape)
    j = index(size - 1, *shape)
    j = j + (j >= i)
    i, j = i.minimum(j), i.maximum(j)
    # Or by how much to rotate
    rotates = (op == LEFT) | (op == RIGHT)
    i = torch.where(rotates, 1 + index(size - 1, *shape), i)
    j = torch.where(rotates, REST, ZERO + j)
    return torch.stack([op, ZERO + i, j], 2)


def draw(n, generator, device, state=(5, 8), ops=(1, 4), kind='plain',
         aloud=False, level=1.0):
    """States of so many letters and so many operations, (lowest, highest). kind='moved': those in
    which no operation at all would give another answer. aloud=True asks a random line of the
    working."""
    rand, index, integers = dice(n, generator, device, level)
    size, n_ops = integers(*state, 1), integers(*ops, 1)
    order = letters(n, generator, device)[:, :state[1]]
    each = random_operations(size, ops[1], index)
    exists = torch.arange(ops[1], device=device) < n_ops
    each = torch.where(exists[:, :, None], each, REST)

    place = index(size, n, 1)
    is_place = rand(n, 1) < 1 / 2
    asked = torch.where(is_place, ZERO + place, order.gather(1, place))
    query = F.pad(asked, (1, 0), value=ASK)
    at = torch.arange(state[1], device=device)
    order = torch.where(at < size, order, REST)
    q = torch.cat([order, each.flatten(1), query], 1)
    q = close_gaps(q, q.shape[1])

    as_asked = torch.ones(n, dtype=torch.bool, device=device)
    if kind == 'moved':
        unmoved = torch.cat([order, query], 1)
        unmoved = next_line(close_gaps(unmoved, unmoved.shape[1]))
        as_asked = answer(q).amax(1) != unmoved.amax(1)
    if aloud:
        skip = index(n_ops + 2, n, 1)
        q = lines_later(q, next_line, skip, ops[1] + 1)
    return q, as_asked


SPLITS = {
    'train': Split('training', 'train'),
    'val': Split('validation', 'val'),
    'val_ood': Split('validation, 8 operations', 'far', exactly(ops=8)),
    'iid': Split('1 to 4 operations, 5 to 8 letters', 'test'),
    'moved': Split('the state matters', 'test', dict(kind='moved')),
    'ood_ops_6': Split('6 operations', 'far', exactly(ops=6)),
    'ood_ops_12': Split('12 operations', 'far', exactly(ops=12)),
    'ood_ops_50': Split('50 operations', 'far', exactly(ops=50)),
    'ood_state_10': Split('10 letters', 'far', exactly(state=10)),
}

task = Task(
    name='dyna',
    symbols='ABCDEFGHIJ0123456789?&^|n',
    example='DJAGEn13^2?2',
    draw=draw,
    splits=SPLITS,
    wishes=('level', 'aloud'),
    levels=('iid', 'ood_ops_6', 'ood_ops_12'),
    answer=answer,
    solve=solve,
    next_line=next_line,
    working=working,
    so_far=so_far,
    n_labels=10,
    first_label=102,
    so_far_aloud=True,
    shortcuts={'the state unchanged': untouched, 'the last operation': last_operation},
)
