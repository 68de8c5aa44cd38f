"""
The four puzzles in words, for models that read: questions at three levels of difficulty, the
questions of tasks/ put into words, and what comes of asking them.

    STATE [A, B, C] || OPS SWAP(0,1) || QUERY position 0 ->      B

prepare.py --format=text writes data sets of them, ask.py asks them.
"""
import random
import re
from collections import Counter
from statistics import quantiles

from tasks.inducto import (
    as_it_is,
    drop_first,
    drop_last,
    every_second,
    interleave,
    reverse,
    swap_ends,
    swap_pairs,
    the_others,
    then,
    turn_left,
    turn_right,
)

ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
GREEK = ('alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho '
         'sigma tau upsilon phi chi psi omega').split()
COLOURS = ('red blue green yellow orange purple pink brown black white gray cyan magenta lime teal '
           'navy maroon olive silver gold coral indigo violet crimson').split()
# What each level draws from, (lowest, highest)
LEVELS = {
    'dyna': {1: dict(state=(5, 8), ops=(5, 10)), 2: dict(state=(8, 12), ops=(10, 25)),
             3: dict(state=(12, 20), ops=(25, 50))},
    'inducto': {1: dict(rules=1, shots=(5, 10)), 2: dict(rules=2, shots=(3, 8)),
                3: dict(rules=3, shots=(2, 5))},
    'filtro': {1: dict(hops=(1, 2), nodes=(5, 7)), 2: dict(hops=(3, 5), nodes=(7, 11)),
               3: dict(hops=(6, 8), nodes=(11, 15))},
    'logic': {1: dict(depth=(2, 3), xor=0.1), 2: dict(depth=(4, 5), xor=0.3),
              3: dict(depth=(6, 8), xor=0.5)},
}


# --- dyna ---

def carry_out(state, op, i, j=0):
    """An operation on a list, in its place"""
    if op == 'SWAP':
        state[i], state[j] = state[j], state[i]
    elif op == 'REVERSE':
        state[i:j + 1] = state[i:j + 1][::-1]
    else:
        i = i if op == 'ROTATE_LEFT' else -i
        state[:] = state[i:] + state[:i]


def dyna_in_words(state, ops, asked):
    said = ' | '.join(f"{op}({','.join(map(str, args))})" for op, *args in ops)
    kind = 'position' if asked.isdigit() else 'element'
    return f"STATE [{', '.join(state)}] || OPS {said} || QUERY {kind} {asked} ->"


def dyna(draw, state, ops):
    size = draw.randint(*state)
    letters = draw.sample(ALPHABET, size)
    now, done = letters[:], []
    for _ in range(draw.randint(*ops)):
        op = draw.choice(('SWAP', 'ROTATE_LEFT', 'ROTATE_RIGHT', 'REVERSE'))
        if op in ('SWAP', 'REVERSE'):
            args = sorted(draw.sample(range(size), 2))
        else:
            args = [draw.randrange(1, size)]
        carry_out(now, op, *args)
        done.append((op, *args))
    place = draw.randrange(size)
    asked, target = str(place), now[place]
    if draw.random() < 0.5:
        asked, target = target, asked
    return dyna_in_words(letters, done, asked), target, {'state_size': size, 'num_ops': len(done)}


# --- inducto ---

def double_each(s):
    return [x for x in s for _ in range(2)]


def every_third(s):
    return s[::3]


def reverse_halves(s):
    half = len(s) // 2
    return s[:half][::-1] + s[half:][::-1]


def shift(s):
    return [ALPHABET[(ALPHABET.index(x) + 1) % 26] for x in s]


RULES = {
    1: {'REVERSE': reverse, 'ROTATE_LEFT': turn_left, 'ROTATE_RIGHT': turn_right,
        'DROP_FIRST': drop_first, 'DROP_LAST': drop_last, 'DUPLICATE_EACH': double_each},
    2: {'TAKE_EVERY_2ND': every_second, 'TAKE_THE_OTHERS': the_others,
        'TAKE_EVERY_3RD': every_third, 'INTERLEAVE_HALVES': interleave, 'SWAP_PAIRS': swap_pairs,
        'SWAP_ENDS': swap_ends, 'SORT': sorted, 'CAESAR_SHIFT': shift},
    3: {'REVERSE_SEGMENTS': reverse_halves, 'SORT_THEN_REVERSE': then(sorted, reverse),
        'SHIFT_THEN_REVERSE': then(shift, reverse), 'ROTATE_THEN_DROP': then(turn_left, drop_first),
        'SWAP_THEN_REVERSE': then(swap_pairs, reverse), 'SORT_THEN_SHIFT': then(sorted, shift)},
}
BASE_RULES = {'AS_IT_IS': as_it_is, **RULES[1], **RULES[2]}
# What a reader may think of: each rule, and any two of the first levels, one after the other
THOUGHT_OF = [*RULES[3].values(),
              *[then(a, b) for a in BASE_RULES.values() for b in BASE_RULES.values()]]


def inducto_in_words(shots, asked):
    shown = [f"Ex{i}: [{' '.join(a)}] -> [{' '.join(b)}]" for i, (a, b) in enumerate(shots, 1)]
    return ' | '.join([*shown, f"Query: [{' '.join(asked)}] -> ???"])


def made_by(rule, letters):
    """What a rule makes of letters; None if it can do nothing with them"""
    try:
        return rule(letters)
    except IndexError:
        return None


def inducto(draw, rules, shots):
    name = draw.choice(list(RULES[rules]))
    rule = RULES[rules][name]
    while True:
        rows = [draw.sample(ALPHABET, draw.randint(4, 7)) for _ in range(draw.randint(*shots) + 1)]
        *examples, (asked, answer) = [(row, rule(row)) for row in rows]
        fits = THOUGHT_OF
        for went_in, came_out in examples:
            fits = [other for other in fits if made_by(other, went_in) == came_out]
        if all(made_by(other, asked) == answer for other in fits):  # the examples leave no doubt
            break
    text = inducto_in_words(examples, asked)
    return text, f"[{' '.join(answer)}]", {'rule': name, 'num_examples': len(examples)}


# --- filtro ---

def filtro_in_words(edges, stream, start, hops):
    said = ' | '.join(f'{which}:{a}->{b}' for which, a, b in edges)
    return f'EDGES {said} || QUERY {stream}:{start} hops={hops} ->'


def filtro(draw, hops, nodes):
    n_hops, n_nodes = draw.randint(*hops), draw.randint(*nodes)
    n_nodes = max(n_nodes, n_hops + 1)
    paths = {'A': draw.sample(GREEK, n_nodes), 'B': draw.sample(COLOURS, n_nodes)}
    streams = {}
    for which, path in paths.items():
        streams[which] = [(which, *edge) for edge in zip(path, path[1:], strict=False)]
        draw.shuffle(streams[which])
    pattern = draw.choice(('alternating', 'random', 'blocked'))
    order = draw.sample(('A', 'B'), 2)
    edges = streams[order[0]] + streams[order[1]]
    if pattern == 'alternating':
        pairs = zip(streams[order[0]], streams[order[1]], strict=True)
        edges = [edge for pair in pairs for edge in pair]
    elif pattern == 'random':
        draw.shuffle(edges)
    stream = draw.choice('AB')
    at = draw.randrange(n_nodes - n_hops)
    text = filtro_in_words(edges, stream, paths[stream][at], n_hops)
    more = {'hops': n_hops, 'num_nodes': n_nodes, 'pattern': pattern}
    return text, paths[stream][at + n_hops], more


# --- logic ---

GATES = {
    'AND': int.__and__,
    'OR': int.__or__,
    'XOR': int.__xor__,
    'NAND': lambda a, b: 1 - (a & b),
    'NOR': lambda a, b: 1 - (a | b),
    'NOT': lambda a, _: 1 - a,
}


def logic_in_words(inputs, gates, asked):
    values = ' '.join(f'{name}={value}' for name, value in inputs)
    said = ' | '.join(f"{name}={op}({','.join(args)})" for name, op, *args in gates)
    return f'INPUTS {values} || GATES {said} || QUERY {asked} ->'


def logic(draw, depth, xor):
    inputs = [(f'x{i}', draw.randint(0, 1)) for i in range(draw.randint(3, 6))]
    known = dict(inputs)
    layer, gates = list(known), []
    levels = draw.randint(*depth)
    for _ in range(levels):
        new = []
        for _ in range(draw.randint(1, 3)):
            op = draw.choice(('AND', 'OR', 'NAND', 'NOR', 'NOT'))
            if draw.random() < xor:
                op = 'XOR'
            a = draw.choice(layer)  # so that each layer is one deeper
            b = draw.choice([name for name in known if name != a])
            args = [a] if op == 'NOT' else draw.sample((a, b), 2)
            name = f'g{len(gates)}'
            gates.append((name, op, *args))
            new.append((name, GATES[op](known[args[0]], known[args[-1]])))
        known.update(new)
        layer = [name for name, _ in new]
    asked = gates[-1][0]
    more = {'depth': levels, 'num_gates': len(gates), 'num_inputs': len(inputs)}
    return logic_in_words(inputs, gates, asked), str(known[asked]), more


PUZZLES = {'dyna': dyna, 'inducto': inducto, 'filtro': filtro, 'logic': logic}


def question(task, level, draw):
    """A random question of a level 1 to 3 -> input_text, target, what it was drawn from"""
    return PUZZLES[task](draw, **LEVELS[task][level])


# --- the questions of tasks/ in words ---

OPS_IN_WORDS = {'&': 'SWAP', 'n': 'REVERSE', '^': 'ROTATE_LEFT', '|': 'ROTATE_RIGHT'}
GATES_IN_WORDS = {'&': 'AND', '|': 'OR', '^': 'XOR', '~': 'NOT', 'n': 'NAND', 'o': 'NOR'}


def in_words(task, text):
    """A question of tasks/ as it is played -> the same in words"""
    if task == 'inducto':
        *shots, asked = text[:-1].split('?')
        return inducto_in_words([shot.split('>') for shot in shots], asked)
    body, _, asked = text.partition('?')
    if task == 'dyna':
        state, ops = re.fullmatch('([A-J]+)(.*)', body).groups()
        ops = re.findall(r'([&n^|])(\d+)', ops)
        return dyna_in_words(state, [(OPS_IN_WORDS[op], *args) for op, args in ops], asked)
    if task == 'filtro':
        streams = {True: 'B', False: 'A'}
        edges = [(streams[a.isdigit()], a, b) for a, b in re.findall('(.)>(.)', body)]
        return filtro_in_words(edges, streams[asked[0].isdigit()], asked[0], asked[1])
    if text[0] == '^':  # a parity
        bits = [(f'x{i}', bit) for i, bit in enumerate(text[1:])]
        return logic_in_words(bits, [('g0', 'XOR', *[name for name, _ in bits])], 'g0')
    inputs = re.findall('([A-J])([01])', body)
    gates = re.findall('([A-J])(?:(~)([A-J])|([&|^no])([A-J])([A-J]))', body)
    gates = [tuple(filter(None, gate)) for gate in gates]
    gates = [(name, GATES_IN_WORDS[op], *args) for name, op, *args in gates]
    return logic_in_words(inputs, gates, asked)


# --- what came of it ---

def share(rows):
    """What was not answered is not counted as wrong"""
    rows = [row for row in rows if not row.get('error')]
    right = sum(row['is_correct'] for row in rows)
    return {'total': len(rows), 'correct': right, 'accuracy': right / max(1, len(rows))}


def summarize(model, run_id, rows):
    """Rows that hold task, difficulty, is_correct, and perhaps error, latency_ms, prompt_tokens,
    completion_tokens -> the contents of summary.json"""
    difficulties = sorted({row['difficulty'] for row in rows})

    def by_difficulty(rows):
        return {str(d): share([r for r in rows if r['difficulty'] == d]) for d in difficulties}

    by_task = {}
    for task in dict.fromkeys(row['task'] for row in rows):
        of_task = [row for row in rows if row['task'] == task]
        by_task[task] = {**share(of_task), 'by_difficulty': by_difficulty(of_task)}
    overall = share(rows)
    overall['total_samples'] = overall.pop('total')
    errors = Counter(row['error'] for row in rows if row.get('error'))
    found = {'run_id': run_id, 'model': model, 'overall': overall, 'by_task': by_task,
             'by_difficulty': by_difficulty(rows), 'unanswered': errors.total(),
             'errors': dict(errors)}
    times = sorted(row['latency_ms'] for row in rows if row.get('latency_ms') is not None)
    if times:
        cuts = quantiles(times, n=20, method='inclusive') if len(times) > 1 else 20 * times
        found['timing'] = {'avg_latency_ms': sum(times) / len(times), 'p50_latency_ms': cuts[9],
                           'p95_latency_ms': cuts[18]}
        found['tokens'] = {key: sum(row.get(key) or 0 for row in rows)
                           for key in ('prompt_tokens', 'completion_tokens')}
    return found


def show(found):
    """Print a summary as a table"""
    line = '=' * 65
    overall = found['overall']
    print(f"{line}\nRESULTS SUMMARY\n{line}\nModel: {found['model']}\nTotal: "
          f"{overall['correct']}/{overall['total_samples']} correct ({overall['accuracy']:.1%})")
    print("\nBy Task:")
    for task, part in found['by_task'].items():
        levels = ' | '.join(f"L{d}: {one['accuracy']:.0%}"
                            for d, one in part['by_difficulty'].items() if one['total'])
        counted = f"({part['correct']}/{part['total']})"
        print(f"  {task.upper():8} {part['accuracy']:6.1%} {counted}  [{levels}]")
    print("\nBy Difficulty:")
    names = {'1': 'Easy', '2': 'Medium', '3': 'Hard'}
    for d, part in found['by_difficulty'].items():
        counted = f"({part['correct']}/{part['total']})"
        print(f"  {names.get(d, d):8} {part['accuracy']:6.1%} {counted}")
    if 'timing' in found:
        t, n = found['timing'], found['tokens']
        print(f"\nTiming: avg {t['avg_latency_ms']:.0f}ms, p50 {t['p50_latency_ms']:.0f}ms, p95 "
              f"{t['p95_latency_ms']:.0f}ms")
        print(f"Tokens: {n['prompt_tokens']:,} prompt + {n['completion_tokens']:,} completion = "
              f"{n['prompt_tokens'] + n['completion_tokens']:,} total")
    for error, times in found['errors'].items():
        print(f"Not answered: {times} x {error}")
    print(line)


def draw_of(*parts):
    """Random numbers that depend on the parts alone"""
    return random.Random('/'.join(map(str, parts)))
