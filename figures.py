"""
Every picture.

$ python figures.py question.wav answer.wav      # spectrograms, with the symbols that are heard
$ python figures.py out/*                        # a table of runs' test results, and its chart
$ python figures.py --what=curves out/mirror     # how training went
$ python figures.py --what=passes release        # accuracy by how often it may hear its own answer
$ python figures.py --what=lengths release       # accuracy by length, until it breaks
$ python figures.py --what=robustness release    # accuracy in noise, echo, at other tempos, ...
$ python figures.py --what=confusion release     # which tones are heard for which
$ python figures.py --what=scaling out/ask/*     # accuracy by difficulty, of any summary.json

release is the weights that come with the code; any other run is named by its folder. The first
needs nothing else, and curves a log.jsonl. All others draw what score.py has measured: lengths with
--split=lengths, robustness and confusion with --sound=all. Runs are drawn in the order in which
they are named. Those whose folders differ only in a last _s and a number are seeds of one run:
means are drawn, and tables show (the worst).
"""
import json
import os
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

# This comes first: it tells matplotlib that pictures are only written.
from configurator import choices, configure, fail

# isort: split
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from conditions import SOUNDS
from files import read_wav
from prepare import SAMPLE_RATE
from results import rows_in, write_whole
from score import LENGTHS
from tasks import NO_SYMBOL, SYMBOLS, TASKS, decode
from transcribe import find_tones

# Colours that the colour-blind can tell apart too (Okabe and Ito)
COLORS = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000'
MARKERS = 'os^Dv<>'
STYLES = '-', ':'  # of the first run and of others


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
        ax.set(xlim=(0, longest), ylim=(200, 4100), facecolor='black')
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

def folder_of(name):
    return 'out/release' if name == 'release' else name


def load_scores(names, file='scores.json'):
    """Names of runs -> {run: [(its scores, seconds of training) of each seed]}"""
    folders = [folder_of(name) for name in names]
    parents = [os.path.dirname(os.path.abspath(folder)) for folder in folders]
    top = os.path.commonpath(parents)
    runs = {}
    for folder in folders:
        try:
            with open(os.path.join(folder, file), encoding='utf-8') as f:
                found = json.load(f)
            seed = found['scores'], found.get('seconds')
        except (OSError, ValueError, KeyError):
            print(f"{folder} has no {file}", file=sys.stderr)
            continue
        run = re.sub(r'_s\d+$', '', os.path.relpath(folder, top))
        runs.setdefault(run, []).append(seed)
    if not runs:
        raise ValueError(f"none of these runs has a {file}; score.py makes it")
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
    ax.set_yticks(range(len(runs)), [name.replace('_', ' ') for name in runs])
    fig.supxlabel('exact match (%)', fontsize=10)
    save(fig, path)


def passes(runs, task, path):
    """Draw exact match against how often the model may hear its own answer, and how often it did,
    by how many lines of working the question takes"""
    if len(runs) > 1:
        raise ValueError(f"name one run and its seeds, not {', '.join(runs)}")
    [seeds] = runs.values()
    fig = Figure(figsize=(8.8, 3.8), layout='constrained')
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
            rows = rows_in(os.path.join(folder, 'log.jsonl'))
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
    for ax in (left, right):
        ax.xaxis.set_major_formatter(EngFormatter())
    left.legend(frameon=False)
    save(fig, path)


# --- where it breaks: longer questions, worse sound ---

def compare(ax, runs, at, tests):
    """Draw exact match on `tests`, one for each x of `at`, for each task; further runs dotted"""
    asked = [task for task in TASKS if any(task in scores for scores, _ in sum(runs.values(), []))]
    for seeds, style in zip(runs.values(), STYLES, strict=False):
        for task, color, marker in zip(asked, COLORS, MARKERS, strict=False):
            exact = [np.mean(exact_match(seeds, task, test) or [np.nan]) for test in tests]
            if not np.isnan(exact).all():
                line, = ax.plot(at, exact, style, color=color, marker=marker)
                if style == STYLES[0]:
                    line.set_label(task)


def lengths(runs, path):
    """Draw exact match against the length of questions"""
    fig = Figure(figsize=(6, 3.8), layout='constrained')
    ax = fig.subplots()
    plain(ax, xlabel='symbols of the question; digits of A in mod', ylabel='exact match (%)',
          ylim=(-3, 103))
    at = [str(n) for n in LENGTHS]
    compare(ax, runs, at, at)
    ax.legend(frameon=False)
    save(fig, path)


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
OTHERS = ('clean', 'square', 'sawtooth', 'piano', 'mulaw', 'mp3_32', 'offset_0.2', 'hum_50',
          'clicks_5')


def robustness(runs, path):
    """Draw exact match on iid questions against each kind of worse sound"""
    fig = Figure(figsize=(11, 7), layout='constrained')
    axes = fig.subplots(3, 4, sharey=True).flat
    for ax, (kind, words) in zip(axes, KINDS.items(), strict=True):
        title, measure = words.split(':')
        plain(ax, title=title, xlabel=measure.strip(), ylim=(-3, 103))
        sounds = [s for s in SOUNDS if s.startswith(kind + '_')] or OTHERS
        compare(ax, runs, [sound.removeprefix(kind + '_') for sound in sounds], sounds)
        if sounds == OTHERS:
            ax.tick_params(axis='x', labelrotation=60)
    fig.supylabel('exact match (%)', fontsize=10)
    tasks = fig.axes[0].get_legend_handles_labels()
    fig.legend(*tasks, loc='outside upper center', frameon=False, ncols=len(COLORS))
    save(fig, path)


def confusion(runs, path):
    """Draw which symbols were heard for which, in wrong answers of the right length"""
    pairs = Counter()
    for scores, _ in sum(runs.values(), []):
        for found in scores.values():
            for tested in found.values():
                pairs.update(tested['confused'])
    if not pairs:
        raise ValueError("in none of their answers is one tone heard for another")
    known = [s for s in SYMBOLS + NO_SYMBOL if s in ''.join(pairs)]  # in order of pitch
    counts = np.zeros((len(known), len(known)))
    for (wanted, heard), n in pairs.items():
        counts[known.index(wanted), known.index(heard)] += n
    fig = Figure(figsize=(6.4, 5.6), layout='constrained')
    ax = fig.subplots()
    image = ax.imshow(counts, norm=LogNorm(1, counts.max()), cmap='viridis')
    fig.colorbar(image, ax=ax, label='how often')
    ax.set(xlabel='heard', ylabel='wanted')
    ax.set_xticks(range(len(known)), known, fontsize=8)
    ax.set_yticks(range(len(known)), known, fontsize=8)
    save(fig, path)


def scaling(names, path):
    """Draw accuracy against difficulty for each task and each summary.json, of score.py or ask.py,
    which is named by its folder or itself; of seeds, whose models' names differ in a last _s and a
    number, the mean"""
    found = {}
    for name in names:
        folder = folder_of(name)
        file = os.path.join(folder, 'summary.json') if os.path.isdir(folder) else name
        try:
            with open(file, encoding='utf-8') as f:
                summary = json.load(f)
            lines = {task: {int(level): 100 * one['accuracy']
                            for level, one in part['by_difficulty'].items() if one['total']}
                     for task, part in summary['by_task'].items()}
            model = re.sub(r'_s\d+$', '', summary['model'])
            label = f"{model}, {summary.get('questions', 'in tones')}".replace('$', r'\$')
            found.setdefault(label, []).append(lines)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{name} has no summary.json; score.py and ask.py write it") from None
    every = sum(found.values(), [])
    tasks = list(dict.fromkeys(task for lines in every for task in lines))
    if not tasks:
        raise ValueError("nothing was answered in any of these")
    fig = Figure(figsize=(2.8 * len(tasks), 3.2), layout='constrained')
    axes = fig.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, task in zip(axes, tasks, strict=True):
        plain(ax, title=task, xlabel='difficulty', xlim=(0.8, 3.2), ylim=(-3, 103))
        ax.set_xticks((1, 2, 3))
        drawn = []
        for seeds in found.values():
            tested = [lines[task] for lines in seeds if task in lines]
            levels = sorted({level for lines in tested for level in lines})
            means = [np.mean([lines[level] for lines in tested if level in lines])
                     for level in levels]
            drawn += ax.plot(levels, means)
    axes[0].set_ylabel('right (%)')
    fig.legend(drawn, found, loc='outside lower center', frameon=False, ncols=2)
    save(fig, path)


if __name__ == '__main__':
    what = ''     # as above, or spectrogram or table, which '' tells by what is named
    out = ''      # the PNG to write; '' is named after what it shows
    task = 'mod'  # of passes
    flags = [a for a in sys.argv[1:] if a.startswith('-')]
    named = [a for a in dict.fromkeys(sys.argv[1:]) if a not in flags]
    configure(globals(), flags)
    kinds = ('spectrogram', 'table', 'curves', 'passes', 'lengths', 'robustness', 'confusion',
             'scaling')
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
        elif what == 'scaling':
            scaling(named, out)
        elif what == 'passes':
            passes(load_scores(named), task, out)
        elif what == 'lengths':
            lengths(load_scores(named, 'lengths.json'), out)
        elif what == 'robustness':
            robustness(load_scores(named, 'sounds.json'), out)
        else:
            confusion(load_scores(named, 'sounds.json'), out)
    except ValueError as e:
        fail(e)
    except (LookupError, TypeError, AttributeError):
        fail(f"a file in {' or '.join(named)} is damaged: what is drawn from it is not there")
    except OSError as e:
        fail(f"cannot write {out}: {e.strerror}")
    print(f"wrote {out}")
