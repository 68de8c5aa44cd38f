"""
How a model thinks: long lines of which only the ends are heard, silence that is not, a calculator
between passes, a head that says when to stop.

$ python -m pytest tests/test_think.py
"""
import pytest
import torch
import torch.nn.functional as F

from lab.calculator import answer_calls
from lab.conditions import as_heard
from lab.ends import brief_pass
from model import Answer, JMambaConfig, MiniJMamba
from prepare import make_rhythm, play_plainly, play_text, split_batches
from tasks import REST, TASKS, encode
from tests.helpers import TINY, gen, texts_of, tiny_model
from think import SILENT_LEAD, conversation, converse
from transcribe import find_tones, transcribe

DIGITS = '9876543210' * 4 + '%325%7'


class Player(MiniJMamba):
    """What stands for a trained model: it plays what it hears, (S,), changed by a function of its
    tones, and perhaps says that this is the answer."""

    def __init__(self, change, halt=None):
        super().__init__(JMambaConfig(**TINY))
        self.change = change
        self.halts = iter(halt or ())
        self.says_halt = halt is not None
        self.heard = []  # texts, in order

    def encode(self, frames, question=None):
        return question

    def answer(self, memory, frames, lengths, may_generate=None, hiding=None):
        waves = []
        for wave in memory:
            tones = find_tones(wave[None])
            self.heard += transcribe(wave[None])
            waves.append(self.change(wave.clone(), tones))
        halt = torch.tensor([next(self.halts)]) if self.says_halt else None
        s = self.spectrum
        frames = s.log(s.magnitude(s.stft(torch.stack(waves))))
        return Answer(frames, None, halt)


def silent(wave, tones, k):
    """A sound (S,) without its tone k"""
    begin, seconds = max(float(tones.start[k]), 0.02), float(tones.length[k])
    wave[int(16000 * (begin - 0.02)):int(16000 * (begin + seconds + 0.02))] = 0
    return wave


def with_row(wave, tones, row):
    """A sound (S,) that plays other symbols in the places of its tones; those that stay the same
    sound as they did"""
    row = torch.tensor(row)
    new = row != tones.symbol
    for k in new.nonzero()[:, 0]:
        wave = silent(wave, tones, k)
    rhythm = make_rhythm(1, len(row), gen())
    rhythm = rhythm._replace(start=tones.start[None].float(), length=tones.length[None].float())
    return wave + play_plainly(torch.where(new, row, REST)[None], rhythm, len(wave))[0]


def with_text(change):
    """Changes a sound by what is heard in it: change(text) -> another of as many symbols"""
    def changed(wave, tones):
        return with_row(wave, tones, encode(change(transcribe(wave[None])[0])))

    return changed


# --- long lines ---

def first_pass(change, text=DIGITS, noise=0.0):
    """What a model that changes the sound so hears in its first pass of a long question, and the
    questions and answers (1, S)"""
    model, question = Player(change), play_text(text)[None]
    question = question + noise * torch.randn(question.shape, generator=gen())
    answer, _ = next(conversation(model, question, think=2, brief=brief_pass))
    return model.heard, question, answer


def test_the_ends_of_a_long_line_are_heard_and_no_more_if_they_agree():
    heard, question, answer = first_pass(lambda wave, tones: silent(wave, tones, 1))
    assert heard == ['987654' + '10%325%7', '987654321' + '543210%325%7']
    assert transcribe(answer) == [DIGITS[:1] + DIGITS[2:]]
    far, was = answer[:, 16000:], question[:, 16000:]
    gain = far.norm() / was.norm()
    torch.testing.assert_close(far, gain * was)  # all else stays as it was


def last_and_second(wave, tones):
    return silent(silent(wave, tones, 1), tones, -1)


@pytest.mark.parametrize('change', [
    lambda wave, tones: silent(wave, tones, -1),                    # at the end
    lambda wave, tones: silent(wave, tones, 9),                     # where it was cut
    last_and_second,                                                # at both ends
    lambda wave, tones: silent(wave, tones, len(tones.start) % 2),  # not the same twice
    lambda wave, tones: wave,                                       # nowhere
])
def test_what_changes_elsewhere_counts_only_where_all_is_heard(change):
    heard, question, answer = first_pass(change)
    assert [len(text) < len(DIGITS) for text in heard] == [True] * (len(heard) - 1) + [False]
    assert transcribe(answer) == transcribe(change(question[0], find_tones(question))[None])


@pytest.mark.parametrize('sound', ['gap_0.5', 'tempo_0.5', 'tempo_1.6', 'gap_0.05'])
def test_of_a_slow_player_as_many_tones_are_heard(sound):
    b = as_heard(next(split_batches('mod', 'ood_digits_20', 4)), sound)
    model = Player(lambda wave, tones: wave)
    next(conversation(model, b.question, b.lengths, think=2, brief=brief_pass))
    assert model.heard[:4] == [text[:6] + text[-8:] for text in texts_of(b.asked)]


@pytest.mark.parametrize('text, noise', [('987654%325%7', 0.0), (DIGITS, 0.1)])
def test_short_lines_and_noisy_ones_are_heard_whole(text, noise):
    heard, *_ = first_pass(lambda wave, tones: silent(wave, tones, 1), text, noise)
    assert heard == [text]


def test_more_of_the_beginning_is_heard_where_that_was_too_little():
    """A number of three digits that moves changes seven tones."""
    text = '963%970%' + DIGITS

    def change(wave, tones):
        return silent(wave, tones, 6) if transcribe(wave[None])[0].startswith('963%970%') else wave

    heard, _, answer = first_pass(change, text)
    assert transcribe(answer) == ['963%97%' + DIGITS]
    assert len(heard) > 2
    assert max(map(len, heard)) < 40


@pytest.mark.parametrize('text', [
    '885915%980%488%245%123%60%30%15%5',  # heard as 885915%30%15%5, or 885915%3%60%30%15%5
    '7997399%517%823%185%76%385%471%70%3992%95',  # heard as 7997399%51, or 7997399%5
    pytest.param('98765432109876543%980%488%245%12', marks=pytest.mark.long),
    pytest.param('1234567890123456789012345678%90%7', marks=pytest.mark.long),
])
def test_what_is_cut_is_not_mistaken_for_another_divisor(text):
    """Whoever divides without a mistake, whatever it hears, comes to the right answer."""
    def divided(wave, tones):
        line = TASKS['mod'].next_line(tones.symbol[None])[0].tolist()
        return with_row(wave, tones, line) if transcribe(wave[None])[0].strip('%') else wave

    question = play_text(text)[None]
    *_, (answer, _) = conversation(Player(divided), question, think=300, brief=brief_pass)
    assert transcribe(answer) == [TASKS['mod'].solve(text)]


def test_a_line_whose_ends_say_nothing_is_no_longer_heard_in_parts():
    """One tone after the other goes, at the end; then nothing changes any more."""
    def change(wave, tones):
        return wave if transcribe(wave[None])[0].endswith('%3') else silent(wave, tones, -1)

    question, heard = play_text(DIGITS)[None], {}
    for brief in (brief_pass, None):
        model = Player(change)
        *_, (answer, passes) = conversation(model, question, think=9, brief=brief)
        assert transcribe(answer) == [DIGITS[:-4]]
        assert passes.tolist() == [4]
        heard[brief] = [len(text) > 40 for text in model.heard]
    assert heard[None] == 5 * [True]
    assert heard[brief_pass] == 2 * (8 * [False] + [True]) + 3 * [True]


@pytest.mark.parametrize('lead, heard_at', [(0.3, 0.3), (20, SILENT_LEAD)])
def test_silence_in_front_is_not_heard_and_moves_nothing(lead, heard_at):
    """Tones are heard from a second of silence on, and the answer sounds where they did."""
    begun = []

    def change(wave, tones):
        begun.append(float(tones.start[0]))
        return silent(wave, tones, 0) if transcribe(wave[None])[0].startswith('9') else wave

    wave = F.pad(play_text('98%7'), (int(16000 * lead), 0))[None]
    *_, (answer, passes) = conversation(Player(change), wave, think=3)
    assert begun[0] == pytest.approx(heard_at, abs=0.08)
    assert transcribe(answer) == ['8%7']
    assert passes.tolist() == [1]
    left = find_tones(wave).start[1:]
    torch.testing.assert_close(find_tones(answer).start, left, atol=0.002, rtol=0)


# --- what is heard, and when it ends ---

def test_digital_silence_is_never_heard():
    """The encoder hears faint noise, always the same; what is pointed at has none."""
    model, encoded, answered = tiny_model(), [], []
    encode_frames, answer_frames = model.encode, model.answer

    def encode(frames, question=None):
        encoded.append(frames)
        return encode_frames(frames, question)

    def answer(memory, frames, *more):
        answered.append(frames)
        return answer_frames(memory, frames, *more)

    model.encode, model.answer = encode, answer
    question = torch.zeros(2, 16000)
    converse(model, question)
    converse(model, question)
    noise = model.hear(0.01 * torch.randn(2, 16000, generator=gen()))
    assert torch.equal(*encoded)
    assert encoded[0].mean() == pytest.approx(float(noise.mean()), rel=0.05)
    assert not question.any()
    assert answered[0].max() < 1e-3


def test_it_ends_when_what_is_played_is_what_was_heard():
    """Two questions of one batch, of which one changes once."""
    model = Player(with_text(lambda text: {'98%7': '28%7'}.get(text, text)))
    questions = [F.pad(play_text(text), (0, 12800))[:12800] for text in ('98%7', '12%')]
    answers, passes = converse(model, torch.stack(questions), think=16)
    assert passes.tolist() == [1, 0]
    assert [transcribe(answer) for answer in answers] == 2 * [['28%7', '12%']]
    assert model.heard == ['98%7', '12%', '28%7']  # what has not changed is not heard again


def test_it_ends_after_as_many_passes_as_it_may_have():
    model = Player(with_text(lambda text: text.translate(str.maketrans('ABC', 'BCA'))))
    answers, passes = converse(model, play_text('AAB')[None], think=4)
    assert [transcribe(answer)[0] for answer in answers] == ['BBC', 'CCA', 'AAB', 'BBC']
    assert passes.tolist() == [4]


@pytest.mark.parametrize('halting, wanted, n', [(True, '76', 2), (False, '6', 3)])
def test_a_model_that_says_so_is_not_asked_again(halting, wanted, n):
    model = Player(lambda wave, tones: silent(wave, tones, 0), halt=[-1.0, 2.0, -1.0])
    answers, passes = converse(model, play_text('9876')[None], think=3, halting=halting)
    assert transcribe(answers[-1]) == [wanted]
    assert passes.tolist() == [n]


@pytest.mark.parametrize('gain, decibels', [(0.5, -6), (3.0, 2)])
def test_nothing_is_played_louder_than_the_loudest_tone_of_a_question(gain, decibels):
    sounds = []
    for k in (1.0, gain):
        model = Player(lambda wave, tones: k * wave)  # noqa: B023
        sounds += converse(model, play_text('CAB')[None])[0]
    was, now = map(find_tones, sounds)
    assert now.symbol.tolist() == encode('CAB')
    assert now.level.max() - was.level.max() == pytest.approx(decibels, abs=1)


@pytest.mark.parametrize('gain', [0.004, 4.0])
def test_a_recording_is_answered_alike_however_loud(gain):
    model = Player(lambda wave, tones: wave)
    sounds = [converse(model, k * play_text('CAB')[None])[0][0] for k in (1.0, gain)]
    assert model.heard == ['CAB', 'CAB']
    torch.testing.assert_close(*sounds, atol=1e-3, rtol=0)


# --- a calculator ---

CALLS = with_text(lambda text: text.replace('%', '=', 1))


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
    now = answer_calls(wave)
    assert transcribe(now) == [heard]
    if played == heard:
        assert torch.equal(now, wave)
    else:  # the remainder ends where the divisor ended
        ends = find_tones(now).start[-1], find_tones(wave).start[-1]
        assert abs(ends[0] - ends[1]) < 0.02


def test_what_is_called_between_passes_is_what_is_heard_next():
    question = play_text('987%65%7')[None]
    answers, _ = converse(Player(CALLS), question, think=9, between=answer_calls)
    assert [transcribe(answer)[0] for answer in answers] == ['12%7', '5', '5']
    answers, _ = converse(Player(CALLS), question, think=9)
    assert transcribe(answers[-1]) == ['987=65=7']
