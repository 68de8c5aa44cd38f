"""
Every picture.

$ python figures.py question.wav answer.wav      # spectrograms, with the symbols that are heard
$ python figures.py out/*                        # a table of runs' test results, and its chart
$ python figures.py --what=curves out/mirror     # how training went
$ python figures.py --what=passes release        # accuracy by how often it may hear its own answer
$ python figures.py --what=robustness release    # accuracy in noise, echo, at other tempos, ...
$ python figures.py --what=counting release      # can the depth of brackets be read off the states?
$ python figures.py --what=pointer release       # where the pointer points

release is the weights that come with the code; any other run is named by its folder. Runs are
drawn in the order in which they are named. Those whose folders differ only in a last _s and a
number are seeds of one run: means are drawn, and tables show (the worst).
"""
import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from baselines import make_model
from checkpoint import load_checkpoint
from conditions import SOUNDS
from configurator import bounds, choices, configure, fail, names_of, write_whole
from files import read_wav
from prepare import SAMPLE_RATE, make_batch, play_text
from score import evaluate
from tasks import TASKS, decode
from tasks.bracket import depths
from transcribe import find_tones

# Colours that the colour-blind can tell apart too (Okabe and Ito)
COLORS = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00'
MARKERS = 'os^Dv'

# config/ablate/ in words
ABLATIONS = {
    'nothing': 'nothing left out',
    'all_attention': 'attention only, no Mamba',
    'curriculum': 'with the curriculum',
    'no_auxiliary': 'no auxiliary losses',
    'no_counting': 'every head forgets',
    'no_freeze': 'the states never stand still',
    'no_pauses': 'no silent slots',
    'no_pointer': 'no pointer, nothing hidden',
    'nothing_hidden': 'nothing hidden, the pointer kept',
    'one_shot': 'one-shot',
    'separate': 'mod alone',
    'state_128': 'state of 128',
    'state_16': 'state of 16',
    'tokens_100_ms': 'tokens of 100 ms',
    'tokens_20_ms': 'tokens of 20 ms',
}


def save(fig, path):
    """Write a figure as a PNG, whole or not at all"""
    write_whole(path, partial(fig.savefig, dpi=150))


def plain(ax, **settings):
    """Prepare axes for lines and points"""
    ax.set(**settings)
    ax.set_prop_cycle(color=COLORS, marker=list(MARKERS))
    ax.grid(alpha=0.25)
    ax.spines[['top', 'right']].set_visible(False)


def spectrogram(rows, path):
    """Draw (title, waveform (S,)) rows under one another, with the symbols that are heard; not at
    the tones, if the sound is too long to read them there"""
    longest = max(len(wave) for _, wave in rows) / SAMPLE_RATE
    width = min(16, max(6, 3 * longest))
    height = 0.4 + 1.4 * len(rows)
    fig = Figure(figsize=(width, height), layout='constrained')
    axes = fig.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, wave) in zip(axes, rows, strict=True):
        padded = np.pad(wave.numpy(), (256, 512))  # the middle of the first window is time 0
        ends = 0, (len(wave) + 256) / SAMPLE_RATE
        with np.errstate(divide='ignore'):  # silence is -inf dB
            ax.specgram(padded, NFFT=512, Fs=SAMPLE_RATE, noverlap=432, xextent=ends,
                        vmin=-100, vmax=-25, cmap='magma')
        # Every symbol has its own height, in all pictures.
        ax.set(xlim=(0, longest), ylim=(200, 3600), facecolor='black')
        tones = find_tones(wave[None])
        if title:
            ax.set_title(f"{title}: {decode(tones.symbol)}"[:80], loc='left')
        if longest > 20:
            continue
        middle = tones.start + tones.length / 2
        for symbol, time, pitch in zip(tones.symbol, middle, tones.hertz, strict=True):
            ax.text(time, pitch + 130, decode([symbol]),
                    color='white', fontsize=13, weight='bold', ha='center', clip_on=True)
    axes[-1].set_xlabel('time (s)')
    fig.supylabel('frequency (Hz)', fontsize=10)
    save(fig, path)


# --- runs that score.py has tested ---

def load_scores(names):
    """Names of runs -> {run: [(its scores, seconds of training) of each seed]}"""
    folders = ['out/release' if name == 'release' else name for name in names]
    parents = [os.path.dirname(os.path.abspath(folder)) for folder in folders]
    top = os.path.commonpath(parents)
    runs = {}
    for folder in folders:
        try:
            with open(os.path.join(folder, 'scores.json')) as f:
                found = json.load(f)
            seed = found['scores'], found.get('seconds')
        except (OSError, ValueError, KeyError):
            print(f"{folder} has no scores.json", file=sys.stderr)
            continue
        run = re.sub(r'_s\d+$', '', os.path.relpath(folder, top))
        runs.setdefault(run, []).append(seed)
    if not runs:
        raise ValueError("none of these runs has a scores.json; score.py makes it")
    return runs


def exact_match(seeds, task, split):
    """Exact match in per cent of each seed of a run that was tested on this split"""
    tested = [scores[task] for scores, _ in seeds if task in scores]
    return [100 * found[split]['exact_match'] for found in tested if split in found]


def tested_splits(runs, task):
    seeds = sum(runs.values(), [])
    return [split for split in TASKS[task].splits if exact_match(seeds, task, split)]


def table(runs):
    """Print every run on every split of each task, as Markdown"""
    for task in TASKS:
        splits = tested_splits(runs, task)
        if not splits:
            continue
        print(f"\n| {task} | seeds | questions | {' | '.join(splits)} | seconds |")
        print('|' + ' --- |' * (len(splits) + 4))
        for name, seeds in runs.items():
            tested = [scores[task] for scores, _ in seeds if task in scores]
            if not tested:
                continue
            asked = min(found['n'] for scores in tested for found in scores.values())
            row = [name, str(len(tested)), str(asked)]
            for split in splits:
                numbers = exact_match(seeds, task, split)
                text = f"{np.mean(numbers):.4g}" if numbers else ''
                if len(numbers) > 1:
                    text += f" ({min(numbers):.4g})"
                row.append(text)
            seconds = [t for _, t in seeds if t]
            row.append(f"{np.mean(seconds):.0f}" if seconds else '')
            print(f"| {' | '.join(row)} |")


def chart(runs, path):
    """Draw the same table in colours, without the splits on which no run is under 97 %, as these
    tell no run from another"""
    columns = [(task, split) for task in TASKS for split in tested_splits(runs, task)]
    values = np.array([
        [np.mean(exact_match(seeds, *column) or [np.nan]) for column in columns]
        for seeds in runs.values()
    ])
    telling = (values < 97).any(0)
    if telling.any():
        values = values[:, telling]
        columns = np.array(columns)[telling]
    width = 2.4 + 0.37 * len(columns)
    height = 1.9 + 0.24 * len(runs)
    fig = Figure(figsize=(width, height), layout='constrained')
    ax = fig.subplots()
    # Black can be read on all colours of the first half.
    ax.imshow(values, vmin=0, vmax=200, cmap='YlGnBu', aspect='auto')
    for (i, j), value in np.ndenumerate(values):
        if value >= 0:  # or it was not tested
            ax.text(j, i, f"{value:.0f}", ha='center', va='center', fontsize=9)
    for task in TASKS:
        at = [j for j, column in enumerate(columns) if column[0] == task]
        if at:
            ax.axvline(at[0] - 0.5, color='white', linewidth=5)
            ax.text(np.mean(at), -0.7, task, ha='center', weight='bold')
    words = [TASKS[task].said.get(split, split) for task, split in columns]
    ax.set_xticks(range(len(columns)), words, rotation=55, ha='right', rotation_mode='anchor')
    ax.set_yticks(range(len(runs)), [ABLATIONS.get(name, name) for name in runs])
    fig.supxlabel('exact match (%)', fontsize=10)
    save(fig, path)


def passes(runs, task, path):
    """Draw exact match against how often the model may hear its own answer, and how often it did,
    by how many lines of working the question takes"""
    if len(runs) > 1:
        raise ValueError(f"name one run and its seeds, not {', '.join(runs)}")
    [seeds] = runs.values()
    fig = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = fig.subplots(1, 2)
    plain(left, xlabel='passes allowed', ylabel='exact match (%)', ylim=(-3, 103))
    plain(right, xlabel='lines of working that the question takes',
          ylabel='passes that the model used (mean)')
    right.axline((1, 1), slope=1, color='0.7')
    for split in TASKS[task].splits:
        tested = [scores[task].get(split, {}) for scores, _ in seeds if task in scores]
        tested = [found for found in tested if 'by_passes' in found]
        if not tested or not split.startswith(('iid', 'ood')):
            continue
        allowed = list(tested[0]['by_passes'])
        exact = [100 * np.mean([found['by_passes'][k] for found in tested]) for k in allowed]
        left.plot(allowed, exact, label=TASKS[task].said.get(split, split))
        lines, used = [], []
        for found in tested:
            lines += map(int, found['passes_by_lines'])
            used += found['passes_by_lines'].values()
        right.plot(lines, used, linestyle='none', alpha=0.8)
    if not left.lines:
        raise ValueError(f"none of these was taught {task} aloud; --task names another task")
    left.legend(frameon=False)
    save(fig, path)


def curves(folders, path):
    """Draw the loss of the symbols, smoothed, and validation, out of distribution dotted, against
    updates, for each run and task"""
    fig = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = fig.subplots(1, 2)
    plain(left, xlabel='updates', ylabel='loss of the symbols', yscale='log')
    plain(right, xlabel='updates', ylabel='exact match in validation (%)', ylim=(-3, 103))
    for folder in folders:
        try:
            with open(os.path.join(folder, 'log.jsonl')) as f:
                rows = [json.loads(line) for line in f]
            trained = [row for row in rows if 'symbols' in row]
            checked = [row for row in rows if 'val' in row]
            tasks = checked[0]['val'] if checked else {row['task'] for row in trained}
        except (OSError, ValueError, KeyError):
            raise ValueError(f"{folder} has no log.jsonl; train.py writes it") from None
        for task in tasks:
            name = task if len(folders) == 1 else f"{folder}: {task}"
            seen = [row for row in trained if row['task'] == task]
            losses = [row['symbols'] for row in seen]
            width = max(1, len(losses) // 50)
            smooth = np.convolve(losses, np.ones(width) / width, 'valid')
            at = [row['iter'] for row in seen[width - 1:]]
            line, = left.plot(at, smooth, label=name, marker='')
            at = [row['iter'] for row in checked]
            for split, style in (('val', '-'), ('val_ood', ':')):
                right.plot(at, [100 * row[split][task] for row in checked], style,
                           color=line.get_color())
    left.legend(frameon=False)
    save(fig, path)


# --- what a model makes of worse sound ---

# Kinds of conditions.SOUNDS, in words: title and measure
KINDS = {
    'white': 'white noise: signal to noise (dB)',
    'pink': 'pink noise: signal to noise (dB)',
    'echo': 'echo: 60 dB down after (s)',
    'tempo': 'tempo: times as fast',
    'gap': 'gaps: (s)',
    'off': 'all tones off pitch: by (Hz)',
    'each': 'each tone off pitch: by up to (Hz)',
    'loudness': 'loudness of each tone: up to (dB)',
    'volume': 'a faint recording: (dB)',
    'clipped': 'clipped: at (share of a tone)',
    'telephone': 'telephone: 300 Hz to (Hz)',
    'other': 'others:',
}
OTHERS = 'clean', 'square', 'sawtooth', 'piano', 'mulaw', 'offset_0.2', 'hum_50', 'clicks_5'


def robustness(model, trained_on, path, n):
    """Draw exact match on n iid questions a point against each kind of worse sound"""
    fig = Figure(figsize=(11, 7), layout='constrained')
    axes = fig.subplots(3, 4, sharey=True).flat
    for ax, (kind, words) in zip(axes, KINDS.items(), strict=True):
        title, measure = words.split(':')
        plain(ax, title=title, xlabel=measure.strip(), ylim=(-3, 103))
        sounds = [s for s in SOUNDS if s.startswith(kind + '_')] or OTHERS
        for task in names_of(trained_on, 'tasks', TASKS):
            if 'iid' not in TASKS[task].splits:
                continue
            think = trained_on['think'] if task in trained_on['aloud'].split(',') else 1
            exact = []
            for sound in sounds:
                found = evaluate(model, task, 'iid', n, think=think, sound=sound)
                exact.append(100 * found['exact_match'])
                print(f"{task}, {sound}: {exact[-1]:.1f} %", flush=True)
            at = [sound.removeprefix(kind + '_') for sound in sounds]
            ax.plot(at, exact, label=task)
        if sounds == OTHERS:
            ax.tick_params(axis='x', labelrotation=60)
    fig.supylabel('exact match (%)', fontsize=10)
    fig.axes[3].legend(frameon=False)
    save(fig, path)


# --- what goes on inside ---

@torch.no_grad()
def states_of_brackets(model, split, n, **more):
    """n bracket questions -> the encoder's token at the end of each bracket and a 1 (n, N, D + 1);
    depth there, and whether it has been below 0 (n, N, 2); where there is a bracket (n, N)"""
    generator = torch.Generator().manual_seed(7)
    b = make_batch('bracket', split, n, generator, **more)
    memory = model.encode(model.hear(b.question))
    # The last token that hears nothing of the next bracket
    at = (b.rhythm.end * SAMPLE_RATE / model.config.token).long()
    at = at.clamp(1, memory.shape[1]) - 1
    index = at[..., None].expand(-1, -1, memory.shape[2])
    states = F.pad(memory.gather(1, index), (0, 1), value=1.0)
    targets = torch.stack(depths(b.asked), 2)
    return states.double(), targets.double(), b.asked >= 0


def counting(model, path, n):
    """Fit a line from the encoder's states to the depth of brackets, and to whether it has been
    below 0, in questions as short as in training; draw how well it tells both in longer ones too,
    n a length, and (dotted) for an untrained model: half of its heads never forget, so it counts a
    little."""
    torch.manual_seed(0)
    untrained = make_model(model.config).eval()
    fig = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = fig.subplots(1, 2)
    plain(left, title='the depth, rounded', xlabel='bracket', ylabel='right (%)', ylim=(-3, 103))
    plain(right, title='has the depth been below 0?', xlabel='bracket', ylim=(-3, 103))
    for net, name in ((model, 'trained'), (untrained, 'untrained')):
        states, targets, there = states_of_brackets(net, 'train', 5 * n)
        line = torch.linalg.lstsq(states[there], targets[there]).solution
        for length in (12, 20, 40, 100):
            split = 'val' if length == 12 else 'val_ood'
            states, targets, _ = states_of_brackets(net, split, n, low=length, high=length)
            found = states @ line
            depth_right = found[..., 0].round() == targets[..., 0]
            below_right = (found[..., 1] > 0.5) == (targets[..., 1] > 0.5)
            style = {'markevery': 0.1, 'label': f"length {length}"}
            if net is untrained:
                style = {'linestyle': ':', 'color': '0.6', 'marker': ''}
            for ax, hits in ((left, depth_right), (right, below_right)):
                hits = 100 * hits[:, :length].double().mean(0)
                ax.plot(range(1, length + 1), hits, **style)
                print(f"{name}, length {length}, {ax.get_title()}: {hits.mean():.1f} % right")
            never = 100 * (1 - targets[..., 1].mean())
            print(f"always no would be right in {never:.1f} %")
    left.plot([], [], label='untrained', **style)
    left.legend(frameon=False)
    save(fig, path)


def pointer(model, path, text='CABLEKAJ'):
    """Draw where in the question each token of the answer is fetched from"""
    if not model.config.pointer:
        raise ValueError("this model has no pointer")
    weights = model.pointer_weights(play_text(text)[None])
    seconds = len(weights) * model.config.token / SAMPLE_RATE
    fig = Figure(figsize=(5, 4), layout='constrained')
    ax = fig.subplots()
    image = ax.imshow(weights.numpy(), origin='lower', extent=(0, seconds, 0, seconds),
                      cmap='magma', vmin=0, vmax=1)
    fig.colorbar(image, ax=ax, label='attention')
    ax.set(xlabel='time in the question (s)', ylabel='time in the answer (s)',
           title=f"the pointer, asked {text}")
    save(fig, path)


if __name__ == '__main__':
    what = ''          # as above, or spectrogram or table, which '' tells by what is named
    out = ''           # the PNG to write; '' is named after what it shows
    task = 'mod'       # of passes
    num_samples = 200  # questions for each point of robustness and counting
    flags = [a for a in sys.argv[1:] if a.startswith('-')]
    named = [a for a in dict.fromkeys(sys.argv[1:]) if a not in flags]
    configure(globals(), flags)
    bounds(globals(), num_samples=1)
    kinds = 'spectrogram', 'table', 'curves', 'passes', 'robustness', 'counting', 'pointer'
    choices(globals(), what=('', *kinds), task=TASKS)
    if not named:
        fail("name the WAV files, or the folders of runs, to draw")
    first = named[0]
    if not what:
        what = 'table' if first == 'release' or os.path.isdir(first) else 'spectrogram'
    out = out or what + '.png'
    try:
        if what == 'spectrogram':
            rows = []
            for name in named:
                title = Path(name).stem.lstrip('0123456789_')
                rows.append((title.replace('_', ' '), read_wav(name)))
            spectrogram(rows, out)
        elif what == 'table':
            runs = load_scores(named)
            table(runs)
            chart(runs, out)
        elif what == 'curves':
            curves(named, out)
        elif what == 'passes':
            passes(load_scores(named), task, out)
        elif len(named) > 1:
            fail(f"{what} is of one run: name that alone")
        else:
            init_from = 'release' if first == 'release' else 'out_dir'
            model, checkpoint = load_checkpoint(first, init_from=init_from)
            trained_on = checkpoint['config']
            if what == 'robustness':
                robustness(model, trained_on, out, num_samples)
            elif what == 'pointer':
                pointer(model, out)
            elif 'bracket' in trained_on['tasks']:
                counting(model, out, num_samples)
            else:
                fail(f"counting is for a model of bracket, not of {trained_on['tasks']}")
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {out}: {e.strerror}")
    print(f"wrote {out}")
