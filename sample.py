"""
Ask a trained model and listen to its answer.

$ python sample.py --out_dir=out/mirror --start=ABCA     # a question in symbols, played to the model in tones
$ python sample.py --out_dir=out/mirror --wav=my.wav     # or a recording of one
$ python sample.py --out_dir=out/mirror --num_samples=8  # or so many questions of a test split

Writes 000_question.wav, 000_answer.wav, 000.png, ... and index.html, a page to listen to them, to out_dir/samples.
"""
import html
import os

from configurator import configure, fail
from figures import spectrogram
from model import load_checkpoint, pick_device
from prepare import SPLITS, decode, play_text, read_wav, solve, split_batches, split_names, task_of, write_wav
from score import transcribe

out_dir = 'out/mirror'  # folder of the checkpoint
start = ''              # the question in symbols, such as ABCA
wav = ''                # or a WAV file that holds it
num_samples = 4         # or draw so many test questions
split = 'iid'           # of this split
sample_dir = ''         # where to write; '' is out_dir/samples
seed = 1337             # of the drawn questions and of how a typed one is played
device = 'auto'         # auto, cpu, cuda, mps
configure(globals())
if start and wav:
    fail("give --start or --wav, not both")
if num_samples < 1:
    fail("num_samples must be at least 1")

# --- questions: (waveform, text, right answer) ---
try:
    device = pick_device(device)
    model, checkpoint = load_checkpoint(out_dir, device)
    tasks = checkpoint['config']['tasks'].split(',')
    task_for = lambda text: tasks[0] if len(tasks) == 1 else task_of(text)
    questions = []
    if start:
        wanted = solve(task_for(start), start)
        questions.append((play_text(start, seed), start, wanted))
    elif wav:
        wave = read_wav(wav)
        asked = transcribe(wave[None])[0]
        if not asked:
            fail(f"{wav}: no tone can be heard in it")
        try:
            wanted = solve(task_for(asked), asked)
        except ValueError:  # a sound that is no symbol, or no question of this task: the model is asked all the same
            wanted = '-'
        questions.append((wave, asked, wanted))
    else:
        for task in tasks:
            name = split_names(task, split)[0] if split in SPLITS[task] or len(tasks) == 1 else 'iid'
            for b in split_batches(task, name, -(-num_samples // len(tasks)), seed):
                questions += [(wave[:n], decode(asked), decode(wanted))
                              for wave, n, asked, wanted in zip(b.question, b.lengths, b.asked, b.wanted)]
except ValueError as e:
    fail(e)

# --- answers ---
sample_dir = sample_dir or os.path.join(out_dir, 'samples')
rows = []
try:
    os.makedirs(sample_dir, exist_ok=True)
    for i, (wave, asked, wanted) in enumerate(questions):
        answer = model.generate(wave[None].to(device))[0].cpu()
        heard = transcribe(answer[None])[0]
        stem = os.path.join(sample_dir, f'{i:03d}')
        write_wav(stem + '_question.wav', wave)
        write_wav(stem + '_answer.wav', answer)
        spectrogram([(f'question: {asked}', wave), (f'answer: {heard}', answer)], stem + '.png')
        rows.append((f'{i:03d}', asked, wanted, heard))
        print(f"asked {asked}, wanted {wanted}, heard {heard or 'nothing'}")
    # --- the page: no script, opens from disk ---
    figures = ''.join(f'''
<figure class="{'right' if heard == wanted else 'wrong'}">
  <figcaption>asked <b>{html.escape(asked)}</b>, wanted <b>{html.escape(wanted)}</b>, heard <b>{html.escape(heard) or 'nothing'}</b></figcaption>
  <p><label>question <audio controls src="{stem}_question.wav"></audio></label>
  <label>answer <audio controls src="{stem}_answer.wav"></audio></label></p>
  <img src="{stem}.png" alt="spectrograms of the question and the answer">
</figure>''' for stem, asked, wanted, heard in rows)
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
<p>{sum(w == h for _, _, w, h in rows)} of {len(rows)} right. Played by the model in {html.escape(out_dir)}.</p>{figures}
</html>
''')
except OSError as e:
    fail(f"cannot write to {sample_dir}: {e.strerror}")
print(f"wrote {len(rows)} questions and answers to {sample_dir}; open {os.path.join(sample_dir, 'index.html')} to listen")
