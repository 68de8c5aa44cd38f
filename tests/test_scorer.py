"""
The scorer: what is heard in a waveform, and what is said of a model's mistakes.

$ python -m pytest tests/test_scorer.py
"""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from scipy.signal import resample_poly

import score
from files import read_wav
from prepare import make_batch, make_rhythm, max_samples, play, play_text
from score import edit_distance, edits, find_tones, transcribe
from tasks import SYMBOLS, decode, encode
from tests.helpers import gen, tiny_model

# --- sound to symbols ---

@pytest.mark.parametrize('rate', [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
def test_every_symbol_is_heard_at_every_rate(rate, tmp_path):
    symbols = SYMBOLS[:-1] if rate == 8000 else SYMBOLS  # the last lies at the edge of its band
    x = resample_poly(play_text(symbols).numpy().astype(np.float64), rate, 16000)
    stereo = np.stack([x, 0.5 * x], 1)
    kinds = {
        'u8': ((x + 1) * 127.5).round().astype(np.uint8),
        'i16': (x * 32767).astype(np.int16),
        'i32': (stereo * (2 ** 31 - 1)).astype(np.int32),
        'f32': stereo.astype(np.float32),
    }
    for kind, samples in kinds.items():
        path = str(tmp_path / f'{kind}.wav')
        wavfile.write(path, rate, samples)
        wave = read_wav(path)
        assert transcribe(wave[None]) == [symbols], kind
        assert wave.mean().abs() < 0.01, kind  # 0 is silence


def test_24_bit_and_gain(tmp_path):
    pcm = (play_text('ABBA').numpy() * (2 ** 23 - 1)).astype('<i4').tobytes()
    samples = b''.join(pcm[i:i + 3] for i in range(0, len(pcm), 4))
    form = np.array([1, 1], '<u2').tobytes()           # PCM, one channel
    form += np.array([16000, 48000], '<u4').tobytes()  # samples and bytes a second
    form += np.array([3, 24], '<u2').tobytes()         # bytes and bits a sample
    head = b'WAVEfmt ' + len(form).to_bytes(4, 'little') + form
    head += b'data' + len(samples).to_bytes(4, 'little')
    size = len(head) + len(samples)
    (tmp_path / 'a.wav').write_bytes(b'RIFF' + size.to_bytes(4, 'little') + head + samples)
    wave = read_wav(str(tmp_path / 'a.wav'))
    assert (wave - play_text('ABBA')).abs().max() < 1e-5
    assert transcribe(wave[None] * 0.01) == ['ABBA']


def tone(hertz):
    """A second, (1, S), in which a sine sounds for 100 ms"""
    t = torch.arange(16000) / 16000
    return 0.5 * (torch.sin(2 * np.pi * hertz * t) * ((t > 0.3) & (t < 0.4)))[None]


def test_silence_and_noise_are_no_symbols():
    assert transcribe(torch.zeros(1, 16000)) == ['']
    assert transcribe(1e-5 * torch.randn(1, 16000, generator=gen())) == ['']
    heard = transcribe(torch.randn(50, 32000, generator=gen()))
    assert not set(''.join(heard)) - {'*'}


@pytest.mark.parametrize('hertz', [250, *range(450, 3100, 100), 5000])
def test_a_pitch_between_or_beyond_the_symbols_is_none(hertz):
    assert transcribe(tone(hertz)) == ['*']


@pytest.mark.parametrize('low, high', [(500, 600), (500, 1500), (1200, 2900)])
def test_two_tones_at_once_are_no_symbol(low, high):
    assert set(transcribe(tone(low) + tone(high))[0]) <= {'*'}


def test_two_tones_without_a_gap_are_two():
    assert transcribe(tone(500) + tone(600).roll(1600, 1)) == ['AB']


@pytest.mark.parametrize('decibels, wrong_at_most', [(None, 0), (-5, 100), (-10, 1000)])
def test_ten_thousand_symbols_clean_and_in_noise(decibels, wrong_at_most):
    g = gen(1)
    symbols = torch.randint(len(SYMBOLS), (500, 20), generator=g)
    wave = play(symbols, make_rhythm(500, 20, g), max_samples(20))
    wanted = [decode(row) for row in symbols]
    if decibels is not None:
        power = wave[wave.abs() > 0].square().mean()  # of the tones alone
        noise = torch.randn(wave.shape, generator=g)
        wave = wave + power.sqrt() * 10 ** (-decibels / 20) * noise
    wrong = sum(edit_distance(h, w) for h, w in zip(transcribe(wave), wanted, strict=True))
    assert wrong <= wrong_at_most


def test_tones_are_measured():
    rhythm = make_rhythm(1, 2, gen())
    tones = find_tones(play(torch.tensor([encode('A9')]), rhythm, 6400))
    hertz = torch.tensor([500.0, 2900.0]) + rhythm.detune[0]
    level = 20 * rhythm.amplitude[0].log10()
    assert tones.hertz.tolist() == pytest.approx(hertz.tolist(), abs=0.3)
    assert tones.start.tolist() == pytest.approx(rhythm.start[0].tolist(), abs=0.012)
    assert tones.length.tolist() == pytest.approx(rhythm.length[0].tolist(), abs=0.02)
    assert tones.level.tolist() == pytest.approx(level.tolist(), abs=1)


def test_a_tone_too_short_for_a_symbol_is_found_when_asked_for():
    rhythm = make_rhythm(1, 4, gen())
    rhythm.length[0, 2] = 0.025
    wave = play(torch.tensor([encode('CABL')]), rhythm, 12800)
    assert transcribe(wave) == ['CAL']
    assert transcribe(wave, shortest=2) == ['CABL']


def test_what_is_heard_in_a_file(tmp_path, capsys):
    for sound, wave, note in (
        ('symbols', play_text('ABC'), 'ABC'),
        ('between', tone(450)[0], '*  (* is a sound that is no symbol)'),
        ('silence', torch.zeros(16000), '  (silence)'),
        ('noise', 0.05 * torch.randn(3200, generator=gen()), '  (sound, but no steady tone)'),
    ):
        path = str(tmp_path / f'{sound}.wav')
        wavfile.write(path, 16000, wave.numpy())
        score.hear_file(path, verbose=False, named=False)
        assert capsys.readouterr().out == note + '\n', sound


# --- mistakes ---

@pytest.mark.parametrize('a, b, insertions, deletions, substitutions', [
    ('', 'AB', 0, 2, 0),
    ('AB', 'AB', 0, 0, 0),
    ('ABC', 'AC', 1, 0, 0),
    ('12', '21', 0, 0, 2),
    ('A', 'BCA', 0, 2, 0),
    ('ABD', 'XABC', 0, 1, 1),
    ('AAB', 'AB', 1, 0, 0),
])
def test_edits(a, b, insertions, deletions, substitutions):
    assert edits(a, b) == (insertions, deletions, substitutions)
    assert edit_distance(a, b) == insertions + deletions + substitutions


@pytest.mark.parametrize('heard, read, brief, kind', [
    ('ABD', 'ABD', 'ABD', 'reasoning'),
    ('ABD', 'ABC', 'ABD', 'rendering'),
    ('ABBC', 'ABC', 'ABBC', 'timing'),
    ('AB', 'ABC', 'ABC', 'timing'),
    ('ABD', 'ABE', 'ABD', 'both'),
    ('ABC', 'ABC', 'ABC', 'unfinished'),
])
def test_kinds_of_mistakes(heard, read, brief, kind):
    assert score.diagnose('mirror', 'ABC', 'ABC', heard, read, brief)['kind'] == kind


@pytest.mark.parametrize('task, line, wanted, heard, found', [
    ('mod', '711%345%7', '366%345%7', '466%345%7',
     {'digits': 3, 'divisor digits': 3, 'quotient': 2, 'A < B': False, 'borrows': 2,
      'substitutions': 1}),
    ('mod', '%65%7', '%7', '7', {'digits': 0, 'quotient': 0, 'A < B': True, 'deletions': 1}),
    ('bracket', '(()))(', 'X', 'V', {'length': 6, 'deepest': 2, 'first violation': 4}),
    ('bracket', 'V', 'V', 'X', {'kind': 'reasoning'}),
    ('reverse', 'AB', 'BA', 'B', {'kind': 'reasoning', 'deletions': 1}),
])
def test_what_was_hard_about_a_line(task, line, wanted, heard, found):
    assert found.items() <= score.diagnose(task, line, wanted, heard, heard, heard).items()


def test_logits_are_read_where_the_tones_are(monkeypatch):
    b = make_batch('mirror', 'train', 20, gen())
    T = b.question.shape[1] // 800
    # A token's frames reach from 240 samples before it to its end.
    middle = (torch.arange(T) * 800 + 280) / 16000
    slot = (middle[None, :, None] >= b.rhythm.start[:, None]).sum(2) - 1
    at = slot.clamp(min=0)
    ends = (b.rhythm.start + b.rhythm.length).gather(1, at)
    sounding = (slot >= 0) & (middle < ends)
    symbol = b.asked.gather(1, at).where(sounding, -1)
    label = symbol.where(symbol >= 0, len(SYMBOLS))
    logits = F.one_hot(label, len(SYMBOLS) + 1).float()

    def reply(model, question, heard, lengths):
        return None, logits

    monkeypatch.setattr(score, 'reply', reply)
    read = score.read_logits(tiny_model(), b.question, b.lengths, b.rhythm)
    assert read == [decode(row) for row in b.asked]


# --- a model's accuracy ---

def plays(monkeypatch, *texts):
    """Let every model, asked one question, play these texts one after the other"""
    def conversation(model, question, lengths, think, hurry=True):
        n_samples = question.shape[1]
        for text in texts[:think]:
            wave = F.pad(play_text(text), (0, n_samples))[None, :n_samples]
            yield wave, torch.tensor([len(texts) - 1 if think > 1 else 0])

    monkeypatch.setattr(score, 'conversation', conversation)


def one_question(task, split):
    b = next(score.prepare.split_batches(task, split, 1))
    return decode(b.asked[0]), decode(b.wanted[0])


def test_a_right_answer_counts(monkeypatch):
    asked, wanted = one_question('mirror', 'iid')
    plays(monkeypatch, wanted)
    found = score.evaluate(None, 'mirror', 'iid', 1)
    assert found == {'exact_match': 1, 'token_accuracy': 1, 'edit_distance': 0, 'wire': 1, 'n': 1,
                     'distinct': 1, 'mistakes': [], 'shortcuts': {}, 'confused': {}}


def test_a_wrong_answer_is_reported(monkeypatch):
    asked, wanted = one_question('mirror', 'iid')
    heard = wanted[:-1]
    plays(monkeypatch, heard)
    found = score.evaluate(None, 'mirror', 'iid', 1)
    mistake = {'task': 'mirror', 'split': 'iid', 'asked': asked, 'wanted': wanted, 'heard': heard}
    assert found['mistakes'] == [mistake]
    assert (found['exact_match'], found['edit_distance'], found['wire']) == (0, 1, 1)
    assert found['token_accuracy'] == pytest.approx(1 - 1 / len(wanted))


def test_the_question_itself_is_no_answer_to_brackets(monkeypatch):
    asked, _ = one_question('bracket', 'iid')
    plays(monkeypatch, asked)
    found = score.evaluate(None, 'bracket', 'iid', 1)
    assert (found['exact_match'], found['wire']) == (0, 0)


def test_accuracy_by_passes(monkeypatch):
    asked, wanted = one_question('mod', 'iid')
    _, *lines = score.TASKS['mod'].working(asked)
    assert len(lines) > 1
    plays(monkeypatch, *lines, wanted)
    found = score.evaluate(None, 'mod', 'iid', 1, think=16)
    assert found['by_passes'] == {k: int(k >= len(lines)) for k in (1, 2, 4, 8, 16)}
    assert found['passes'] == len(lines)
    assert found['passes_by_lines'] == {len(lines): len(lines)}
    assert (found['exact_match'], found['stopped']) == (1, 1)


def test_the_first_wrong_line_is_diagnosed(monkeypatch):
    asked, wanted = one_question('mod', 'iid')
    lines = score.TASKS['mod'].working(asked)
    wrong = lines[1][:-1] + ('1' if lines[1][-1] != '1' else '2')
    plays(monkeypatch, wrong, wrong)
    monkeypatch.setattr(score, 'read_logits', lambda *inputs: [wrong])
    found = score.evaluate(None, 'mod', 'iid', 1, think=16, errors=True)
    [mistake] = found['mistakes']
    assert (mistake['line'], mistake['kind']) == (1, 'reasoning')
    assert (mistake['line_asked'], mistake['line_wanted']) == (asked, lines[1])
    assert (mistake['line_heard'], mistake['line_read']) == (wrong, wrong)
    assert [transcribe(sound[None])[0] for sound in mistake['sounds']] == [asked, wrong]


def test_a_control_changes_what_is_asked(monkeypatch):
    asked, wanted = one_question('mirror', 'iid')
    plays(monkeypatch, wanted)
    found = score.evaluate(None, 'mirror', 'iid', 1, sound='noise')
    assert (found['exact_match'], found['wire']) == (1, 0)
