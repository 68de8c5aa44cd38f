"""
Ask a trained model and listen to its answer.

$ python sample.py --out_dir=out/mirror --start=ABCA     # a question in symbols, played to the model in tones
$ python sample.py --out_dir=out/mirror --wav=my.wav     # or a recording of one
$ python sample.py --out_dir=out/mirror --num_samples=8  # or so many questions of a test split
$ python sample.py --init_from=release --start='(()())'  # the weights that come with the code know all three tasks

Writes 000_question.wav, 000_answer.wav, 000.png, ... and index.html, a page to listen to them, to out_dir/samples. A model
that was taught to work aloud hears its own answers until they no longer change: 000_pass_1.wav, 000_pass_2.wav, ...
"""
import html
import os
import sys

from configurator import SEEDS, bounds, configure, fail
from figures import spectrogram
from model import load_checkpoint, pick_device
from prepare import LOUDNESS, SPLITS, decode, fresh_folder, play_text, read_wav, read_wav_until_silence, solve, split_batches, split_names, task_of, write_wav
from score import find_tones, transcribe

out_dir = 'out/mirror'  # folder of the checkpoint, and of samples/
init_from = 'out_dir'   # or release: the weights that come with the code; samples then go to out/release/samples
start = ''              # the question in symbols, such as ABCA
wav = ''                # or a WAV file that holds it; - reads one from standard input until 0.4 s of silence
num_samples = 4         # or draw so many test questions
split = 'iid'           # of this split
sample_dir = ''         # where to write; '' is out_dir/samples
think = 16              # passes at most when a task is worked out aloud
seed = 1337             # of the drawn questions and of how a typed one is played
device = 'auto'         # auto, cpu, cuda
configure(globals())
if '--start=' in sys.argv:
    fail("a question needs at least one symbol, such as --start=ABCA")
if start and wav:
    fail("give --start or --wav, not both")
bounds(globals(), num_samples=1, think=1, seed=SEEDS)

# --- questions: (waveform, text, right answer) ---
try:
    device = pick_device(device)
    model, checkpoint = load_checkpoint(out_dir, device, init_from)
    tasks = checkpoint['config']['tasks'].split(',')
    task_for = lambda text: tasks[0] if len(tasks) == 1 else task_of(text)
    questions = []
    if start:
        wanted = solve(task_for(start), start)
        questions.append((play_text(start, seed), start, wanted))
    elif wav:
        wave = read_wav_until_silence(sys.stdin.buffer) if wav == '-' else read_wav(wav)
        wave = wave / wave.abs().max().clamp(min=1e-9)  # a recording may be faint
        tones = find_tones(wave[None])
        asked = decode(tones.symbol)
        if not asked:
            fail(f"{wav}: no tone can be heard in it")
        wave = wave * LOUDNESS * 10 ** (-tones.level.max() / 20)  # as loud as what it was trained on
        try:
            wanted = solve(task_for(asked), asked)
        except ValueError:  # a sound that is no symbol, or no question of this task: the model is asked all the same
            wanted = '-'
        questions.append((wave, asked, wanted))
    else:
        for task in tasks:
            name = split_names(task, split)[0] if split in SPLITS[task] or all(split not in SPLITS[t] for t in tasks) else 'iid'
            for b in split_batches(task, name, -(-num_samples // len(tasks)), seed):
                questions += [(wave[:n], decode(asked), decode(wanted))
                              for wave, n, asked, wanted in zip(b.question, b.lengths, b.asked, b.wanted)]
except ValueError as e:
    fail(e)

# --- answers ---
out_dir = 'out/release' if init_from == 'release' else out_dir
sample_dir = sample_dir or os.path.join(out_dir, 'samples')
rows = []
try:
    fresh_folder(sample_dir, r'\d{3}((_question|_answer|_pass_\d+)\.wav|\.png)')
    for i, (wave, asked, wanted) in enumerate(questions):
        aloud = task_for(asked) in checkpoint['config']['aloud'].split(',')
        answers, passes = model.generate(wave[None].to(device), think=think if aloud else 1, conversation=True)
        answers = [a[0].cpu() for a in answers[:max(1, int(passes) if aloud else 1)]]  # the last pass only repeats
        heard = [transcribe(a[None])[0] for a in answers]
        stem = f'{i:03d}'
        write = lambda name, sound: (write_wav(os.path.join(sample_dir, name), sound), name)[1]
        sounds = [('question', write(f'{stem}_question.wav', wave))]
        sounds += [(f'pass {k}', write(f'{stem}_pass_{k}.wav', a)) for k, a in enumerate(answers, 1)] if len(answers) > 1 else []
        sounds += [('answer', write(f'{stem}_answer.wav', answers[-1]))]
        pictured = [(f'pass {k}: {h}', a) for k, (h, a) in enumerate(zip(heard, answers), 1)] if len(answers) > 1 else \
            [(f'answer: {heard[0]}', answers[0])]
        spectrogram([(f'question: {asked}', wave), *pictured], os.path.join(sample_dir, stem + '.png'))
        lines = ' -> '.join([asked, *heard]) if len(answers) > 1 else ''
        lines += f' (not finished: it may hear its answer more than {think} times with --think={4 * think})' * (aloud and int(passes) >= think)
        rows.append((stem, asked, wanted, heard[-1], lines, sounds))
        print(f"asked {asked}, wanted {wanted}, heard {heard[-1] or 'nothing'}" + (f": {lines}" if lines else ''))
    # --- the page: no script, opens from disk ---
    figures = ''.join(f'''
<figure class="{'right' if heard == wanted else 'wrong'}">
  <figcaption>asked <b>{html.escape(asked)}</b>, wanted <b>{html.escape(wanted)}</b>, heard <b>{html.escape(heard) or 'nothing'}</b>
  {f'<br>{html.escape(lines)}' if lines else ''}</figcaption>
  <p>{' '.join(f'<label>{label} <audio controls src="{name}"></audio></label>' for label, name in sounds)}</p>
  <img src="{stem}.png" alt="spectrograms of the question and the answer">
</figure>''' for stem, asked, wanted, heard, lines, sounds in rows)
    with open(os.path.join(sample_dir, 'index.html'), 'w', encoding='utf-8') as f:
        f.write(f'''<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Jericho: questions and answers</title>
<style>
  body {{ font: 16px/1.4 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
  figure {{ margin: 0 0 2rem; padding: .8rem 1rem; border-left: 4px solid #3a8f5c; background: #f6f6f4 }}
  figure.wrong {{ border-color: #c0392b }}
  figcaption b {{ font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
  label {{ display: inline-flex; align-items: center; gap: .5rem; margin-right: 1.5rem }}
  img {{ max-width: 100% }}
</style>
<h1>Questions and answers in tones</h1>
<p>{sum(r[2] == r[3] for r in rows)} of {len(rows)} right. Played by the model in {html.escape(out_dir)}.</p>{figures}
</html>
''')
except OSError as e:
    fail(f"cannot write to {sample_dir}: {e.strerror}")
print(f"wrote {len(rows)} questions and answers to {sample_dir}; open {os.path.join(sample_dir, 'index.html')} to listen")
