"""
What kind of mistake is it? For score.py --errors=True: each wrong answer is diagnosed at the first
line of the working that is wrong, and written down with its sounds.
"""
import json
import os
import re
from collections import Counter
from functools import partial

import torch

from audio.files import SAMPLE_RATE, write_wav
from exam import edits
from system import claim, clear, write_text, write_whole
from tasks import REST, TASKS, decode
from think import reply, with_silence
from transcribe import transcribe

KEPT = 20   # mistakes of a split whose sounds are kept
BRIEF = 2   # frames of a tone, 20 ms, that are enough to tell that it was played too short
EDITS = 'insertions', 'deletions', 'substitutions'


# --- one mistake ---

def read_logits(model, question, lengths, rhythm):
    """What the symbol logits say, at the middle of each tone -> a list of texts. To tell kinds of
    mistakes apart, never for a score."""
    c = model.config
    question = with_silence(model, question)
    spectrum = model.spectrum.stft(question)
    logits = reply(model, question, spectrum, lengths).logits  # (B, T, n_symbols + 1)
    middle = (rhythm.start + rhythm.length / 2) * SAMPLE_RATE
    token = ((middle - c.middle) / c.token).round().long()
    token = token.clamp(0, logits.shape[1] - 1)
    symbols = logits.argmax(2).gather(1, token)
    counts = (symbols < c.n_symbols) & (middle < lengths[:, None])
    return [decode(row) for row in torch.where(counts, symbols, REST)]


def kind_of(wanted, heard, read, brief):
    """A line as it should be, as it is heard in the audio, as it is read from the logits, and as it
    is heard if tones of 20 ms count as well -> the kind of mistake:

    unfinished  the line is right, and there were no passes left
    reasoning   the logits say the same wrong thing
    both        audio and logits are wrong in different ways
    timing      the tones are right, but some run together, fall apart or are too short
    rendering   the logits are right, the tones are not"""
    def once(text):
        """AAB -> AB"""
        return re.sub(r'(.)\1+', r'\1', text)

    if heard == wanted:
        return 'unfinished'
    if heard == read:
        return 'reasoning'
    if read != wanted:
        return 'both'
    if once(wanted) in (once(heard), once(brief)):
        return 'timing'
    return 'rendering'


def hard_parts(task, line):
    """What was hard about a line, a dict of the task's own keys"""
    return TASKS[task].hard(line) if TASKS[task].hard else {}


class Diagnosis:
    """What exam.evaluate calls for each wrong answer, of a model and the tasks that it was taught
    to work out aloud. It adds to the mistake, a dict, what is said of the first wrong line, and the
    sounds of the first KEPT mistakes of each split.

    one is a Batch of one row; answers are what was played in each pass, (1, S) each, and heard are
    the texts that were heard in these."""

    def __init__(self, model, aloud):
        self.model = model
        self.aloud = aloud
        self.kept = Counter()  # by task and split

    @torch.no_grad()
    def __call__(self, mistake, one, answers, heard):
        task = mistake['task']
        lines = [mistake['asked'], mistake['wanted']]
        if task in self.aloud:
            lines = TASKS[task].working(mistake['asked'])
        lines = lines + lines[-1:] * len(heard)  # the answer stays as it is
        wrong = [k for k, text in enumerate(heard) if text != lines[k + 1]]
        k = wrong[0] if wrong else len(heard) - 1

        sounds = [one.question, *answers][k:k + 2]
        read, = read_logits(self.model, sounds[0], one.lengths, one.rhythm)
        brief, = transcribe(sounds[1], BRIEF)
        wanted = lines[k + 1]
        mistake.update(
            line=k + 1,
            line_asked=lines[k],
            line_wanted=wanted,
            line_heard=heard[k],
            line_read=read,
            kind=kind_of(wanted, heard[k], read, brief),
            **dict(zip(EDITS, edits(heard[k], wanted), strict=True)),
            **hard_parts(task, lines[k]),
        )
        split = task, mistake['split']
        if self.kept[split] < KEPT:
            self.kept[split] += 1
            n = int(one.lengths[0])
            mistake['sounds'] = [sound[0, :n].cpu().clone() for sound in sounds]


# --- all of them ---

def most_common(rows, key):
    """How often each value of a key is found in rows, in words"""
    counts = Counter(row[key] for row in rows if key in row)
    return ', '.join(f"{value}: {times}" for value, times in counts.most_common(6))


def print_kinds(mistakes):
    """Print for each split what kinds of mistakes there are, and what was hard about them"""
    by_split = {}
    for m in mistakes:
        by_split.setdefault((m['task'], m['split']), []).append(m)
    print(f"{'task':8} {'split':14} {'wrong':>5}  what is wrong with the first wrong line")
    for (task, split), rows in by_split.items():
        totals = [f"{sum(row[key] for row in rows)} {key}" for key in EDITS]
        kinds = most_common(rows, 'kind')
        print(f"{task:8} {split:14} {len(rows):5}  {kinds}; {', '.join(totals)}")
        for key in ('line', *hard_parts(task, TASKS[task].example)):
            print(f"{'':31}{key:16} {most_common(rows, key)}")


def write_sounds(mistakes, folder, name):
    """Write the sounds that are kept to folder/name/, and into the mistakes where they lie"""
    there = os.path.join(folder, name)
    claim(there)
    clear(there, r'\d+_(question|answer)\.wav')
    for i, m in enumerate(mistakes):
        for part, sound in zip(('question', 'answer'), m.pop('sounds', ()), strict=False):
            m[part] = f'{name}/{i:03d}_{part}.wav'
            path = os.path.join(folder, m[part])
            write_whole(path, partial(write_wav, wave=sound))


def write_errors(mistakes, folder, name):
    """Write diagnosed mistakes to folder/name.jsonl, in a folder that is claimed, and the sounds of
    the first ones to folder/name/; print what kinds there are. ValueError if folder/name/ is
    somebody else's."""
    write_sounds(mistakes, folder, name)
    path = os.path.join(folder, name + '.jsonl')
    write_text(path, ''.join(json.dumps(m) + '\n' for m in mistakes))
    print(f"\nwrote {len(mistakes)} mistakes to {path}, the first ones' sounds to {folder}/{name}")
    print_kinds(mistakes)
