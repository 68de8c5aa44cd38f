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

ZERO, ONE, ASK, AND, OR, XOR, NOT, NOR = encode('01?&|^~o')
TABLE = (  # what each gate gives for 00, 01, 10, 11; ~ has its input twice
    (0, 0, 0, 1),  # &
    (0, 1, 1, 1),  # |
    (0, 1, 1, 0),  # ^
    (1, 1, 0, 0),  # ~
    (1, 1, 1, 0),  # n
    (1, 0, 0, 0),  # o
)
PARITY = 0.2  # share of the training questions
WIRE = re.compile(r'([A-J])(?:([01])|~([A-J])|([&|^no])([A-J])([A-J]))')


# --- in text ---

def parity_working(text):
    bits = text[1:]
    if not bits or set(bits) - set('01'):
        raise ValueError
    lines = [text]
    while len(bits) > 1:
        bits = str(int(bits[0] != bits[1])) + bits[2:]
        lines.append('^' + bits)
    return [*lines, bits]


def value_in(values, op, a, b):
    """Values of wires by their names -> what a gate makes of two of them, in text"""
    if a not in values or b not in values:
        raise ValueError
    both = 2 * int(values[a]) + int(values[b])
    return str(TABLE['&|^~no'.index(op)][both])


def working(text):
    """Lines of working; ValueError if it is no question"""
    if text[0] == '^':
        return parity_working(text)
    wires, _, asked = text.partition('?')
    found = list(WIRE.finditer(wires))
    if ''.join(wire[0] for wire in found) != wires:
        raise ValueError
    lines, values, done = [text], {}, ''
    for wire in found:
        name, value, negated, op, a, b = wire.groups()
        if name in values:
            raise ValueError
        is_gate = value is None
        if is_gate:
            value = value_in(values, op or '~', a or negated, b or negated)
        values[name] = value
        done += name + value
        if is_gate:
            lines.append(f'{done}{wires[wire.end():]}?{asked}')
    if asked not in values:
        raise ValueError
    return [*lines, values[asked]]


def solve(text):
    if text in ('0', '1'):
        raise ValueError
    return working(text)[-1]


def or_for_xor(text):
    if text[0] == '^':
        return '1' if '1' in text else '0'
    return solve(text.replace('^', '|'))


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


def first_gate(q):
    """Rows (B, N) of a circuit -> the slot of the first gate that has no value yet (B, 1), N if all
    have, and the row with its value there"""
    at = torch.arange(q.shape[1], device=q.device)
    op_at = first_slot((q >= AND) & (q <= NOR))
    op = symbol_at(q, op_at)
    one = op == NOT
    a = value_of(q, symbol_at(q, op_at + 1))
    b = torch.where(one, a, value_of(q, symbol_at(q, op_at + 2)))
    table = constant(TABLE, q.device)
    both = (2 * a + b).clamp(0, 3)
    value = ZERO + table[(op - AND).clamp(0, 5), both]
    used = (at > op_at) & (at <= op_at + torch.where(one, 1, 2))
    line = torch.where(used, REST, q)
    return op_at, torch.where(at == op_at, value, line)


def first_bits(q):
    """Rows (B, N) of a parity -> the slot of the first bit (B, 1), and the row with this and the
    next as one"""
    at = torch.arange(q.shape[1], device=q.device)
    bit_at = first_slot((q == ZERO) | (q == ONE))
    differ = symbol_at(q, bit_at) != symbol_at(q, bit_at + 1)
    line = torch.where(at == bit_at, REST, q)
    return bit_at, torch.where(at == bit_at + 1, ZERO + differ.long(), line)


def next_line(q):
    """Rows (B, N) -> the next line of working (B, N); what is finished stays as it is"""
    parity = is_parity(q)
    op_at, evaluated = first_gate(q)
    bit_at, reduced = first_bits(q)
    last = last_slot(q)
    asked = symbol_at(q, last)
    answered = torch.where(parity, asked, value_of(q, asked) + ZERO)
    line = torch.where(parity, reduced, evaluated)
    to_do = torch.where(parity, bit_at < last, op_at < q.shape[1])
    line = torch.where(to_do, line, only_last(q, answered))
    unfinished = parity | (q == ASK).any(1, keepdim=True)
    return torch.where(unfinished, line, q)


def answer(q):
    odd = (q == ONE).sum(1, keepdim=True) % 2
    line = last_line(q, next_line, q.shape[1] // 3)  # no gate takes fewer slots
    return torch.where(is_parity(q), only_last(q, ZERO + odd), line)


def few(q):
    """Parities of up to six bits are too few to hold out: all are trained on."""
    return is_parity(q)[:, 0] & ((q != REST).sum(1) <= 7)


# --- drawing ---

def random_gates(n, most, xor, deep, rand, index, device):
    """For each of so many wires, what a gate there does, and which two earlier wires go in: three
    times (n, most). No gate takes one twice."""
    before = torch.arange(most, device=device).clamp(min=1)  # how many wires are earlier
    from_last = rand(n, most) < deep
    a = torch.where(from_last, before - 1, index(before, n, most))
    b = index(before - 1, n, most)
    b = b + (b >= a)
    swap = rand(n, most) < 1 / 2
    a, b = torch.where(swap, b, a), torch.where(swap, a, b)
    # One of the five others, or ^
    op = AND + index(5, n, most)
    op = op + (op >= XOR)
    op = torch.where(rand(n, most) < xor, XOR, op)
    return op, a, b


def draw(n, generator, device, inputs=(2, 4), gates=(1, 4), xor=0.3, deep=0.4,
         bits=(2, 10), kind='circuit', aloud=False, level=1.0):
    """Circuits of so many inputs and gates, (lowest, highest), up to ten in all. xor is the share
    of that gate, deep the share of gates that the one before goes into, whatever else does.

    kind: circuit; parity, of so many bits; xor_matters, where | in the place of ^ gives another
    answer; mixed, as in training. aloud=True asks a random line of the working."""
    rand, index, integers = dice(n, generator, device, level)
    n_inputs, n_gates = integers(*inputs, 1), integers(*gates, 1)
    most = inputs[1] + gates[1]
    names = letters(n, generator, device)
    op, a, b = random_gates(n, most, xor, deep, rand, index, device)
    value = ZERO + (rand(n, most) < 1 / 2).long()
    n_wires = n_inputs + n_gates
    any_wire = rand(n, 1) < 0.3  # is any of them asked, or the last one?
    asked = torch.where(any_wire, index(n_wires, n, 1), n_wires - 1)

    # Slots: a name, a value or what it does, and what goes in
    wire = torch.arange(most, device=device).expand(n, -1)
    is_input = wire < n_inputs
    second = torch.where(is_input, value, op)
    third = torch.where(is_input, REST, names.gather(1, a))
    fourth = torch.where(is_input | (op == NOT), REST, names.gather(1, b))
    rows = torch.stack([names[:, :most], second, third, fourth], 2)
    exists = (wire < n_wires)[:, :, None]
    rows = torch.where(exists, rows, REST).flatten(1)
    query = F.pad(names.gather(1, asked), (1, 0), value=ASK)
    slots = 2 * inputs[1] + 4 * gates[1] + 2
    if kind in ('parity', 'mixed'):
        slots = max(slots, 1 + bits[1])
    q = F.pad(torch.cat([rows, query], 1), (0, slots), value=REST)
    q = close_gaps(q, slots)

    # Parities take the place of some.
    at = torch.arange(slots, device=device)
    coins = ZERO + (rand(n, slots) < 1 / 2).long()
    parity = torch.where(at <= integers(*bits, 1), coins, REST)
    parity[:, 0] = XOR
    share = {'mixed': PARITY, 'parity': 1.0}.get(kind, 0.0)
    q = torch.where(rand(n, 1) < share, parity, q)

    as_asked = torch.ones(n, dtype=torch.bool, device=device)
    if kind == 'xor_matters':
        with_or = torch.where(q == XOR, OR, q)
        as_asked = (answer(q) != answer(with_or)).any(1)
    if aloud:
        # A line for each gate or bit, and 0 lines are as likely as any other number.
        n_bits = (q != REST).sum(1, keepdim=True) - 1
        to_do = torch.where(is_parity(q), n_bits, n_gates)
        skip = index(to_do + 2, n, 1)
        q = lines_later(q, next_line, skip, max(gates[1], bits[1]) + 1)
    return q, as_asked


def parity_of(n_bits):
    return exactly(bits=n_bits) | dict(kind='parity')


SPLITS = {
    'train': Split('training', 'train', dict(kind='mixed')),
    'val': Split('validation', 'val'),
    'val_ood': Split('validation, 6 gates', 'far', exactly(inputs=3, gates=6)),
    'iid': Split('1 to 4 gates', 'test'),
    'xor_matters': Split('^ matters', 'test', dict(kind='xor_matters')),
    'parity': Split('parity of 7 to 10 bits', 'test', dict(kind='parity', bits=(7, 10))),
    'ood_gates_8': Split('8 gates', 'far', exactly(inputs=2, gates=8)),
    'ood_deep': Split('7 gates, one into the next', 'far',
                      exactly(inputs=3, gates=7) | dict(deep=1.0)),
    'ood_xor': Split('5 gates, all ^', 'far',
                     exactly(inputs=3, gates=5) | dict(xor=1.0)),
    'ood_parity_20': Split('parity of 20 bits', 'far', parity_of(20)),
    'ood_parity_40': Split('parity of 40 bits', 'far', parity_of(40)),
}

task = Task(
    name='logic',
    symbols='ABCDEFGHIJ01?&|^~no',
    example='C1D0I&CDG|CI?G',
    draw=draw,
    splits=SPLITS,
    wishes=('level', 'aloud'),
    few=few,
    levels=('iid', 'ood_deep', 'ood_gates_8'),
    answer=answer,
    solve=solve,
    next_line=next_line,
    working=working,
    hides=True,
    shortcuts={'| for ^': or_for_xor, 'always 1': always_one},
)
