"""
What is G, where C is 1, D is 0, I is C & D and G is C | I? Inputs and their values, gates in order,
and which of them is asked.

    C 1 D 0 I & C D G | C I ? G  ->  . . . . . . . . . . . . . 1

A gate is its name, what it does (& and, | or, ^ xor, n not and, o not or, ~ not) and what goes in.
Aloud, a line of working evaluates the first gate; the value sounds in the place of what it does:

    C 1 D 0 I & C D G | C I ? G
    C 1 D 0 I 0 . . G | C I ? G
    C 1 D 0 I 0 . . G 1 . . ? G
    . . . . . . . . . . . . . 1

Or ^ and bits: is the number of ones odd? A line takes the first two together:

    ^ 1 0 1  ->  ^ . 1 1  ->  ^ . . 0  ->  . . . 0
"""
import re

import torch
import torch.nn.functional as F

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

ZERO, ONE, ASK, AND, OR, XOR, NOT, NOR = encode('01?&|^~o')
# What each of the gates from & to o, &|^~no, gives for 00, 01, 10, 11; ~ has its input twice
TABLE = ((0, 0, 0, 1), (0, 1, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 0, 0, 0))
PARITY = 0.2  # share of the training questions
WIRE = re.compile(r'([A-J])(?:([01])|~([A-J])|([&|^no])([A-J])([A-J]))')


# --- in text ---

def working(text):
    """Lines of working; ValueError if it is no question"""
    lines = [text]
    if text[0] == '^':
        bits = text[1:]
        if not bits or set(bits) - set('01'):
            raise ValueError
        while len(bits) > 1:
            bits = str(int(bits[0] != bits[1])) + bits[2:]
            lines.append('^' + bits)
        return [*lines, bits]
    wires, _, asked = text.partition('?')
    values = {}
    gates = list(WIRE.finditer(wires))
    if ''.join(gate[0] for gate in gates) != wires:
        raise ValueError
    done, left = '', wires
    for gate in gates:
        name, value, negated, op, a, b = gate.groups()
        if value is None:
            op, a, b = op or '~', a or negated, b or negated
            if a not in values or b not in values:
                raise ValueError
            value = str(TABLE['&|^~no'.index(op)][2 * int(values[a]) + int(values[b])])
        if name in values:
            raise ValueError
        values[name] = value
        done, left = done + name + value, left[len(gate[0]):]
        if gate[2] is None:
            lines.append(f'{done}{left}?{asked}')
    if asked not in values:
        raise ValueError
    return [*lines, values[asked]]


def solve(text):
    if text in ('0', '1'):
        raise ValueError
    return working(text)[-1]


def or_for_xor(text):
    return solve('^' + '01'['1' in text] if text[0] == '^' else text.replace('^', '|'))


def always_one(text):
    return '1'


# --- in rows of slots ---

def value_of(q, name):
    """Rows (B, N), names of wires (B, 1) -> their values, 0 or 1 (B, 1)"""
    following = F.pad(q[:, 1:], (0, 1), value=REST)
    known = (following == ZERO) | (following == ONE)
    return symbol_at(q, first_slot((q == name) & known) + 1) - ZERO


def is_parity(q):
    return symbol_at(q, first_slot(q != REST)) == XOR


def next_line(q):
    """Rows (B, N) -> the next line of working (B, N); what is finished stays as it is"""
    at = torch.arange(q.shape[1], device=q.device)
    last = last_slot(q)

    # The first gate that has no value yet
    parity = is_parity(q)
    ops = (q >= AND) & (q <= NOR) & ~parity
    op_at = first_slot(ops)
    op = symbol_at(q, op_at)
    one = op == NOT
    a = value_of(q, symbol_at(q, op_at + 1))
    b = torch.where(one, a, value_of(q, symbol_at(q, op_at + 2)))
    table = constant(TABLE, q.device)
    value = table[(op - AND).clamp(0, 5), (2 * a + b).clamp(0, 3)] + ZERO
    used = (at > op_at) & (at <= op_at + torch.where(one, 1, 2))
    evaluated = torch.where(at == op_at, value, torch.where(used, REST, q))

    # The first two bits of a parity
    bits = (q == ZERO) | (q == ONE)
    bit_at = first_slot(bits)
    odd = (symbol_at(q, bit_at) != symbol_at(q, bit_at + 1)).long() + ZERO
    reduced = torch.where(at == bit_at, REST, torch.where(at == bit_at + 1, odd, q))

    answered = torch.where(parity, symbol_at(q, last), value_of(q, symbol_at(q, last)) + ZERO)
    to_do = torch.where(parity, bit_at < last, op_at < q.shape[1])
    line = torch.where(parity, reduced, evaluated)
    line = torch.where(to_do, line, only_last(q, answered))
    unfinished = parity | (q == ASK).any(1, keepdim=True)
    return torch.where(unfinished, line, q)


def answer(q):
    parity = is_parity(q)
    odd = ((q == ONE).sum(1, keepdim=True)) % 2 + ZERO
    line = q
    for _ in range(q.shape[1] // 3):  # no gate takes fewer slots
        line = next_line(line)
    return torch.where(parity, only_last(q, odd), line)


def few(q):
    """Parities of up to six bits are too few to hold out: all are trained on."""
    return is_parity(q)[:, 0] & ((q != REST).sum(1) <= 7)


def draw(n, generator, device, inputs=(2, 4), gates=(1, 4), xor=0.3, deep=0.4, bits=(2, 10),
         kind='circuit', aloud=False, level=1.0):
    """Circuits of so many inputs and gates, (lowest, highest), up to ten in all. xor is the share
    of that gate, deep the share of gates that the one before goes into, whatever else does.

    kind: circuit; parity, of so many bits; xor_matters, where | in the place of ^ gives another
    answer; mixed, as in training. aloud=True asks a random line of the working."""
    rand, between = dice(n, generator, device, level)

    n_inputs, n_gates = between(*inputs, 1), between(*gates, 1)
    most = inputs[1] + gates[1]
    names = letters(n, generator, device)
    wire = torch.arange(most, device=device).expand(n, -1)
    is_input = wire < n_inputs
    exists = wire < n_inputs + n_gates

    # What goes in: earlier wires, of which no gate takes one twice
    before = wire.clamp(min=1)
    a = torch.where(rand(n, most) < deep, before - 1, (rand(n, most) * before).long())
    b = (rand(n, most) * (before - 1)).long()
    b = b + (b >= a)
    swap = rand(n, most) < 1 / 2
    a, b = torch.where(swap, b, a), torch.where(swap, a, b)
    op = AND + (5 * rand(n, most)).long()
    op = op + (op >= XOR)
    op = torch.where(rand(n, most) < xor, XOR, op)
    value = ZERO + (rand(n, most) < 1 / 2).long()
    asked = n_inputs + n_gates - 1
    asked = torch.where(rand(n, 1) < 0.3, (rand(n, 1) * (asked + 1)).long(), asked)

    # Slots: a name, a value or what it does, and what goes in
    second = torch.where(is_input, value, op)
    third = torch.where(is_input, REST, names.gather(1, a))
    fourth = torch.where(is_input | (op == NOT), REST, names.gather(1, b))
    rows = torch.stack([names[:, :most], second, third, fourth], 2)
    rows = torch.where(exists[:, :, None], rows, REST).flatten(1)
    query = torch.cat([torch.full_like(asked, ASK), names.gather(1, asked)], 1)
    slots = max(2 * inputs[1] + 4 * gates[1] + 2, 1 + bits[1] if kind in ('parity', 'mixed') else 0)
    q = F.pad(torch.cat([rows, query], 1), (0, slots), value=REST)
    q = close_gaps(q, slots)

    at = torch.arange(slots, device=device)
    coins = ZERO + (rand(n, slots) < 1 / 2).long()
    parity = torch.where(at <= between(*bits, 1), coins, REST)
    parity[:, 0] = XOR
    share = {'mixed': PARITY, 'parity': 1.0}.get(kind, 0.0)
    q = torch.where(rand(n, 1) < share, parity, q)

    as_asked = torch.ones(n, dtype=torch.bool, device=device)
    if kind == 'xor_matters':
        as_asked = (answer(q) != answer(torch.where(q == XOR, OR, q))).any(1)
    if aloud:
        # A line for each gate or bit, and 0 lines are as likely as any other number.
        to_do = torch.where(is_parity(q), (q != REST).sum(1, keepdim=True) - 1, n_gates) + 2
        skip = (rand(n, 1) * to_do).long()
        q = lines_later(q, next_line, skip, max(gates[1], bits[1]) + 1)
    return q, as_asked


task = Task(
    name='logic',
    symbols='ABCDEFGHIJ01?&|^~no',
    example='C1D0I&CDG|CI?G',
    draw=draw,
    answer=answer,
    solve=solve,
    working=working,
    next_line=next_line,
    few=few,
    hides=True,
    shortcuts={'| for ^': or_for_xor, 'always 1': always_one},
    splits={
        'train': dict(kind='mixed'),
        'val': {},
        'val_ood': dict(inputs=(3, 3), gates=(6, 6)),
        'iid': {},
        'xor_matters': dict(kind='xor_matters'),
        'parity': dict(kind='parity', bits=(7, 10)),
        'ood_gates_8': dict(inputs=(2, 2), gates=(8, 8)),
        'ood_deep': dict(inputs=(3, 3), gates=(7, 7), deep=1.0),
        'ood_xor': dict(inputs=(3, 3), gates=(5, 5), xor=1.0),
        'ood_parity_20': dict(kind='parity', bits=(20, 20)),
        'ood_parity_40': dict(kind='parity', bits=(40, 40)),
    },
    said={
        'iid': '1 to 4 gates',
        'xor_matters': '^ matters',
        'parity': 'parity of 7 to 10 bits',
        'ood_gates_8': '8 gates',
        'ood_deep': '7 gates, one into the next',
        'ood_xor': '5 gates, all ^',
        'ood_parity_20': 'parity of 20 bits',
        'ood_parity_40': 'parity of 40 bits',
    },
    levels=('iid', 'ood_deep', 'ood_gates_8'),
)
