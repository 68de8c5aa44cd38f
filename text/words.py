"""
The four puzzles in words, for models that read: questions at three levels of difficulty, and the
questions of tasks/ put into words.

    STATE [A, B, C] || OPS SWAP(0,1) || QUERY position 0 ->      B

text.dataset writes data sets of them, and text.ask asks them.
"""
import random
import re
from typing import NamedTuple

from tasks import inducto

ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
GREEK = ('alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho '
         'sigma tau upsilon phi chi psi omega').split()
COLOURS = ('red blue green yellow orange purple pink brown black white gray cyan magenta lime teal '
           'navy maroon olive silver gold coral indigo violet crimson').split()


class Question(NamedTuple):
    text: str
    target: str     # the right answer
    metadata: dict  # how it was drawn


def seeded(*parts):
    """A random.Random that depends on the parts alone"""
    return random.Random('/'.join(map(str, parts)))


# --- dyna: what has become of a row of letters ---

def carry_out(state, op, i, j=0):
    """Do an operation to a list, in place"""
    if op == 'SWAP':
        state[i], state[j] = state[j], state[i]
    elif op == 'REVERSE':
        state[i:j + 1] = state[i:j + 1][::-1]
    elif op == 'ROTATE_LEFT':
        state[:] = state[i:] + state[:i]
    else:
        state[:] = state[-i:] + state[:-i]


def dyna_in_words(state, ops, asked):
    calls = [f"{op}({','.join(map(str, places))})" for op, *places in ops]
    kind = 'position' if asked.isdigit() else 'element'
    return f"STATE [{', '.join(state)}] || OPS {' | '.join(calls)} || QUERY {kind} {asked} ->"


def draw_dyna(rng, state, ops):
    size = rng.randint(*state)
    begun = rng.sample(ALPHABET, size)
    now = begun.copy()
    done = []
    for _ in range(rng.randint(*ops)):
        op = rng.choice(('SWAP', 'ROTATE_LEFT', 'ROTATE_RIGHT', 'REVERSE'))
        if op in ('SWAP', 'REVERSE'):
            places = sorted(rng.sample(range(size), 2))
        else:
            places = [rng.randrange(1, size)]
        carry_out(now, op, *places)
        done.append((op, *places))

    # Half of the questions ask what stands at a place, and half where a letter stands.
    place = rng.randrange(size)
    asked, target = str(place), now[place]
    if rng.random() < 0.5:
        asked, target = target, asked
    metadata = {'state_size': size, 'num_ops': len(done)}
    return Question(dyna_in_words(begun, done, asked), target, metadata)


# --- inducto: a rule, from examples ---

def double_each(s):
    return [x for x in s for _ in range(2)]


def every_third(s):
    return s[::3]


def reverse_halves(s):
    half = len(s) // 2
    return s[:half][::-1] + s[half:][::-1]


def shift(s):
    return [ALPHABET[(ALPHABET.index(x) + 1) % 26] for x in s]


EASY_RULES = {
    'REVERSE': inducto.reverse,
    'ROTATE_LEFT': inducto.turn_left,
    'ROTATE_RIGHT': inducto.turn_right,
    'DROP_FIRST': inducto.drop_first,
    'DROP_LAST': inducto.drop_last,
    'DUPLICATE_EACH': double_each,
}
MEDIUM_RULES = {
    'TAKE_EVERY_2ND': inducto.every_second,
    'TAKE_THE_OTHERS': inducto.the_others,
    'TAKE_EVERY_3RD': every_third,
    'INTERLEAVE_HALVES': inducto.interleave,
    'SWAP_PAIRS': inducto.swap_pairs,
    'SWAP_ENDS': inducto.swap_ends,
    'SORT': sorted,
    'CAESAR_SHIFT': shift,
}
HARD_RULES = {
    'REVERSE_SEGMENTS': reverse_halves,
    'SORT_THEN_REVERSE': inducto.then(sorted, inducto.reverse),
    'SHIFT_THEN_REVERSE': inducto.then(shift, inducto.reverse),
    'ROTATE_THEN_DROP': inducto.then(inducto.turn_left, inducto.drop_first),
    'SWAP_THEN_REVERSE': inducto.then(inducto.swap_pairs, inducto.reverse),
    'SORT_THEN_SHIFT': inducto.then(sorted, shift),
}


def thinkable_rules():
    """What a reader may think of: each rule, and any two of the easier ones, one after the other"""
    easier = [inducto.as_it_is, *EASY_RULES.values(), *MEDIUM_RULES.values()]
    pairs = [inducto.then(first, second) for first in easier for second in easier]
    return [*HARD_RULES.values(), *pairs]


THINKABLE = thinkable_rules()


def inducto_in_words(shots, asked):
    shown = [f"Ex{i}: [{' '.join(a)}] -> [{' '.join(b)}]" for i, (a, b) in enumerate(shots, 1)]
    return ' | '.join([*shown, f"Query: [{' '.join(asked)}] -> ???"])


def leaves_no_doubt(shots, asked, answer):
    """Does every rule that fits the examples give the same answer?"""
    fits = THINKABLE
    for row, made in shots:
        fits = [rule for rule in fits if rule(row) == made]
    return all(rule(asked) == answer for rule in fits)


def draw_inducto(rng, rules, shots):
    name = rng.choice(list(rules))
    rule = rules[name]
    while True:
        n_rows = rng.randint(*shots) + 1
        rows = [rng.sample(ALPHABET, rng.randint(4, 7)) for _ in range(n_rows)]
        asked = rows.pop()
        examples = [(row, rule(row)) for row in rows]
        if leaves_no_doubt(examples, asked, rule(asked)):
            break
    metadata = {'rule': name, 'num_examples': len(examples)}
    return Question(inducto_in_words(examples, asked), f"[{' '.join(rule(asked))}]", metadata)


# --- filtro: a path through one of two graphs ---

def filtro_in_words(edges, stream, start, hops):
    said = ' | '.join(f'{which}:{a}->{b}' for which, a, b in edges)
    return f'EDGES {said} || QUERY {stream}:{start} hops={hops} ->'


def draw_filtro(rng, hops, nodes):
    n_hops = rng.randint(*hops)
    n_nodes = max(rng.randint(*nodes), n_hops + 1)
    paths = {'A': rng.sample(GREEK, n_nodes), 'B': rng.sample(COLOURS, n_nodes)}
    streams = {}
    for which, path in paths.items():
        streams[which] = [(which, *edge) for edge in zip(path, path[1:], strict=False)]
        rng.shuffle(streams[which])

    pattern = rng.choice(('alternating', 'random', 'blocked'))
    first, second = (streams[which] for which in rng.sample(('A', 'B'), 2))
    edges = first + second
    if pattern == 'alternating':
        edges = [edge for pair in zip(first, second, strict=True) for edge in pair]
    elif pattern == 'random':
        rng.shuffle(edges)

    stream = rng.choice('AB')
    path = paths[stream]
    at = rng.randrange(n_nodes - n_hops)
    text = filtro_in_words(edges, stream, path[at], n_hops)
    metadata = {'hops': n_hops, 'num_nodes': n_nodes, 'pattern': pattern}
    return Question(text, path[at + n_hops], metadata)


# --- logic: the value of a gate ---

GATES = {
    'AND': lambda a, b: a & b,
    'OR': lambda a, b: a | b,
    'XOR': lambda a, b: a ^ b,
    'NAND': lambda a, b: 1 - (a & b),
    'NOR': lambda a, b: 1 - (a | b),
    'NOT': lambda a, _: 1 - a,
}


def logic_in_words(inputs, gates, asked):
    values = ' '.join(f'{name}={value}' for name, value in inputs)
    said = ' | '.join(f"{name}={op}({','.join(args)})" for name, op, *args in gates)
    return f'INPUTS {values} || GATES {said} || QUERY {asked} ->'


def draw_logic(rng, depth, xor):
    inputs = [(f'x{i}', rng.randint(0, 1)) for i in range(rng.randint(3, 6))]
    known = dict(inputs)
    layer = list(known)
    gates = []
    n_layers = rng.randint(*depth)
    for _ in range(n_layers):
        new = {}
        for _ in range(rng.randint(1, 3)):
            op = rng.choice(('AND', 'OR', 'NAND', 'NOR', 'NOT'))
            if rng.random() < xor:
                op = 'XOR'
            # One input comes from the layer before, so that each layer is one deeper.
            a = rng.choice(layer)
            b = rng.choice([name for name in known if name != a])
            args = [a] if op == 'NOT' else rng.sample((a, b), 2)
            name = f'g{len(gates)}'
            gates.append((name, op, *args))
            new[name] = GATES[op](known[args[0]], known[args[-1]])
        known.update(new)
        layer = list(new)
    asked = gates[-1][0]
    metadata = {'depth': n_layers, 'num_gates': len(gates), 'num_inputs': len(inputs)}
    return Question(logic_in_words(inputs, gates, asked), str(known[asked]), metadata)


# --- three levels of each ---

PUZZLES = {
    'dyna': draw_dyna,
    'inducto': draw_inducto,
    'filtro': draw_filtro,
    'logic': draw_logic,
}
# What each level draws from; pairs are (lowest, highest).
LEVELS = {
    'dyna': {
        1: dict(state=(5, 8), ops=(5, 10)),
        2: dict(state=(8, 12), ops=(10, 25)),
        3: dict(state=(12, 20), ops=(25, 50)),
    },
    'inducto': {
        1: dict(rules=EASY_RULES, shots=(5, 10)),
        2: dict(rules=MEDIUM_RULES, shots=(3, 8)),
        3: dict(rules=HARD_RULES, shots=(2, 5)),
    },
    'filtro': {
        1: dict(hops=(1, 2), nodes=(5, 7)),
        2: dict(hops=(3, 5), nodes=(7, 11)),
        3: dict(hops=(6, 8), nodes=(11, 15)),
    },
    'logic': {
        1: dict(depth=(2, 3), xor=0.1),
        2: dict(depth=(4, 5), xor=0.3),
        3: dict(depth=(6, 8), xor=0.5),
    },
}


def draw_question(task, level, rng):
    """A random Question of a level 1 to 3"""
    return PUZZLES[task](rng, **LEVELS[task][level])


# --- the questions of tasks/ in words ---

OPS_IN_WORDS = {'&': 'SWAP', 'n': 'REVERSE', '^': 'ROTATE_LEFT', '|': 'ROTATE_RIGHT'}
GATES_IN_WORDS = {'&': 'AND', '|': 'OR', '^': 'XOR', '~': 'NOT', 'n': 'NAND', 'o': 'NOR'}


def reword_dyna(text):
    state, ops, asked = re.fullmatch(r'([A-J]+)(.*)\?(.)', text).groups()
    named = [(OPS_IN_WORDS[op], *places) for op, places in re.findall(r'([&n^|])(\d+)', ops)]
    return dyna_in_words(state, named, asked)


def reword_inducto(text):
    *shots, asked = text.removesuffix('>').split('?')
    return inducto_in_words([shot.split('>') for shot in shots], asked)


def reword_filtro(text):
    body, (start, hops) = text.split('?')
    edges = [('B' if a.isdigit() else 'A', a, b) for a, b in re.findall('(.)>(.)', body)]
    return filtro_in_words(edges, 'B' if start.isdigit() else 'A', start, hops)


def reword_logic(text):
    if text[0] == '^':  # the parity of bits
        inputs = [(f'x{i}', bit) for i, bit in enumerate(text[1:])]
        gate = ('g0', 'XOR', *dict(inputs))
        return logic_in_words(inputs, [gate], 'g0')
    wires, asked = text.split('?')
    wires = re.findall('([A-J])([01]|~[A-J]|[&|^no][A-J]{2})', wires)
    inputs = [(name, value) for name, value in wires if value in '01']
    gates = [(name, GATES_IN_WORDS[op], *args) for name, (op, *args) in wires if args]
    return logic_in_words(inputs, gates, asked)


REWORD = {
    'dyna': reword_dyna,
    'inducto': reword_inducto,
    'filtro': reword_filtro,
    'logic': reword_logic,
}


def in_words(task, text):
    """A question of tasks/ as it is played -> the same in words"""
    return REWORD[task](text)
