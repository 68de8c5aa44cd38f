"""
The data: what is asked, what is held out, the right answers, and how they sound.

$ python -m pytest tests/test_data.py
"""
import functools
import operator
import re

import numpy as np
import pytest
import torch

import tasks
from prepare import make_batch
from tasks import (
    REST,
    SYMBOLS,
    TASKS,
    bucket_of,
    decode,
    draw,
    encode,
    insert_pauses,
    n_labels,
    so_far,
    solve,
    split_names,
    taken,
    task_of,
)
from tasks.bracket import depth_of
from tests.helpers import gen, texts_of
from transcribe import transcribe


def balanced(text):
    while '()' in text:
        text = text.replace('()', '')
    return not text


# --- held out ---

def is_few(task, text):
    """Questions of which there are too few to hold any out"""
    if task == 'bracket':
        return len(text) <= 6
    return task == 'mod' and len(text) <= 3


@pytest.mark.parametrize('task, drawn_so', [
    ('mirror', {}),
    ('mirror', {'low': 3, 'high': 4}),  # of few questions many are drawn
    ('mod', {}),
    ('mod', {'aloud': True}),
    ('bracket', {}),
    ('reverse', {}),
    ('twice', {'low': 3, 'high': 4}),
])
def test_no_test_question_can_be_trained_on(task, drawn_so):
    found = {}
    for bucket, (split, times, n) in enumerate([
        ('train', 8, 5000),
        ('val', 10, 100),
        ('iid', 10, 100),
    ]):
        g = gen(len(split))
        found[split] = set()
        for _ in range(times):
            q, _ = draw(task, split, n, g, **drawn_so)
            if split == 'train':
                assert (bucket_of(task, q) == bucket).all()
            found[split].update(texts_of(q.tolist()))
    val, test = ({t for t in found[s] if not is_few(task, t)} for s in ('val', 'iid'))
    assert len(val | test) > 50
    assert not val & found['train']
    assert not test & found['train']
    assert not val & test


def test_no_line_of_brackets_that_is_trained_on_is_a_test_question():
    lines = set()
    for seed in range(5):
        lines.update(texts_of(draw('bracket', 'train', 5000, gen(seed), aloud=True)[0].tolist()))
    test = set(texts_of(draw('bracket', 'iid', 1000, gen())[0]))
    assert len(test) > 50
    assert not test & lines


def test_the_hash_hears_symbols_and_not_where_they_are():
    q = draw('mirror', 'train', 500, gen())[0]
    padded = insert_pauses([q], 7, gen(1))[0]
    assert not torch.equal(padded[:, :10], q)
    assert torch.equal(bucket_of('mirror', padded), bucket_of('mirror', q))
    letters = torch.randint(12, (20000, 6), generator=gen(2))
    share = torch.bincount(bucket_of('mirror', letters), minlength=3) / 20000
    assert share.tolist() == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


# --- labels against an independent check ---

def remainder(text):
    """The answer to a question or line of mod in text. What is silent in front of a % is 0."""
    number, *divisors = text.split('%')
    if not divisors:
        return text
    if not all(int(part or 0) for part in divisors):
        return 'X'
    return str(functools.reduce(operator.mod, map(int, divisors), int(number or 0)))


@pytest.mark.parametrize('split', TASKS['bracket'].splits)
def test_brackets_are_balanced_or_not(split):
    q, a = draw('bracket', split, 400, gen(2))
    texts, answers = texts_of(q), texts_of(a)
    assert answers == ['V' if balanced(text) else 'X' for text in texts]
    assert 190 <= answers.count('V') <= 210
    wrong = [text for text, verdict in zip(texts, answers, strict=True) if verdict == 'X']
    surplus = [abs(text.count('(') - text.count(')')) for text in wrong]
    if split in ('wrong_order', 'one_swap'):
        assert set(surplus) == {0}
    elif split == 'extra_bracket':
        assert set(surplus) == {1}
        assert {text[-1] for text in wrong} == {'(', ')'}
    elif split == 'odd':
        assert {len(text) % 2 for text in wrong} == {1}
    elif split == 'runs':
        assert {len(re.sub(r'(.)\1+', r'\1', text)) for text in texts} == {1, 2}
        assert max(map(len, wrong)) > 80
    elif split == 'far':
        assert max(surplus) > 80
    else:
        assert {len(text) % 2 for text in wrong} == {0, 1}


@pytest.mark.parametrize('split', TASKS['mod'].splits)
def test_remainders_are_right(split):
    q, a = draw('mod', split, 400, gen(3))
    asked = TASKS['mod'].splits[split].arguments
    kind = asked.get('kind')
    for text, answer in zip(texts_of(q), texts_of(a), strict=True):
        number, *divisors = text.split('%')
        assert answer == remainder(text)
        assert (answer == 'X') == (kind == 'no_answer') or kind == 'mixed'
        assert kind == 'mixed' or (kind == 'bare') == (not divisors)
        if kind == 'zeros':
            assert any(part[0] == '0' and part != '0' for part in [number, *divisors])
        if kind == 'divides':
            for divisor in map(int, divisors):
                assert int(number) >= divisor
                number = int(number) % divisor
        if 'quotient' in asked:
            low, high = asked['quotient']
            assert low <= int(number) // int(divisors[0]) <= high


@pytest.mark.parametrize('task', ['mirror', 'reverse', 'twice'])
def test_letters_are_played_back(task):
    for split in TASKS[task].splits:
        q, a = draw(task, split, 200, gen(4))
        for text, answer in zip(texts_of(q), texts_of(a), strict=True):
            assert answer == {'mirror': text, 'reverse': text[::-1], 'twice': text + text}[task]
    seen = set(''.join(texts_of(draw(task, 'train', 1000, gen())[0])))
    assert seen == set('ABCDEFGHIJ')


def test_unseen_letters_are_heard_in_their_splits_alone():
    for text in texts_of(draw('mirror', 'ood_compose_20', 200, gen(4))[0]):
        assert set(text) & set('KL')
        assert len(text) == 20


@pytest.mark.parametrize('task, pauses', [('mod', 0), ('mod', 5), ('bracket', 3)])
def test_what_a_question_comes_to_so_far(task, pauses):
    q = draw(task, 'train', 300, gen(6), pauses=pauses)[0]
    for asked, labels in zip(q, so_far(task, q).tolist(), strict=True):
        for i, label in enumerate(labels):
            text = decode(asked[:i + 1])
            if task == 'mod':
                answer = remainder(text)
                known = '%' in text and answer != 'X' and int(answer) < 99
                wanted = int(answer) if known else -1
            else:
                depth = [0, *depth_of(text)]
                wanted = 100 if depth[-1] == 0 else 101
                if min(depth) < 0:
                    wanted = 99
            assert label == wanted


@pytest.mark.parametrize('text, labels', [
    ('DJAGE&13?A', [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]),
    ('DGAJE   ?J', [0, 1, 2, 3, 4, -1, -1, -1, -1, 3]),
    ('D GA JE  ?  2', [0, -1, 1, 2, -1, 3, 4, -1, -1, -1, -1, -1, -1]),
    ('    4', [-1, -1, -1, -1, -1]),
])
def test_the_places_of_letters_are_told(text, labels):
    row = [REST if c == ' ' else encode(c)[0] for c in text]
    found = so_far('dyna', torch.tensor([row]))[0].tolist()
    assert found == [-1 if label < 0 else 102 + label for label in labels]


def test_labels_are_each_task_s_own_whatever_the_order_of_the_registry(monkeypatch):
    def labels():
        found = {}
        for name in TASKS:
            if TASKS[name].so_far:
                q, _ = draw(name, 'train', 500, gen())
                found[name] = set(so_far(name, q).flatten().tolist()) - {-1}
        return found

    before, n = labels(), n_labels()
    for name, mine in before.items():
        others = set().union(*[before[other] for other in before if other != name])
        assert mine and not mine & others
        assert max(mine) < n
    monkeypatch.setattr(tasks, 'TASKS', dict(reversed(TASKS.items())))
    assert labels() == before
    assert n_labels() == n


@pytest.mark.parametrize('task, text, answer', [
    ('mod', '12', '12'),
    ('mod', '987%65%7', '5'),
    ('mod', str(10 ** 40 + 7) + '%10', '7'),
    ('bracket', '()' * 300, 'V'),
    ('bracket', '())(', 'X'),
    ('reverse', 'CABD', 'DBAC'),
    ('twice', 'CAB', 'CABCAB'),
])
def test_questions_of_any_length_are_solved(task, text, answer):
    assert solve(task, text) == answer


@pytest.mark.parametrize('task, text, says', [
    ('bracket', 'AB', "'AB' is not a question of bracket, which asks such things as (()())"),
    ('mod', '5(', "'5(' is not a question of mod, which asks such things as 987%65%7"),
    ('mirror', '', "at least one symbol"),
    ('mirror', 'Az', "'z' is not a symbol"),
])
def test_what_is_no_question_gets_a_sentence(task, text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        solve(task, text)


# --- working ---

def verdict(text):
    if text in ('V', 'X'):
        return text
    return 'V' if balanced(text) else 'X'


@pytest.mark.parametrize('task, answer_to, more', [
    ('mod', remainder, {'pairs': True}),
    ('bracket', verdict, {}),
])
def test_a_line_of_working_is_played_in_place_and_leads_to_the_answer(task, answer_to, more):
    q, a = draw(task, 'train', 2000, gen(5), aloud=True, pauses=4, **more)
    lines_to_go = set()
    for asked, line in zip(q, a, strict=True):
        was, now = decode(asked), decode(line)
        lines = TASKS[task].working(was) if was not in ('V', 'X') else [was]
        assert now == (lines[1] if len(lines) > 1 else was)
        assert lines[-1] == answer_to(was) == answer_to(now)
        lines_to_go.add(len(lines) - 1)

        new = asked != line
        changed = new.nonzero()[:, 0]
        if task == 'mod' and len(changed) and '%' in now:
            assert (asked[changed[-1] + 1:] >= 0).any()
        # No symbol sounds where none was.
        assert (line[new & (asked == REST)] == REST).all()
    assert {0, 1, 2, 3} <= lines_to_go


def test_neighbours_go_on_with_the_same_divisors():
    q, _ = draw('mod', 'train', 2000, gen(5), aloud=True, pauses=4, pairs=True)
    divisors = [text.split('%')[1:] for text in texts_of(q)]
    assert divisors[::2] == divisors[1::2]


@pytest.mark.parametrize('task, lines', [
    ('mod', '987%325%7 662%325%7 337%325%7 12%325%7 12%7 5%7 5'),
    ('mod', '14%7 7%7 %7 0'),
    ('mod', '14%7%5 7%7%5 %7%5 %5 0'),
    ('mod', '702%7%5 2%7%5 2%5 2'),
    ('mod', '086%99 86'),
    ('mod', '0012%04%5 8%04%5 4%04%5 %04%5 %5 0'),
    ('mod', '009'),
    ('mod', '7%0 X'),
    ('mod', '% X'),
    ('mod', '12% X'),
    ('mod', '8%5%%3 3%5%%3 3%%3 X'),
    ('mod', '0%3%2 0%2 0'),
    ('mod', '3'),
    ('bracket', '(()()) () V'),
    ('bracket', '())( )( X'),
])
def test_lines_of_working(task, lines):
    lines = lines.split()
    assert TASKS[task].working(lines[0]) == lines


def test_a_remainder_that_takes_many_lines():
    assert TASKS['mod'].working('12345%1%2')[-1] == '0'


# --- how questions are drawn ---

def test_pauses_are_inserted_into_question_and_answer_alike():
    q, a = draw('mod', 'train', 3000, gen(1), aloud=True)
    longer_q, longer_a = insert_pauses([q, a], 6, gen(2))
    assert longer_q.shape[1] == q.shape[1] + 6
    assert texts_of(longer_q) == texts_of(q)
    assert texts_of(longer_a) == texts_of(a)
    at = [(row >= 0).nonzero()[:, 0] for row in longer_q]
    holes = {int((w.diff() > 1).sum()) for w in at if len(w) > 1}
    assert {0, 1, 2} <= holes
    assert any(int(w[-1]) == longer_q.shape[1] - 1 for w in at)
    assert any(int(w[0]) > 2 for w in at)


def test_silence_may_follow_a_training_question_or_not():
    b = make_batch('mirror', 'train', 200, gen(3), pauses=6)
    assert transcribe(b.question) == texts_of(b.asked)
    last = [int((row >= 0).nonzero()[-1]) for row in b.asked]
    end = b.rhythm.end.gather(1, torch.tensor(last)[:, None])[:, 0]
    behind = (b.lengths / 16000 - end).tolist()
    assert min(behind) > -1e-4
    assert sum(t > 0.1 for t in behind) > 20
    assert sum(t < 0.1 for t in behind) > 20


def test_mixed_symbols_among_the_letters():
    q, a = draw('mirror', 'train', 500, gen(1), mixed_symbols=0.4)
    texts = texts_of(q)
    assert torch.equal(q, a)
    assert all(set(text) & set('ABCDEFGHIJ') for text in texts)
    symbols = ''.join(texts)
    assert set(symbols) == set(SYMBOLS) - set('KL')
    assert 0.15 < sum(c not in 'ABCDEFGHIJ' for c in symbols) / len(symbols) < 0.25


def lengths_at(task, n, level):
    q = draw(task, 'train', n, gen(), level=level)[0]
    return set((q >= 0).sum(1).tolist())


def numbers_at(level):
    q = draw('mod', 'train', 2000, gen(), level=level)[0]
    return [[int(x or 0) for x in text.split('%')] for text in texts_of(q)]


def test_a_level_is_a_difficulty():
    assert lengths_at('mirror', 300, 0.0) == {3}
    assert lengths_at('mirror', 300, 1.0) == set(range(3, 11))
    assert lengths_at('bracket', 2000, torch.tensor(0.0)) == set(range(2, 12))
    assert lengths_at('bracket', 2000, torch.tensor(1.0)) == set(range(2, 14))
    easy, hard = numbers_at(0.0), numbers_at(1.0)
    assert {len(r) for r in easy} == {1, 2, 3, 4}
    assert {len(r) for r in hard} == {1, 2, 3, 4}
    assert max(r[0] for r in easy if len(r) > 1) <= 9
    assert max(r[0] for r in hard if len(r) > 1) > 900000
    assert max(r[1] for r in easy if len(r) > 1) <= 9
    assert max(r[1] for r in hard if len(r) > 1) > 990


@functools.cache
def asked(task, split):
    """500 questions and their answers in text"""
    q, a = draw(task, split, 500, gen(6))
    return list(zip(texts_of(q), texts_of(a), strict=True))


@pytest.mark.parametrize('task, name, chance', [
    (task, name, chance) for task, chance in (('bracket', 0.5), ('mod', 0.0))
    for name in TASKS[task].shortcuts
])
def test_there_are_questions_that_no_shortcut_answers(task, name, chance):
    guess = TASKS[task].shortcuts[name]

    def share(split):
        return np.mean([guess(question) == answer for question, answer in asked(task, split)])

    assert share('train') < 0.85
    assert min(map(share, split_names(task, 'all'))) < chance + 0.1


@pytest.mark.parametrize('name, splits', [
    ('iid', ['iid']),
    ('ood_length', ['ood_length_15', 'ood_length_20', 'ood_length_40']),
    ('ood_len', []),
    ('all', ['iid', 'ood_length_15', 'ood_length_20', 'ood_length_40', 'ood_symbol',
             'ood_compose_20']),
])
def test_names_of_splits(name, splits):
    assert split_names('mirror', name) == splits


@pytest.mark.parametrize('text, names, says', [
    ('ABC', ['mirror'], 'mirror'),
    ('(()', ['mirror'], 'mirror'),  # there is no other
    ('ABC', ['mirror', 'bracket', 'mod'], 'mirror'),
    ('(()', ['mirror', 'bracket', 'mod'], 'bracket'),
    ('5%3', ['mirror', 'bracket', 'mod'], 'mod'),
    ('ABC', ['mod', 'mirror', 'reverse'], "'ABC' could belong to mirror or reverse; name its "
                                          "task, such as --task=mirror"),
    ('A(5', ['mirror', 'bracket', 'mod'], "'A(5' belongs to none of mirror, bracket, mod; name "
                                          "its task, such as --task=mirror"),
])
def test_whose_question_it_is(text, names, says):
    if says in TASKS:
        assert task_of(text, names) == says
    else:
        with pytest.raises(ValueError, match='^' + re.escape(says) + '$'):
            task_of(text, names)


@pytest.mark.parametrize('task, wishes', [
    ('mirror', {'level', 'mixed_symbols'}),
    ('mod', {'level', 'aloud', 'pairs'}),
    ('bracket', {'level', 'aloud'}),
    ('reverse', {'level', 'mixed_symbols'}),
    ('twice', {'level', 'mixed_symbols'}),
])
def test_a_task_is_asked_for_what_it_can_do(task, wishes):
    wanted = taken(task, level=1.0, aloud=True, pairs=True, mixed_symbols=0.4)
    assert set(wanted) == wishes
