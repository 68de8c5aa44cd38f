"""
Ask a trained model and listen to its answer.

$ python sample.py --out_dir=out/mirror --start=ABCA     # a question in symbols, played in tones
$ python sample.py --out_dir=out/mirror --wav=my.wav     # or a recording of one
$ python sample.py --out_dir=out/mirror --num_samples=8  # or so many questions of a test split
$ python sample.py --init_from=release --start='(()())'  # of the weights that come with the code
$ arecord -f S16_LE -r 16000 | python sample.py --init_from=release --listen=true --wav=-

Writes to out_dir/samples: 000_question.wav, 000_answer.wav, ..., a spectrogram of each, and
index.html, a page to look at and listen to them. A model that was taught to work aloud hears its
own answers until they no longer change: 000_pass_1.wav, 000_pass_2.wav, ...

With listen=true it answers one question after another, for as long as the sound lasts, and writes
questions and answers only. A question is over when it has been silent for 0.3 s, or for twice as
long as the gaps of who plays it.
"""
from configurator import SEEDS, bounds, choices, configure, fail, names_of

# --- settings ---
# which model
out_dir = 'out/mirror'  # folder of the checkpoint, and of samples/
init_from = 'out_dir'   # or release: the weights that come with the code; a file; hf:user/name
# what it is asked
start = ''              # the question in symbols, such as ABCA
wav = ''                # or a WAV file, in which start, if given, is played; - is standard input
listen = False          # answer every question in wav, for as long as it lasts
play = ''               # when listening: a command that plays a WAV, such as aplay
task = ''               # which task is asked, if a question in symbols could belong to several
num_samples = 4         # or draw so many test questions
split = 'iid'           # of this split, such as ood_length
seed = 1337             # of the drawn questions and of how a typed one is played
# how it answers
think = 64              # passes at most when a task is worked out aloud
sample_dir = ''         # where to write; '' is out_dir/samples
# system
device = 'auto'         # auto, cpu, cuda, mps
config = configure(globals())

# isort: split
import os
import shlex
import shutil
import sys
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

import fast
from audio.files import STREAM_BLOCK, read_stream, read_wav, write_wav
from audio.listen import WAIT, answer_stream, first_question, with_room, without_verdict
from audio.tune import prepared
from checkpoint import load_checkpoint, results_of
from exam import between_of
from lab.album import album, section
from lab.ends import brief_pass
from lab.figures import spectrogram
from prepare import play_text, split_batches
from system import claim, clear, pick_device, write_text, write_whole
from tasks import TASKS, decode, solve, split_names, task_of
from think import conversation
from transcribe import transcribe

MOST_PASSES = 64  # of a question, that are written
FILES = r'\d{3,}_(question|pass_\d+|answer)\.(wav|png)|index\.html'


# --- questions ---

class Question(NamedTuple):
    wave: torch.Tensor  # (S,)
    text: str
    wanted: str         # the right answer, '' if that is not known


def drawn(tasks):
    """num_samples test questions, of all tasks alike -> Questions"""
    parts = [(name, part) for name in tasks for part in split_names(name, split)]
    if not parts:
        raise ValueError(f"no split {split!r}; {tasks[0]} has {', '.join(TASKS[tasks[0]].splits)}")
    questions = []
    for i, (name, part) in enumerate(parts):
        share = len(range(i, num_samples, len(parts)))
        for b in split_batches(name, part, share, seed):
            rows = zip(b.question, b.lengths, b.asked, b.wanted, strict=True)
            questions += [Question(w[:n], decode(a), decode(wanted)) for w, n, a, wanted in rows]
    return questions


def questions_of(tasks):
    """What the settings ask -> Questions"""
    if not start and not wav:
        return drawn(tasks)
    text = wanted = wave = ''
    if start:
        name = task_of(start, tasks)
        text, wanted = start, solve(name, start)
        wave = play_text(start, seed, TASKS[name].slots(start))
    if wav:
        wave = first_question(read_stream(sys.stdin.buffer)) if wav == '-' else read_wav(wav)
        if not len(wave) or wave.abs().max() < 1e-4:
            raise ValueError(f"{wav}: nothing can be heard in it")
        wave = with_room(wave)
    return [Question(wave, text or transcribe(wave[None])[0], wanted)]


# --- answers ---

def save(name, sound):
    """Write a sound (S,) to sample_dir -> its path without .wav"""
    path = os.path.join(sample_dir, name)
    write_whole(path + '.wav', partial(write_wav, wave=sound))
    return path


def answers_of(model, wave):
    """-> {pass: its sound (S,)}, of many passes every second, fourth, ..., the last one being that
    of the answer; and whether it was finished"""
    sounds = {}
    question = prepared(wave[None].to(model.start.device))
    thought = conversation(model, *question, think if aloud else 1, **how)
    thought = tqdm(thought, unit='pass', delay=2, leave=False, disable=None)
    for k, (answer, passes) in enumerate(thought, 1):
        sounds[k] = answer[0].cpu()
        if len(sounds) > MOST_PASSES:
            sounds = dict(list(sounds.items())[::2])
        n = max(1, int(passes))  # the last pass may only repeat the answer
    sounds = {j: sound for j, sound in sounds.items() if j < n}
    return sounds | {n: answer[0].cpu()}, not aloud or int(passes) < think


def answer_one(model, i, question):
    """Ask, write the sounds and their pictures -> is it right, and the album's section"""
    sounds, is_finished = answers_of(model, question.wave)
    texts = [question.text, *[transcribe(sound[None])[0] for sound in sounds.values()]]
    heard = texts[-1]
    verdict = 'right' if heard == question.wanted else 'wrong'
    line = f"asked {question.text}, wanted {question.wanted}, heard {heard or 'nothing'}"
    if not question.wanted:
        verdict, line = 'unknown', without_verdict(question.text, heard)
    note = ''
    if not is_finished:
        note = f" (not finished: it may hear its answer more often with --think={4 * think})"
    print(line + (f": {' -> '.join(texts)}" if len(texts) > 2 else '') + note)

    rows = []
    labels = ['question', *[f'pass {k}' for k in list(sounds)[:-1]], 'answer']
    waves = [question.wave, *sounds.values()]
    for label, text, wave in zip(labels, texts, waves, strict=True):
        name = f"{i:03d}_{label.replace(' ', '_')}"
        spectrogram([('', wave)], save(name, wave) + '.png')
        rows.append((label, name, text, wave))
    return verdict == 'right', section(verdict, line + note, rows)


def answer_all(model, questions, folder):
    """Answer Questions, and write the album"""
    answered = [answer_one(model, i, question) for i, question in enumerate(questions)]
    is_right, sections = zip(*answered, strict=True)
    n_known = sum(bool(question.wanted) for question in questions)
    path = os.path.join(sample_dir, 'index.html')
    last_line = f"{sum(is_right)} of {n_known} right, as played by the model in {folder}."
    write_text(path, album(sections, last_line))
    print(f"wrote {len(questions)} questions and answers to {sample_dir}; open {path} to listen")


if __name__ == '__main__':
    if '--start=' in sys.argv:
        fail("a question needs at least one symbol, such as --start=ABCA")
    if play and not listen:
        fail("play needs listen=true: it is for answers while listening")
    if play and not shutil.which(shlex.split(play)[0]):
        fail(f"there is no {shlex.split(play)[0]}; play takes a command that plays WAV files")
    if listen and not wav:
        fail("listen needs a sound to listen to: --wav=- or --wav=FILE")
    bounds(config, num_samples=1, think=1, seed=SEEDS)
    choices(config, task=('', *TASKS))
    try:
        model, checkpoint = load_checkpoint(out_dir, pick_device(device), init_from)
        fast.use(model)
        tasks = names_of(checkpoint['config'], 'tasks', TASKS)
        if task and task not in tasks:
            fail(f"this model was trained on {', '.join(tasks)}, not on {task}")
        # A model that works aloud decides itself how long it thinks; others answer at once.
        aloud = bool(checkpoint['config']['aloud'])
        how = {'between': between_of(tasks), 'brief': brief_pass}
        folder = results_of(out_dir, init_from)
        sample_dir = sample_dir or os.path.join(folder, 'samples')
        if listen and wav == '-':
            blocks = read_stream(sys.stdin.buffer)
        elif listen:
            blocks = iter(read_wav(wav).split(STREAM_BLOCK))
        else:
            questions = questions_of([task] if task else tasks)
        claim(sample_dir)
        clear(sample_dir, FILES)
        if listen:
            print(f"listening; a question is over when it has been silent for {WAIT} s, or for "
                  "twice as long as its gaps; Ctrl-C ends this")
            n = answer_stream(model, blocks, think if aloud else 1, save, play, **how)
            print(f"answered {n} questions; the sound is in {sample_dir}")
        else:
            answer_all(model, questions, folder)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {sample_dir}: {e.strerror}")
