"""
The four puzzles, each held to a checker that shares no code with it.

$ python -m pytest tests/test_puzzles.py
"""
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from checkpoint import extended
from prepare import play_text
from tasks import SYMBOLS, TASKS, decode, draw, n_labels, solve, task_of
from tests.helpers import gen, texts_of, tiny_model
from transcribe import transcribe

PUZZLES = ['logic', 'dyna', 'filtro', 'inducto']
PYTHON = {'&': '{} and {}', '|': '{} or {}', '^': '{} != {}', 'n': 'not ({} and {})',
          'o': 'not ({} or {})', '~': 'not {}'}


def circuit(text):
    """By Python's own expressions"""
    if text[0] == '^':
        return str(text.count('1') % 2)
    body, asked = text.split('?')
    known = {}
    for name, value, op, inputs in re.findall(r'([A-J])(?:([01])|([&|^no~])([A-J]+?))'
                                              r'(?=[A-J][01&|^no~]|$)', body):
        if value:
            known[name] = value == '1'
        else:
            known[name] = eval(PYTHON[op].format(*inputs), {}, known)
    return str(int(known[asked]))


def state(text):
    """By numpy"""
    body, asked = text.split('?')
    letters = re.match('[A-J]+', body)[0]
    row = np.array(list(letters))
    for op, digits in re.findall(r'([&|^n])(\d+)', body):
        i, j = int(digits[0]), int(digits[-1])
        if op == '&':
            row[[i, j]] = row[[j, i]]
        elif op == 'n':
            row[i:j + 1] = np.flip(row[i:j + 1])
        else:
            row = np.roll(row, i if op == '|' else -i)
    if asked.isdigit():
        return row[int(asked)]
    return str(np.argmax(row == asked))


def path(text):
    body, query = text.split('?')
    node = query[0]
    for _ in range(int(query[1])):
        edge = re.search(node + '>(.)', body)
        if not edge:
            return 'X'
        node = edge[1]
    return node


def as_letters(numbers):
    return ''.join('ABCDEFGHIJ'[x % 10] for x in numbers)


def outcomes(text):
    """What each of the sixteen rules makes of a text of at least two letters"""
    x = ['ABCDEFGHIJ'.index(letter) for letter in text]
    n = len(x)
    pairs = [x[i ^ 1] if i ^ 1 < n else x[i] for i in range(n)]
    halves = [x[i // 2 + (i % 2) * ((n + 1) // 2)] for i in range(n)]
    up = [i + 1 for i in x]
    return [as_letters(made) for made in (
        [x[n - 1 - i] for i in range(n)], [x[(i + 1) % n] for i in range(n)],
        [x[(i - 1) % n] for i in range(n)], x[1:], x[:n - 1],
        [x[i] for i in range(0, n, 2)], [x[i] for i in range(1, n, 2)], pairs,
        [x[n - 1], *x[1:n - 1], x[0]], halves, sorted(x), up,
        sorted(x, reverse=True), up[::-1], [*x[2:], x[0]], pairs[::-1],
    )]


def rule(text):
    *shots, asked = text[:-1].split('?')
    known = set(range(16))
    for shot in shots:
        went_in, came_out = shot.split('>')
        known &= {i for i, made in enumerate(outcomes(went_in)) if made == came_out}
    found = {outcomes(asked)[i] for i in known}
    assert len(found) == 1, text  # the examples leave no doubt
    return found.pop()


CHECKERS = {'logic': circuit, 'dyna': state, 'filtro': path, 'inducto': rule}


@pytest.mark.parametrize('task, split', [(t, s) for t in PUZZLES for s in TASKS[t].splits])
def test_answers_are_right_and_in_their_places(task, split):
    n = 20 if split == 'ood_shots_10' else 100
    q, a = draw(task, split, n, gen(3))
    for asked, wanted in zip(q, a, strict=True):
        text, answered = decode(asked), decode(wanted)
        assert answered == CHECKERS[task](text) == solve(task, text)
        sounds = (wanted >= 0).nonzero()[:, 0]
        last = int((asked >= 0).nonzero()[-1, 0])
        end = last + 5 if task == 'inducto' else last
        assert sounds.tolist() == list(range(end + 1 - len(answered), end + 1))
        assert TASKS[task].slots(text) == end + 1  # and so the window tells no length


@pytest.mark.parametrize('task', ['logic', 'dyna', 'filtro'])
def test_a_line_of_working_keeps_its_slots(task):
    q, a = draw(task, 'train', 1000, gen(4), aloud=True, pauses=3)
    to_go = set()
    for asked, line in zip(q, a, strict=True):
        was, now = decode(asked), decode(line)
        if len(was) == 1:  # the answer stays
            assert torch.equal(asked, line)
            continue
        lines = TASKS[task].working(was)
        assert now == lines[1]
        assert lines[-1] == CHECKERS[task](was)
        assert (line[asked < 0] < 0).all()  # no symbol sounds where none was
        to_go.add(len(lines) - 1)
    assert {1, 2, 3} <= to_go


def test_no_path_of_more_than_three_edges_is_walked_in_training():
    counts = set()
    for text in texts_of(draw('filtro', 'train', 1000, gen(11))[0]):
        counts.add(int(text[-1]))
        assert len(TASKS['filtro'].working(text)) - 1 <= 3 + (path(text) == 'X')
    assert counts == set(range(1, 10))
    assert all(path(t) == 'X' for t in texts_of(draw('filtro', 'ends', 100, gen(12))[0]))


@pytest.mark.parametrize('task, split, shortcut', [
    ('logic', 'xor_matters', '| for ^'),
    ('dyna', 'moved', 'the state unchanged'),
    ('filtro', 'not_last', 'the last edge'),
    ('filtro', 'not_last', 'one step'),
    ('inducto', 'no_copy', 'copy what is asked'),
    ('inducto', 'no_copy', 'what was shown last'),
])
def test_shortcuts_fail_where_they_must(task, split, shortcut):
    def share(of):
        texts = texts_of(draw(task, of, 200, gen(5))[0])
        tried = TASKS[task].shortcuts[shortcut]
        return sum(tried(text) == CHECKERS[task](text) for text in texts) / len(texts)

    assert share(split) == 0
    assert share('iid') > 0 or task == 'inducto'


def test_every_rule_and_gate_and_operation_is_trained():
    def asked(task):
        return ''.join(texts_of(draw(task, 'train', 2000, gen(6))[0]))

    assert set(asked('logic')) == set('ABCDEFGHIJ01?&|^~no')
    assert set(asked('dyna')) >= set('ABCDEFGHIJ01234567?&|^n')
    states = {(len(state), k) for state, k in re.findall(r'([A-J]{5,})[|^](\d)', asked('dyna'))}
    assert states >= {(n, str(k)) for n in (5, 6) for k in range(1, n)}
    assert set(asked('filtro')) == set('ABCDEFGHIJ0123456789>?')
    rules = set()
    for text in texts_of(draw('inducto', 'train', 500, gen(7))[0]):
        first, shown = text.split('?')[0].split('>')
        rules |= {i for i, made in enumerate(outcomes(first)) if made == shown}
    assert rules >= set(range(12))


@pytest.mark.parametrize('task', PUZZLES)
def test_an_example_is_known_for_its_task_and_others_are_refused(task):
    example = TASKS[task].example
    assert task_of(example, list(TASKS)) == task
    assert len(solve(task, example)) in (1, 3)
    for wrong in ('AB', example[:-2], example + '%', '?'):
        with pytest.raises(ValueError):
            solve(task, wrong)


@pytest.mark.parametrize('task, text', [
    ('inducto', 'AB>BA?ACD>'),            # many rules fit, and differ
    ('inducto', 'ABCDEF>FEDCBA?BCDEFG>'),  # six letters have no room
    ('inducto', 'AB>B?A>'),               # an answer of nothing
    ('filtro', 'A>BA>C?A1'),              # two ways lead from A
    ('dyna', 'ABCn20?2'),                 # reversed from behind
    ('dyna', 'ABC^7?2'),
    ('logic', 'A1A0?A'),
])
def test_what_could_mean_two_things_is_no_question(task, text):
    with pytest.raises(ValueError):
        solve(task, text)


def test_no_rule_that_is_trained_fits_questions_of_level_3():
    for text in texts_of(draw('inducto', 'ood_level_3', 300, gen(9))[0]):
        shots = [shot.split('>') for shot in text[:-1].split('?')[:-1]]
        fits = [all(outcomes(a)[i] == b for a, b in shots) for i in range(16)]
        assert any(fits) and not any(fits[:12])


def test_the_new_symbols_are_heard():
    text = '?>&|^~no='
    assert transcribe(play_text(text)[None])[0] == text


def test_weights_for_fewer_symbols_are_extended():
    old = tiny_model(n_symbols=27, n_so_far=102)
    new = extended(old, replace(old.config, n_symbols=len(SYMBOLS), n_so_far=n_labels()))
    sound = play_text('17%5')[None]
    lengths = torch.tensor([sound.shape[1]])
    with torch.no_grad():
        was, now = old(sound, lengths), new(sound, lengths)
    assert torch.equal(now.frames, was.frames)
    assert torch.equal(now.logits[..., :27], was.logits[..., :27])
    assert torch.equal(now.logits[..., -1], was.logits[..., -1])  # no symbol
    assert torch.equal(now.so_far[..., :102], was.so_far)
