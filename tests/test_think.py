"""
How a model thinks: long lines of which only the ends are heard, a tool between passes, a head that
says when to stop.

$ python -m pytest tests/test_think.py
"""
import pytest
import torch

import score
import think
from conditions import change
from losses import last_line
from prepare import LOUDNESS, make_batch, play_text, split_batches
from tasks import TASKS, draw, encode
from tests.helpers import TRAIN, gen, run_here, texts_of, tiny_model
from tests.test_train import checkpoint_in
from think import brief_pass, called, conversation, ends_of, joined, sounding
from transcribe import find_tones, transcribe

DIGITS = '9876543210' * 4 + '%325%7'


def asked(text=DIGITS):
    """A model, a question (1, S) of whole tokens, and its length"""
    model, wave = tiny_model(), play_text(text)[None]
    return model, think.with_silence(model, wave), torch.tensor([wave.shape[1]])


def plays(monkeypatch, change):
    """Let every model play what it hears, changed by change(wave (1, S), its tones)"""
    heard = []

    def one_pass(model, question, spectrum, lengths):
        heard.append(transcribe(question)[0])
        return change(question.clone(), find_tones(question)), None

    monkeypatch.setattr(think, 'one_pass', one_pass)
    return heard


def silent(wave, tones, k):
    """Without its tone k"""
    begin, seconds = max(float(tones.start[k]), 0.02), float(tones.length[k])
    wave[:, int(16000 * (begin - 0.02)):int(16000 * (begin + seconds + 0.02))] = 0
    return wave


def test_ends_are_cut_in_silence():
    _, tape, lengths = asked()
    for front, back in (('987654', '10%325%7'), ('9876543', '543210%325%7')):
        start, cut, end = ends_of(sounding(tape, lengths), len(front), len(back))
        assert end > cut
        parts, n = joined(tape, lengths, start, cut, end)
        assert transcribe(parts) == [front + back] and n <= parts.shape[1]


@pytest.mark.parametrize('sound', ['gap_0.5', 'tempo_0.5', 'tempo_1.6', 'gap_0.05'])
def test_a_slow_player_is_heard_as_many_tones(sound):
    model = tiny_model()
    b = change(next(split_batches('mod', 'ood_digits_20', 8)), sound)
    tape = think.with_silence(model, b.question)  # in faint noise
    start, cut, end = ends_of(sounding(tape, b.lengths), 6, 8)
    assert (end > cut).all()
    parts, _ = joined(tape, b.lengths, start, cut, end)
    for heard, text in zip(transcribe(parts), texts_of(b.asked), strict=True):
        assert heard == text[:6] + text[-8:]


def test_what_changes_at_the_beginning_counts(monkeypatch):
    model, tape, lengths = asked()
    heard = plays(monkeypatch, lambda wave, tones: silent(wave, tones, 1))
    played, sure, _ = brief_pass(model, tape, lengths, torch.tensor([True]))
    assert len(heard) == 2 and len(heard[0]) < len(heard[1]) < len(DIGITS)
    assert sure.all()
    assert transcribe(played) == [DIGITS[:1] + DIGITS[2:]]
    assert torch.equal(played[:, 16000:], tape[:, 16000:])  # all else, to the bit


@pytest.mark.parametrize('change', [
    lambda wave, tones: silent(wave, tones, -1),                        # at the end
    lambda wave, tones: silent(wave, tones, 9),                         # where it was cut
    lambda wave, tones: silent(silent(wave, tones, 1), tones, -1),      # at both ends
    lambda wave, tones: silent(wave, tones, len(tones.start) % 2),      # not the same twice
    lambda wave, tones: wave,                                           # nowhere
])
def test_what_changes_elsewhere_does_not(monkeypatch, change):
    model, tape, lengths = asked()
    plays(monkeypatch, change)
    played, sure, _ = brief_pass(model, tape, lengths, torch.tensor([True]))
    assert not sure.any()
    assert torch.equal(played, tape)


@pytest.mark.parametrize('text, noise', [('987654%325%7', 0), (DIGITS, 0.1)])
def test_short_lines_and_noisy_ones_are_heard_whole(monkeypatch, text, noise):
    model, tape, lengths = asked(text)
    tape = tape + noise * torch.randn(tape.shape, generator=gen())
    heard = plays(monkeypatch, lambda wave, tones: silent(wave, tones, 1))
    _, sure, tried = brief_pass(model, tape, lengths, torch.tensor([True]))
    assert not heard and not sure.any() and not tried.any()


def test_more_of_the_beginning_is_heard_where_that_was_too_little(monkeypatch):
    """A number of three digits that moves changes seven tones."""
    model, tape, lengths = asked('963%970%' + DIGITS)

    def change(wave, tones):
        return silent(wave, tones, 6) if transcribe(wave)[0].startswith('963%970%') else wave

    heard = plays(monkeypatch, change)
    *_, (answer, passes) = conversation(model, tape, lengths, think=2)
    assert transcribe(answer) == ['963%97%' + DIGITS] and passes.tolist() == [1]
    assert all(len(text) < 40 for text in heard[:6])


@pytest.mark.parametrize('text', [
    '885915%980%488%245%123%60%30%15%5',  # heard as 885915%30%15%5, or 885915%3%60%30%15%5
    '98765432109876543%980%488%245%12',
    '1234567890123456789012345678%90%7',
])
def test_what_is_cut_is_not_mistaken_for_another_divisor(monkeypatch, text):
    """Whoever divides without a mistake, whatever it hears, comes to the right answer."""
    def next_row(heard):
        if not heard.strip('%'):
            raise ValueError
        return TASKS['mod'].next_line(torch.tensor([encode(heard)]))[0].tolist()

    def one_pass(model, question, heard, lengths):
        return called(next_row, question), None

    monkeypatch.setattr(think, 'one_pass', one_pass)
    *_, (answer, _) = conversation(tiny_model(), play_text(text)[None], think=300)
    assert transcribe(answer) == [TASKS['mod'].solve(text)]


def test_a_conversation_hears_the_whole_where_the_ends_say_nothing(monkeypatch):
    """Its last tone goes; then nothing changes any more."""
    model, tape, lengths = asked()

    def change(wave, tones):
        return silent(wave, tones, -1) if transcribe(wave)[0].endswith('7') else wave

    heard = plays(monkeypatch, change)
    *_, (answer, passes) = conversation(model, tape, lengths, think=9)
    assert transcribe(answer) == [DIGITS[:-1]] and passes.tolist() == [1]
    assert [len(text) == len(DIGITS) for text in heard[:9]] == 8 * [False] + [True]
    whole = heard.copy()
    heard.clear()
    list(conversation(model, tape, lengths, think=9, brief=False))
    assert len(heard) == 2 < len(whole)


@pytest.mark.parametrize('lead, heard_at', [(0.3, 0.3), (20, think.LEAD)])
def test_silence_in_front_is_not_heard_and_moves_nothing(monkeypatch, lead, heard_at):
    """Tones are heard from a second of silence on, and the answer sounds where they did."""
    model, begun = tiny_model(), []
    wave = torch.nn.functional.pad(play_text('98%7'), (int(16000 * lead), 0))[None]

    def change(wave, tones):
        begun.append(float(tones.start[0]))
        return silent(wave, tones, 0) if transcribe(wave)[0].startswith('9') else wave

    plays(monkeypatch, change)
    *_, (answer, passes) = conversation(model, wave, think=3)
    assert begun[0] == pytest.approx(heard_at, abs=0.08)
    left = find_tones(wave).start[1:]
    assert transcribe(answer) == ['8%7'] and passes.tolist() == [1]
    torch.testing.assert_close(find_tones(answer).start, left, atol=0.002, rtol=0)


# --- a tool ---

@pytest.mark.parametrize('played, heard', [
    ('987=65%7', '12%7'),
    ('12=7', '5'),
    ('7=0', 'X'),
    ('7=0%5', 'X'),
    ('700=7%5', '0%5'),
    ('987654321987654321=12%7%0', '9%7%0'),
    ('987%65%7', '987%65%7'),  # no call
    ('9=8=7', '9=8=7'),
    ('AB=C', 'AB=C'),
])
def test_a_calculator_answers_in_the_place_of_the_division(played, heard):
    wave = play_text(played)[None]
    now = called(TASKS['calculator'].tool, wave)
    assert transcribe(now) == [heard]
    if played == heard:
        assert torch.equal(now, wave)
    else:  # the remainder ends where the divisor ended
        ends = find_tones(now).start[-1], find_tones(wave).start[-1]
        assert abs(ends[0] - ends[1]) < 0.02


def test_a_model_calls_until_nothing_is_left_to_divide(monkeypatch):
    model = tiny_model()
    model.tool = TASKS['calculator'].tool
    question = play_text('987%65%7')[None]

    def one_pass(model, question, heard, lengths):
        return called(lambda text: encode(text.replace('%', '=', 1)), question), None

    monkeypatch.setattr(think, 'one_pass', one_pass)
    texts = [transcribe(answer)[0] for answer, _ in conversation(model, question, think=9)]
    assert texts == ['12%7', '5', '5']


def test_who_may_call_is_answered_in_validation_and_afterwards(tmp_path, monkeypatch):
    """Every question is played as a call of its own division."""
    def one_pass(model, question, heard, lengths):
        return called(lambda text: encode(text.replace('%', '=', 1)), question), None

    monkeypatch.setattr(think, 'one_pass', one_pass)
    names = ['calculator']
    found = score.validate(tiny_model(), names, names, 20, 1, 'cpu', 9, 'clean', 1)
    assert found['val']['calculator'] == 1
    flags = ['--tasks=calculator', '--aloud=calculator', *TRAIN, f'--out_dir={tmp_path}']
    assert run_here('train.py', *flags, '--test_samples=0')[0] == 0
    for flag, right in (('--tool=True', 1.0), ('--tool=False', 0.0)):
        flags = ['--split=small', '--num_samples=20', flag, f'--out_dir={tmp_path}']
        _, names = run_here('score.py', *flags)
        assert names['scores']['calculator']['small']['exact_match'] == right


def test_working_and_calls_of_the_calculator():
    task = TASKS['calculator']
    assert task.working('987%65%7') == ['987%65%7', '12%7', '5']
    q, calls = draw('calculator', 'train', 200, gen(), aloud=True)
    for text, call in zip(texts_of(q), texts_of(calls), strict=True):
        assert call == text.replace('%', '=', 1)


# --- when to stop ---

def test_what_is_the_last_line():
    b = make_batch('mod', 'train', 200, gen(), aloud=True)
    for wanted, last in zip(texts_of(b.wanted), last_line('mod', b, True), strict=True):
        assert bool(last) == ('%' not in wanted)
    b = make_batch('calculator', 'train', 200, gen(), aloud=True)
    for wanted, last in zip(texts_of(b.wanted), last_line('calculator', b, True), strict=True):
        assert bool(last) == ('=' not in wanted)
    b = make_batch('mirror', 'train', 20, gen())
    assert last_line('mirror', b, False).all()


def test_a_model_that_says_so_is_not_asked_again(monkeypatch):
    model, tape, lengths = asked('9876')
    says = iter([-1.0, 2.0, -1.0])

    def one_pass(model, question, heard, lengths):
        return silent(question.clone(), find_tones(question), 0), torch.tensor([next(says)])

    monkeypatch.setattr(think, 'one_pass', one_pass)
    *_, (answer, passes) = conversation(model, tape, lengths, think=3)
    assert transcribe(answer) == ['76'] and passes.tolist() == [2]
    says = iter([-1.0, 2.0, -1.0])
    *_, (answer, passes) = conversation(model, tape, lengths, think=3, halting=False)
    assert transcribe(answer) == ['6'] and passes.tolist() == [3]


def test_only_the_head_learns(tmp_path):
    folder, head = tmp_path / 'a', tmp_path / 'b'
    flags = ['--tasks=mod', '--aloud=mod', *TRAIN, '--test_samples=0']
    assert run_here('train.py', *flags, f'--out_dir={folder}')[0] == 0
    flags += [f'--init_from={folder}', '--halting=True', f'--out_dir={head}']
    assert run_here('train.py', *flags, '--learns=halt')[0] == 0
    was, now = checkpoint_in(folder)['model'], checkpoint_in(head)['model']
    assert now.keys() - was.keys() == {'halt.weight', 'halt.bias'}
    assert all(torch.equal(was[key], now[key]) for key in was)
    assert now['halt.bias'].abs() > 0
    assert run_here('train.py', *flags, '--learns=hald', '--overwrite=true')[0] == 2


def test_nothing_is_played_louder_than_the_loudest_tone_of_a_question():
    model = tiny_model()
    question = think.with_silence(model, play_text('CAB')[None])
    heard = model.spectrum.stft(question)
    s = model.spectrum
    lengths = torch.tensor([question.shape[1]])
    peaks = []
    for gain in (0.5, 3.0):
        frames = s.log(gain * s.magnitude(heard))
        peaks.append(s.magnitude(s.stft(think.played(model, frames, heard, lengths))).max())
    assert peaks[0] == pytest.approx(float(0.5 * s.magnitude(heard).max()), rel=0.05)
    assert peaks[1] < 1.5 * LOUDNESS  # three times as loud would be over 1.5
