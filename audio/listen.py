"""
Always listening: questions are cut out of a stream of sound, as it comes, and answered.

A question is a row of tones. It is over when nothing has sounded for longer than this player's gaps
suggest, so a slow player is given more time. Clicks, noise and speech are no tones.
"""
import shlex
import subprocess
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from audio.files import STREAM_BLOCK, read_wav
from audio.tune import prepared
from configurator import fail
from prepare import LEAD, LOWEST, SAMPLE_RATE, SPACING
from tasks import NO_SYMBOL, decode
from think import converse
from transcribe import UNKNOWN, find_tones, transcribe

WAIT = 0.3                # seconds of silence that end a question, at least
TIMES_ITS_GAPS = 2.0      # or as many times the longest of its last gaps,
LONGEST_WAIT = 1.5        # at most
FIRST_WAIT = 0.6          # after a single tone, whose player may turn out to be slow
SILENCE_BEHIND = 2.0      # seconds behind a question: some tasks are answered there
AHEAD = 0.2               # seconds before the end of the wait the model begins to think
LOOK = 4.0                # seconds of the stream in which tones are looked for
LONGEST_QUESTION = 60.0   # seconds
SHORTEST = 0.045          # seconds of most of its tones
GIVE_UP = 60.0            # seconds without a tone, for who waits for one question only


class Recording(NamedTuple):
    """The sound since the first tone (S,), seconds of silence at its end, and after how many such
    seconds the question is over"""
    sound: torch.Tensor
    quiet: float
    wait: float

    @property
    def is_over(self):
        return self.quiet >= self.wait


def seconds_to_wait(tones):
    """Tones (see transcribe.py) of the last seconds -> how long a silence ends the question"""
    if len(tones.start) < 2:
        return FIRST_WAIT
    gaps = tones.start[1:] - tones.start[:-1] - tones.length[:-1]
    return min(LONGEST_WAIT, max(WAIT, TIMES_ITS_GAPS * float(gaps.max())))


def listen(blocks):
    """Blocks (n,) of sound at 16 kHz -> after each of them the Recording since the last question;
    its sound is empty if there was no tone. Memory does not grow with the stream. A terminal is
    told for how long it has listened, and what it waits for."""
    sound = torch.zeros(0)
    begun = False
    bar = tqdm(bar_format='listening for {elapsed}, {desc}', disable=None, leave=False)
    for block in blocks:
        bar.set_description_str("until it is silent" if begun else "until a tone sounds", False)
        bar.update()
        sound = torch.cat([sound, block])
        recent = sound[-round(LOOK * SAMPLE_RATE):]
        tones = find_tones(recent[None])
        if not begun and len(tones.start):
            begun = True
            first = round((float(tones.start[0]) - LEAD) * SAMPLE_RATE)  # as much as in training
            sound = recent[max(0, first):]
        if not begun:
            sound = recent
            yield Recording(sound[:0], 0.0, FIRST_WAIT)
            continue
        ends = tones.start + tones.length
        quiet = len(recent) / SAMPLE_RATE - float(ends[-1]) if len(ends) else LOOK
        wait = seconds_to_wait(tones) if len(sound) < LONGEST_QUESTION * SAMPLE_RATE else 0.0
        recording = Recording(sound, quiet, wait)
        yield recording
        if recording.is_over:
            sound = sound[:0]
            begun = False
    bar.close()
    if begun:
        yield Recording(sound, 0.0, 0.0)  # the stream has ended


def skip(blocks, seconds):
    """Take so many seconds, to the nearest block, from an iterator of blocks"""
    while seconds > STREAM_BLOCK / SAMPLE_RATE / 2 and (block := next(blocks, None)) is not None:
        seconds -= len(block) / SAMPLE_RATE


def first_question(blocks):
    """Blocks of sound -> the first question (S,); empty if none begins within a minute"""
    waited = 0
    for recording in listen(blocks):
        if recording.is_over:
            return recording.sound
        waited += not len(recording.sound)
        if waited * STREAM_BLOCK > GIVE_UP * SAMPLE_RATE:
            break
    return torch.zeros(0)


def is_question(sound):
    """Is a sound (S,) a row of tones? A voice, too, has pitches now and then that pass for tones,
    but brief ones, or with other partials beside them."""
    tones = find_tones(sound[None])
    if not (tones.symbol < UNKNOWN).any():
        return False
    return not tones.voiced[0] and bool(tones.length.median() > SHORTEST)


def with_room(sound):
    """A recorded question (S,) -> with silence behind it, for an answer that stands there"""
    return F.pad(sound, (0, round(SILENCE_BEHIND * SAMPLE_RATE)))


def without_room(answer, question):
    """An answer (S,) without the silence behind its question (S,) in which nothing is played"""
    sounds = answer[len(question):].abs() > 1e-3
    places = torch.arange(1, len(sounds) + 1)
    return answer[:len(question) + int((sounds * places).amax())]


def think_about(model, sound, think, **how):
    """A recorded question (S,) -> as think.converse: the answers of every pass (1, any), and how
    many passes changed something (1,)"""
    question = with_room(sound)[None].to(model.start.device)
    # Where a slow player's gaps are cut down, the answer is shorter than the question.
    n_samples = question.shape[1]
    answers, passes = converse(model, *prepared(question), think=think, **how)
    return [F.pad(x, (0, n_samples - x.shape[1])) for x in answers], passes


def answers_to(model, blocks, think, **how):
    """Blocks of sound -> after each of them the Recording, and None or, if that was a question, its
    answers as in think_about. Up to `think` passes; how: what else think.conversation takes."""
    thought = None
    for recording in listen(blocks):
        # The model thinks while it waits. If the player goes on, that was in vain.
        if recording.quiet < recording.wait - AHEAD:
            thought = None
        elif thought is None and is_question(recording.sound):
            thought = think_about(model, recording.sound, think, **how)
        yield recording, thought if recording.is_over else None
        if recording.is_over:
            thought = None


# --- what the doors say and write ---

def without_verdict(asked, answered):
    """What is said of a recording whose right answer is not known"""
    return f"the scorer heard {asked or 'nothing'} asked, and {answered or 'nothing'} answered"


def answer_stream(model, blocks, think, save, play='', **how):
    """Answer each question in blocks of sound at once -> how many there were. save(name, sound)
    writes a WAV and gives its path without .wav; play is a command that plays one."""
    n = 0
    for recording, thought in answers_to(model, blocks, think, **how):
        if not thought:
            continue
        question = recording.sound
        answer = without_room(thought[0][-1][0].cpu(), question)
        number = '000' if play else f'{n:03d}'  # what has been played need not be kept
        save(number + '_question', question)
        path = save(number + '_answer', answer) + '.wav'
        tqdm.write(without_verdict(transcribe(question[None])[0], transcribe(answer[None])[0]))
        n += 1
        if play:
            began = time.time()
            if subprocess.run([*shlex.split(play), path]).returncode:
                fail(f"{play} {path} failed", 1)
            # The microphone has heard it; an answer is no question.
            skip(blocks, time.time() - began)
    return n


def hear_file(path, verbose, is_one_of_many):
    """Print what is played in a sound file, and with verbose a row for each tone"""
    wave = read_wav(path)
    tones = find_tones(wave[None])
    text = decode(tones.symbol)
    note = ''
    if NO_SYMBOL in text:
        note = f'  ({NO_SYMBOL} is a sound that is no symbol)'
    elif not text:
        note = '  (silence)' if wave.abs().max() < 1e-3 else '  (sound, but no steady tone)'
    print((f"{path}: " if is_one_of_many else '') + text + note)
    if not verbose:
        return
    print(f"{'symbol':>6} {'start s':>8} {'length s':>8} {'hertz':>8} {'error Hz':>8} "
          f"{'level dB':>8}")
    columns = tones.symbol, tones.start, tones.length, tones.hertz, tones.level
    for s, start, length, hertz, level in zip(*[t.tolist() for t in columns], strict=True):
        error = (hertz - LOWEST + SPACING / 2) % SPACING - SPACING / 2
        print(f"{decode([s]):>6} {start:8.3f} {length:8.3f} {hertz:8.1f} {error:+8.1f} "
              f"{level:8.1f}")
