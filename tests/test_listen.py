"""
Always listening: where questions begin and end, and what is no question.

$ python -m pytest tests/test_listen.py
"""
import io
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from scipy.signal import resample_poly

from audio.files import SAMPLE_RATE, read_stream, write_wav
from audio.listen import WAIT, answers_to, first_question, is_question, listen, skip
from prepare import Rhythm, make_rhythm, play, play_text
from tasks import encode
from tests.helpers import files_in, gen, output, path_of, refusal, tiny_model
from transcribe import transcribe


def silence(seconds):
    return torch.zeros(round(seconds * SAMPLE_RATE))


def with_gaps(text, seconds):
    """A question whose gaps are so long"""
    r = make_rhythm(1, len(text), gen())
    end = (r.length + seconds).cumsum(1)
    rhythm = Rhythm(end - seconds - r.length, *r[1:5], end, r.overtones)
    return play(torch.tensor([encode(text)]), rhythm, round(float(end[0, -1]) * SAMPLE_RATE))[0]


def questions(sound, size=800):
    """What listen() takes for questions, as the scorer hears them"""
    over = [h for h in listen(iter(sound.split(size))) if h.is_over]
    return [transcribe(h.sound[None])[0] for h in over]


STREAM = torch.cat([
    silence(5), play_text('987%65'), silence(1), play_text('(())', 1), silence(1),
    play_text('5', 2), silence(1), play_text('CABB', 3),
])


@pytest.mark.parametrize('size', [800, 137, 4000])
@pytest.mark.parametrize('noise', [0, 0.2])
def test_each_question_of_a_stream_is_one(size, noise):
    sound = STREAM + noise * torch.randn(len(STREAM), generator=gen())
    assert questions(sound, size) == ['987%65', '(())', '5', 'CABB']


@pytest.mark.parametrize('gap', [0.015, 0.05, 0.2, 0.5])
def test_a_slow_player_is_given_time(gap):
    sound = torch.cat([with_gaps('98765', gap), silence(2), with_gaps('(())', gap), silence(2)])
    assert questions(sound) == ['98765', '(())']


def test_a_question_ends_soon():
    sound = torch.cat([play_text('98765'), silence(1)])
    over = next(h for h in listen(iter(sound.split(800))) if h.is_over)
    assert WAIT <= over.quiet < WAIT + 0.1


def test_memory_does_not_grow():
    noise = 0.1 * torch.randn(800, generator=gen())
    tone = play(torch.tensor([[3]]), Rhythm(*[torch.tensor([[x]]) for x in (
        0., 100., 0., 0.6, 0., 100.)], torch.zeros(1, 0)), 100 * SAMPLE_RATE)[0]
    for sound, seconds in ((noise.repeat(400), 0), (tone, 61)):
        longest = max(len(h.sound) for h in listen(iter(sound.split(4000))))
        assert longest <= seconds * SAMPLE_RATE


def test_what_is_no_question():
    t = torch.arange(8000) / SAMPLE_RATE
    voice = sum(a * torch.sin(2 * torch.pi * 120 * k * t) for k, a in ((1, .2), (2, .3), (4, .6)))
    click = F.pad(torch.ones(20), (4000, 4000))
    noise = 0.3 * torch.randn(16000, generator=gen())
    chord = play_text('A') + play_text('I')
    for sound in (voice, click, noise, chord, silence(1)):
        assert not is_question(sound)
    assert is_question(play_text('5'))
    bad = [silence(1)]
    for sound in (voice, click, noise, play_text('17%5'), click, voice, silence(1)):
        bad += [sound, silence(1)]
    stream = iter(torch.cat(bad).split(800))
    found = [r.sound for r, thought in answers_to(tiny_model(), stream, think=1) if thought]
    assert [transcribe(sound[None])[0] for sound in found] == ['17%5']


def test_it_has_thought_when_the_question_is_over(monkeypatch):
    thoughts = []

    def note(model, question, lengths, **settings):
        thoughts.append(transcribe(question)[0])
        return [question], torch.zeros(1)

    monkeypatch.setattr('audio.listen.converse', note)
    for recording, thought in answers_to(tiny_model(), iter(STREAM.split(800)), think=1):
        if len(recording.sound) and recording.wait * 0.8 < recording.quiet < recording.wait:
            assert thought is None and thoughts[-1] == transcribe(recording.sound[None])[0]
    assert thoughts == ['987%65', '(())', '5', 'CABB']


def test_a_slow_question_is_answered_in_its_own_time_though_the_model_hears_it_hurried():
    lengths = []

    def between(waves):
        lengths.append(waves.shape[1])
        return waves

    blocks = torch.cat([with_gaps('98765', 0.5), silence(2)]).split(800)
    found = [each for each in answers_to(tiny_model(), iter(blocks), 3, between=between)
             if each[1]]
    [(recording, (answers, _))] = found
    n = len(recording.sound) + 2 * SAMPLE_RATE
    # The model has begun to think 0.2 s before the wait was over.
    assert all(n - 0.25 * SAMPLE_RATE < answer.shape[1] <= n for answer in answers)
    assert lengths and max(lengths) < n - SAMPLE_RATE


def test_the_first_question_is_waited_for_a_minute():
    assert transcribe(first_question(iter(STREAM.split(800)))[None]) == ['987%65']
    never = iter(silence(100).split(800))
    assert len(first_question(never)) == 0
    assert len(list(never)) > 600


@pytest.mark.parametrize('size', [640, 800])
def test_an_answer_is_not_heard_however_long_a_block_is(size):
    blocks = iter(silence(3).split(size))
    skip(blocks, 2.0)
    assert abs(len(torch.cat(list(blocks))) - SAMPLE_RATE) <= 400
    skip(blocks, 1.0)  # past the end


# --- the stream as a file ---

@pytest.mark.parametrize('rate', [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize('size', [None, 0, 0x7fffffff, 0xffffffff])
def test_a_stream_of_any_rate(rate, size, tmp_path):
    wave = play_text('98%7').double().numpy()
    there = (20000 * resample_poly(wave, rate, SAMPLE_RATE)).astype('int16')
    path = tmp_path / 'q.wav'
    wavfile.write(path, rate, there)
    data = bytearray(path.read_bytes())
    if size is not None:
        data[40:44] = size.to_bytes(4, 'little')
    blocks = list(read_stream(io.BytesIO(bytes(data))))
    assert all(600 < len(block) < 1000 for block in blocks)
    sound = torch.cat(blocks)
    assert transcribe(sound[None]) == ['98%7']
    n = len(wave)  # the last block, too, although it is no whole one
    shift = 0 if rate == SAMPLE_RATE else len(blocks[0])  # a block is heard once the next is there
    off = sound[shift:][:n] - torch.from_numpy(wave[:n] * 20000 / 32768)
    assert off.abs().max() < 0.02


@pytest.mark.parametrize('sent, says', [
    (b'', 'not a WAV file'),
    (b'no sound', 'not a WAV file'),
    (b'RIFF....WAVE', 'not a whole WAV file'),
    (b'RIFF....WAVEjunk\xff\xff\xff\x7f', 'not a whole WAV file'),
    (b'RIFF....WAVEdata....', 'no rate or size of samples'),
])
def test_what_is_no_wav_in_a_pipe_gets_a_sentence(sent, says):
    with pytest.raises(ValueError, match=f'^standard input: .*{says}'):
        next(read_stream(io.BytesIO(sent)))


# --- the command ---

@pytest.fixture(scope='module')
def stream(tmp_path_factory):
    path = tmp_path_factory.mktemp('stream') / 'stream.wav'
    write_wav(str(path), STREAM)
    return path


def test_listening_to_a_pipe(stream, trained, tmp_path):
    command = [sys.executable, path_of('sample.py'), f'--out_dir={trained}', '--listen=true',
               '--wav=-', f'--sample_dir={tmp_path}']
    with open(stream, 'rb') as f:
        p = subprocess.run(command, stdin=f, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    lines = p.stdout.splitlines()
    assert lines[0].startswith('listening') and 'silent for 0.3 s' in lines[0]
    assert len([line for line in lines if line.startswith('the scorer heard')]) == 4
    assert 'the scorer heard 987%65 asked' in p.stdout
    assert files_in(tmp_path) == [f'{i:03d}_{kind}.wav' for i in range(4)
                                            for kind in ('answer', 'question')]


def test_answers_are_played(stream, trained, tmp_path, capsys):
    player = tmp_path / 'player'
    player.write_text(f'#!/bin/sh\necho "$1" "$2" >> {tmp_path}/played\n')
    player.chmod(0o755)
    flags = [f'--out_dir={trained}', '--listen=true', f'--wav={stream}',
             f'--sample_dir={tmp_path}/samples']
    output(capsys, 'sample.py', *flags, f'--play={player} -q')
    played = (tmp_path / 'played').read_text().splitlines()
    assert played == [f'-q {tmp_path}/samples/000_answer.wav'] * 4
    player.write_text('#!/bin/sh\nexit 3\n')
    assert 'failed' in refusal(capsys, 'sample.py', *flags, f'--play={player}', code=1)


@pytest.mark.parametrize('flags, says', [
    (['--listen=true'], 'listen needs a sound'),
    (['--wav=q.wav', '--play=aplay'], 'needs listen=true'),
    (['--listen=true', '--wav=q.wav', '--play=no_such_player'], 'a command that plays WAV files'),
])
def test_what_listening_needs(flags, says, trained, capsys):
    assert says in refusal(capsys, 'sample.py', f'--out_dir={trained}', *flags)
