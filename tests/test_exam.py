"""
An exam: a model is asked, the scorer listens, and the numbers are what a hand count gives.

$ python -m pytest tests/test_exam.py
"""
import pytest
import torch

from exam import edit_distance, evaluate, validate
from lab.calculator import answer_calls
from lab.conditions import as_heard
from prepare import split_batches
from tasks import TASKS, encode
from tests.helpers import texts_of
from tests.test_think import Player, silent, with_row, with_text
from transcribe import transcribe


def questions(task, split, n):
    """Questions and answers in text, as they are asked"""
    [b] = split_batches(task, split, n)
    return texts_of(b.asked), texts_of(b.wanted)


def repeats(wave, tones):
    return wave


def divides(wave, tones):
    """Plays the next line of working, without a mistake"""
    line = TASKS['mod'].next_line(tones.symbol[None])[0].tolist()
    return with_row(wave, tones, line)


def spoils(texts):
    """One answer is right, and one each is wrong in its own way."""
    _, second, third, fourth = texts

    def change(wave, tones):
        text = transcribe(wave[None])[0]
        if text == second:
            other = 'B' if text[0] != 'B' else 'C'
            return with_row(wave, tones, encode(other + text[1:]))
        if text == third:
            return silent(wave, tones, -1)
        if text == fourth:
            return silent(wave, tones, 0)
        return wave

    return change


# --- numbers ---

def test_numbers_are_what_a_hand_count_gives():
    asked, wanted = questions('mirror', 'iid', 4)
    assert len(set(asked)) == 4
    found = evaluate(Player(spoils(asked)), 'mirror', 'iid', 4)

    first = 'B' if asked[1][0] != 'B' else 'C'
    heard = [asked[0], first + asked[1][1:], asked[2][:-1], asked[3][1:]]
    right = sum(x == y for text, other in zip(asked, heard, strict=True)
                for x, y in zip(text, other, strict=False))
    assert found == {
        'exact_match': 1 / 4,
        'token_accuracy': right / sum(map(len, asked)),
        'edit_distance': 3 / 4,
        'wire': 1,
        'n': 4,
        'distinct': 4,
        'shortcuts': {},
        'confused': {asked[1][0] + first: 1},
        'mistakes': [
            {'task': 'mirror', 'split': 'iid', 'asked': asked[i], 'wanted': wanted[i],
             'heard': heard[i]} for i in (1, 2, 3)
        ],
    }


def test_what_a_sceptic_would_try_is_tried_on_the_questions():
    asked, wanted = questions('bracket', 'iid', 30)
    found = evaluate(Player(repeats), 'bracket', 'iid', 30)
    assert (found['exact_match'], found['wire']) == (0, 0)
    as_many = ['V' if text.count('(') == text.count(')') else 'X' for text in asked]
    share = sum(x == y for x, y in zip(as_many, wanted, strict=True)) / 30
    assert found['shortcuts']['equal counts'] == pytest.approx(share)
    assert 0.5 < share < 1
    assert found['edit_distance'] == sum(map(edit_distance, asked, wanted)) / 30


def test_a_question_that_comes_twice_is_not_two():
    found = evaluate(Player(repeats), 'mirror', 'val_ood', 30, low=1, high=1)
    assert found['n'] == 30
    assert 5 < found['distinct'] <= 10


def test_after_how_many_passes_an_answer_is_right():
    asked, wanted = questions('mod', 'small', 8)
    lines = [len(TASKS['mod'].working(text)) - 1 for text in asked]
    assert min(lines) < 8 in lines and 8 < max(lines) <= 16
    found = evaluate(Player(divides), 'mod', 'small', 8, think=32)
    for k, share in found['by_passes'].items():
        assert share == sum(n <= k for n in lines) / 8
    assert list(found['by_passes']) == [1, 2, 4, 8, 16, 32]
    assert found['passes'] == sum(lines) / 8
    assert found['passes_by_lines'] == {n: n for n in sorted(set(lines))}
    assert (found['exact_match'], found['stopped']) == (1, 1)

    # With as many passes as some need, those that need more are wrong, and have not stopped.
    found = evaluate(Player(divides), 'mod', 'small', 8, think=8)
    assert found['exact_match'] == sum(n <= 8 for n in lines) / 8
    assert found['stopped'] == sum(n < 8 for n in lines) / 8
    for mistake in found['mistakes']:
        assert mistake['heard'] == TASKS['mod'].working(mistake['asked'])[8]
    assert 'by_passes' not in evaluate(Player(divides), 'mod', 'small', 8)


def test_the_same_is_asked_whatever_the_sound():
    asked, sounds = {}, {}

    def noted(name):
        def note(b):
            asked[name], sounds[name] = texts_of(b.asked), b.question
            return b

        return note

    for name, more in (('clean', {}), ('real', {'sound': 'real'}), ('others', {'seed': 1})):
        evaluate(Player(repeats), 'mirror', 'iid', 4, change=noted(name), **more)
    assert asked['clean'] == asked['real'] == questions('mirror', 'iid', 4)[0]
    assert not torch.equal(sounds['clean'], sounds['real'])
    assert asked['others'] != asked['clean']


# --- what an exam may be given ---

def test_a_change_is_heard_by_the_model_and_by_the_scorer():
    model = Player(repeats)
    found = evaluate(model, 'mirror', 'iid', 3, change=lambda b: as_heard(b, 'noise'))
    assert (found['exact_match'], found['wire']) == (0, 0)
    asked, _ = questions('mirror', 'iid', 3)
    assert not set(model.heard) & set(asked)


def test_a_door_stands_before_the_model_alone():
    calls, model = [], Player(repeats)

    def door(waves, lengths):
        calls.append((waves, lengths))
        return 0 * waves, lengths

    found = evaluate(model, 'mirror', 'iid', 3, door=door)
    [b] = split_batches('mirror', 'iid', 3)
    [(waves, lengths)] = calls
    assert torch.equal(waves, b.question) and torch.equal(lengths, b.lengths)
    assert model.heard == ['', '', '']
    assert (found['exact_match'], found['wire']) == (0, 1)


def test_each_mistake_is_handed_on_with_what_was_heard_and_played():
    asked, _ = questions('mirror', 'iid', 4)
    told = []

    def on_mistake(mistake, one, sounds, heard):
        told.append((one, heard))
        mistake['seen'] = len(told)
        assert texts_of(one.asked) == transcribe(one.question) == [mistake['asked']]
        assert texts_of(one.wanted) == [mistake['wanted']]
        assert len(one.rhythm.start) == len(one.lengths) == 1
        assert [transcribe(sound)[0] for sound in sounds] == heard
        assert heard[-1] == mistake['heard']

    found = evaluate(Player(spoils(asked)), 'mirror', 'iid', 4, on_mistake=on_mistake)
    assert [m['asked'] for m in found['mistakes']] == asked[1:]
    assert [m['seen'] for m in found['mistakes']] == [1, 2, 3]

    # Of one that thinks, all passes are handed on.
    told.clear()
    asked, _ = questions('mod', 'small', 8)
    evaluate(Player(divides), 'mod', 'small', 8, think=3, on_mistake=on_mistake)
    long = [text for text in asked if len(TASKS['mod'].working(text)) > 4]
    assert [texts_of(one.asked)[0] for one, _ in told] == long
    for text, (_, heard) in zip(long, told, strict=True):
        assert heard == TASKS['mod'].working(text)[1:4]


CALLS = with_text(lambda text: text.replace('%', '=', 1))


@pytest.mark.parametrize('between, right', [(answer_calls, 1), (None, 0)])
def test_a_conversation_is_told_what_it_is_told(between, right):
    found = evaluate(Player(CALLS), 'calculator', 'small', 4, think=9, how={'between': between})
    assert found['exact_match'] == right


# --- while training ---

def validated(model, tasks, aloud, think=1, level=1.0, n=4):
    return validate(model, tasks, aloud, n, 1, 'cpu', think, 'clean', level)


def test_validation_asks_each_task_in_and_out_of_distribution():
    model = Player(repeats).train()
    found = validated(model, ['mirror', 'reverse'], [])
    assert found['val'] == found['val_ood'] == {'mirror': 1, 'reverse': 0}
    assert found['token_accuracy']['mirror'] == 1
    assert found['edit_distance']['mirror'] == 0 < found['edit_distance']['reverse']
    assert sum(len(text) >= 30 for text in model.heard) == 8  # of val_ood
    assert model.training


def test_only_what_is_worked_out_aloud_is_asked_again():
    n_heard = {}
    for aloud in ([], ['mod']):
        model = Player(divides)
        validated(model, ['mod'], aloud, think=3, n=2)
        n_heard[len(aloud)] = len(model.heard)
    assert n_heard[0] == 2 * 2 < n_heard[1]  # two questions of two splits


def test_what_is_easy_is_validated_alone():
    longest = {}
    for level in (0.0, 1.0):
        model = Player(repeats)
        validated(model, ['mirror'], [], level=level, n=8)
        longest[level] = max(len(text) for text in model.heard if len(text) < 30)
    assert longest[0.0] == 3 < longest[1.0]


def test_who_may_call_a_calculator_is_answered_in_validation():
    found = validated(Player(CALLS), ['calculator'], ['calculator'], think=9)
    assert found['val']['calculator'] == 1
