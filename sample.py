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
import html
import os
import shlex
import shutil
import subprocess
import sys
import time
from functools import partial

from tqdm import tqdm

from checkpoint import load_checkpoint, results_of
from configurator import (
    SEEDS,
    bounds,
    choices,
    configure,
    fail,
    names_of,
    pick_device,
)
from figures import spectrogram
from files import STREAM_BLOCK, read_stream, read_wav, write_wav
from listen import WAIT, conversations, first_question, skip, with_room, without_room
from prepare import SAMPLE_RATE, play_text, split_batches
from results import claim, clear, write_whole
from tasks import TASKS, decode, solve, split_names, task_of
from think import conversation
from transcribe import transcribe

out_dir = 'out/mirror'  # folder of the checkpoint, and of samples/
init_from = 'out_dir'   # or release: the weights that come with the code; a file; hf:user/name
start = ''              # the question in symbols, such as ABCA
wav = ''                # or a WAV file, in which start, if given, is played; - reads standard
                        # input until a question is over
listen = False          # answer every question in wav, for as long as it lasts
play = ''               # when listening: a command that plays a WAV, such as aplay
task = ''               # which task is asked, if a question in symbols could belong to several
num_samples = 4         # or draw so many test questions
split = 'iid'           # of this split, such as ood_length
sample_dir = ''         # where to write; '' is out_dir/samples
think = 64              # passes at most when a task is worked out aloud
seed = 1337             # of the drawn questions and of how a typed one is played
device = 'auto'         # auto, cpu, cuda, mps
configure(globals())
if '--start=' in sys.argv:
    fail("a question needs at least one symbol, such as --start=ABCA")
bounds(globals(), num_samples=1, think=1, seed=SEEDS)
choices(globals(), task=('', *TASKS))

# --- questions: (waveform, text, right answer or '' if that is not known) ---
questions = []
try:
    device = pick_device(device)
    model, checkpoint = load_checkpoint(out_dir, device, init_from)
    tasks = names_of(checkpoint['config'], 'tasks', TASKS)
    aloud = names_of(checkpoint['config'], 'aloud', TASKS)
    if task:
        if task not in tasks:
            fail(f"this model was trained on {', '.join(tasks)}, not on {task}")
        tasks = [task]

    if start:
        asked_of = task_of(start, tasks)
        wanted = solve(asked_of, start)
        played = play_text(start, seed, TASKS[asked_of].slots(start))
    player = shlex.split(play)
    if play and not (listen and shutil.which(player[0])):
        fail("play takes a command that plays WAV files, such as aplay, and needs listen=true")
    if listen:
        if not wav:
            fail("listen needs a sound to listen to: --wav=- or --wav=FILE")
        if wav == '-':
            blocks = read_stream(sys.stdin.buffer)
        else:
            blocks = iter(read_wav(wav).split(STREAM_BLOCK))
    elif wav:
        if wav == '-':
            wave = first_question(read_stream(sys.stdin.buffer))
        else:
            wave = read_wav(wav)
        if not len(wave) or wave.abs().max() < 1e-4:
            fail(f"{wav}: nothing can be heard in it")
        wave = with_room(wave)
        if start:
            questions.append((wave, start, wanted))
        else:
            questions.append((wave, transcribe(wave[None])[0], ''))
    elif start:
        questions.append((played, start, wanted))
    else:
        drawn = [(name, part) for name in tasks for part in split_names(name, split)]
        if not drawn:
            fail(f"no split {split!r}; {tasks[0]} has {', '.join(TASKS[tasks[0]].splits)}")
        for i, (name, part) in enumerate(drawn):
            share = len(range(i, num_samples, len(drawn)))
            for b in split_batches(name, part, share, seed):
                for wave, n, asked, wanted in zip(
                        b.question, b.lengths, b.asked, b.wanted, strict=True):
                    questions.append((wave[:n], decode(asked), decode(wanted)))
except ValueError as e:
    fail(e)

folder = results_of(out_dir, init_from)
sample_dir = sample_dir or os.path.join(folder, 'samples')
passes_at_most = think if aloud else 1  # a model that works aloud decides itself how long it thinks


def save(name, sound):
    """Write a sound (S,) to sample_dir -> its path without .wav"""
    path = os.path.join(sample_dir, name)
    write_whole(path + '.wav', partial(write_wav, wave=sound))
    return path


def without_verdict(asked, answered):
    """What is said of a recording whose right answer is not known"""
    return f"the scorer heard {asked or 'nothing'} asked, and {answered or 'nothing'} answered"


# --- listening: one question after another, until the stream ends ---

def answer_stream(blocks):
    """Blocks of sound -> how many questions they held. Each is answered at once."""
    n = 0
    for heard, thought in conversations(model, blocks, passes_at_most):
        if not thought:
            continue
        answer = without_room(thought[0][-1][0].cpu(), heard.sound)
        number = '000' if play else f'{n:03d}'  # what has been played need not be kept
        save(number + '_question', heard.sound)
        path = save(number + '_answer', answer) + '.wav'
        asked, answered = transcribe(heard.sound[None])[0], transcribe(answer[None])[0]
        tqdm.write(without_verdict(asked, answered))
        n += 1
        if play:
            began = time.time()
            if subprocess.run([*player, path]).returncode:
                fail(f"{play} {path} failed", 1)
            # The microphone has heard it; an answer is no question.
            skip(blocks, time.time() - began)
    return n


FILES = r'\d{3,}_(question|pass_\d+|answer)\.(wav|png)|index\.html'
if listen:
    print(f"listening; a question is over when it has been silent for {WAIT} s, or for twice as "
          "long as its gaps; Ctrl-C ends this", flush=True)
    try:
        claim(sample_dir)
        clear(sample_dir, FILES)
        n = answer_stream(blocks)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {sample_dir}: {e.strerror}")
    print(f"answered {n} questions; the sound is in {sample_dir}")
    sys.exit(0)

# --- the page: no script, opens from disk, fits a telephone ---
HEAD = '''<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Jericho: questions and answers</title>
<style>
  body { font: 16px/1.4 system-ui, sans-serif; max-width: 62rem; margin: 1rem auto;
         padding: 0 .8rem; overflow-wrap: anywhere }
  section { margin: 1.5rem 0; padding: .3rem .8rem; border-left: 5px solid; background: #f6f6f4 }
  .right { border-color: #3a8f5c } .wrong { border-color: #c0392b }
  h2 { font-size: 1.1rem; font-weight: normal }
  b { font-family: ui-monospace, monospace }
  .row { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1rem; margin: .8rem 0 }
  .sound { flex: 1 1 14rem; min-width: 0 }
  .picture { flex: 3 1 20rem; min-width: 0; overflow-x: auto }
  audio { display: block; width: 100%; max-width: 22rem; height: 2.5rem; margin-top: .3rem }
  img { display: block; width: 100% }
</style>
<h1>Questions and answers in tones</h1>
'''
ROW = '''<div class="row">
<div class="sound">{label}: <b>{text}</b><audio controls src="{name}.wav"></audio></div>
<div class="picture"><img src="{name}.png" alt="spectrogram" style="min-width: {width}rem"></div>
</div>
'''

# --- answers ---
MOST_PASSES = 64  # of a question, that are written
page, n_right = '', 0
try:
    claim(sample_dir)
    clear(sample_dir, FILES)
    for i, (wave, asked, wanted) in enumerate(questions):
        answers = {}  # by pass; of many, every second, fourth, ...
        thought = conversation(model, wave[None].to(device), think=passes_at_most)
        thought = tqdm(thought, unit='pass', delay=2, leave=False, disable=None)
        for k, (answer, passes) in enumerate(thought, 1):
            n = max(1, int(passes))  # the last pass may only repeat the answer
            answers[k] = answer[0].cpu()
            if len(answers) > MOST_PASSES:
                answers = dict(list(answers.items())[::2])
        answers = {k: sound for k, sound in answers.items() if k < n} | {n: answer[0].cpu()}
        sounds = [wave, *answers.values()]
        texts = [asked, *[transcribe(sound[None])[0] for sound in sounds[1:]]]
        heard = texts[-1]
        verdict = 'right' if heard == wanted else 'wrong'
        n_right += verdict == 'right'
        line = f"asked {asked}, wanted {wanted}, heard {heard or 'nothing'}"
        if not wanted:
            verdict = 'unknown'
            line = without_verdict(asked, heard)
        chain = f": {' -> '.join(texts)}" if n > 1 else ''
        note = ''
        if aloud and int(passes) == think:
            note = f" (not finished: it may hear its answer more often with --think={4 * think})"
        print(line + chain + note)

        page += f'<section class="{verdict}">\n'
        page += f'<h2>{html.escape(line + note)}</h2>\n'
        names = ['question', *[f'pass_{k}' for k in answers if k < n], 'answer']
        for name, sound, text in zip(names, sounds, texts, strict=True):
            label = name.replace('_', ' ')
            name = f'{i:03d}_{name}'
            path = save(name, sound)
            spectrogram([('', sound)], path + '.png')
            page += ROW.format(label=label, text=html.escape(text) or 'nothing', name=name,
                               width=round(12 * len(sound) / SAMPLE_RATE))
        page += '</section>\n'
    known = sum(bool(wanted) for _, _, wanted in questions)
    page += f'<p>{n_right} of {known} right, '
    page += f'as played by the model in {html.escape(folder)}.</p>\n'
    path = os.path.join(sample_dir, 'index.html')
    write_whole(path, lambda f: f.write((HEAD + page).encode()))
except ValueError as e:
    fail(e)
except OSError as e:
    fail(f"cannot write to {sample_dir}: {e.strerror}")
print(f"wrote {len(questions)} questions and answers to {sample_dir}; open {path} to listen")
