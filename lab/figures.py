"""
Every picture.

$ python -m lab.figures question.wav answer.wav    # spectrograms, with the symbols that are heard
$ python -m lab.figures out/*                      # a table of runs' test results, and its chart
$ python -m lab.figures --what=curves out/mirror   # how training went
$ python -m lab.figures --what=passes release      # accuracy by how often it may hear itself
$ python -m lab.figures --what=lengths release     # accuracy by length, until it breaks
$ python -m lab.figures --what=robustness release  # accuracy in noise, echo, at other tempos, ...
$ python -m lab.figures --what=confusion release   # which tones are heard for which
$ python -m lab.figures --what=scaling out/ask/*   # accuracy by difficulty, of any summary.json

release is the weights that come with the code; any other run is named by its folder. The first
needs nothing else, and curves a log.jsonl. All others draw what score.py has measured: lengths with
--split=lengths, robustness and confusion with --sound=all. Runs are drawn in the order in which
they are named. Those whose folders differ only in a last _s and a number are seeds of one run:
means are drawn, and tables show (the worst).
"""
import sys

from configurator import choices, configure, fail

# --- settings ---
what = ''     # as above, or spectrogram or table, which '' tells by what is named
out = ''      # the PNG to write; '' is named after what it shows
task = 'mod'  # of passes
configure(globals(), [arg for arg in sys.argv[1:] if arg.startswith('-')])

# isort: split
import json
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from audio.files import read_wav
from prepare import SAMPLE_RATE
from system import write_whole
from tasks import NO_SYMBOL, SYMBOLS, TASKS, decode
from text.summary import rows_in
from transcribe import find_tones

# Colours that the colour-blind can tell apart too (Okabe and Ito)
COLORS = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000'
MARKERS = 'os^Dv<>'
PER_CENT = -3, 103  # limits of an axis


def save(fig, path):
    """Write a figure as a PNG, whole or not at all"""
    write_whole(path, partial(fig.savefig, dpi=150))


def plain(ax, **settings):
    """Prepare axes for lines and points"""
    ax.set(**settings)
    ax.set_prop_cycle(color=COLORS, marker=list(MARKERS))
    ax.grid(alpha=0.25)
    ax.spines[['top', 'right']].set_visible(False)


def literally(text):
    """Matplotlib would read mathematics between two dollars."""
    return text.replace('$', r'\$')


# --- spectrograms ---

def draw_wave(ax, title, wave):
    """A spectrogram of a waveform (S,), with the symbols that are heard; not at the tones, if the
    sound is too long to read them there"""
    padded = np.pad(wave.numpy(), (256, 512))  # the middle of the first window is time 0
    ends = 0, (len(wave) + 256) / SAMPLE_RATE
    with np.errstate(divide='ignore'):  # silence is -inf dB
        ax.specgram(padded, NFFT=512, Fs=SAMPLE_RATE, noverlap=432, xextent=ends,
                    vmin=-100, vmax=-25, cmap='magma')
    tones = find_tones(wave[None])
    if title:
        text = f"{title}: {decode(tones.symbol)}"
        ax.set_title(literally(text[:80]), loc='left')
    if len(wave) > 20 * SAMPLE_RATE:
        return
    middle = tones.start + tones.length / 2
    for symbol, time, pitch in zip(tones.symbol, middle, tones.hertz, strict=True):
        ax.text(time, pitch + 130, decode([symbol]), color='white', fontsize=13, weight='bold',
                ha='center', clip_on=True)


def spectrogram(rows, path):
    """Draw (title, waveform (S,)) rows under one another"""
    longest = max(len(wave) for _, wave in rows) / SAMPLE_RATE
    size = min(16, max(6, 3 * longest)), 0.4 + 1.4 * len(rows)
    fig = Figure(figsize=size, layout='constrained')
    axes = fig.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, wave) in zip(axes, rows, strict=True):
        draw_wave(ax, title, wave)
        # Every symbol has its own height, in all pictures.
        ax.set(xlim=(0, longest), ylim=(200, 4100), facecolor='black')
    axes[-1].set_xlabel('time (s)')
    fig.supylabel('frequency (Hz)', fontsize=10)
    save(fig, path)


def spectrograms_of(names, path):
    """Draw WAV files; a title is the file's name without its number"""
    rows = []
    for name in names:
        title = Path(name).stem.lstrip('0123456789_')
        rows.append((title.replace('_', ' '), read_wav(name)))
    spectrogram(rows, path)


# --- what other programs have written ---

# Shapes: str, float, or a dict of shapes by key. * is any key; one with ? may be missing.
SCORES = {
    'seconds?': float,
    'scores': {'*': {'*': {  # by task and test
        'exact_match': float,
        'n': float,
        'by_passes?': {'*': float},
        'passes_by_lines?': {'*': float},
        'confused?': {'*': float},
    }}},
}
SUMMARY = {
    'model': str,
    'questions?': str,
    'by_task': {'*': {'by_difficulty': {'*': {'accuracy': float, 'total': float}}}},
}
TRAINED = {'iter': float, 'task': str, 'symbols': float}
VALIDATED = {'iter': float, 'val': {'*': float}, 'val_ood': {'*': float}}


def check(value, shape, where):
    """ValueError unless what was read from a file has this shape"""
    kind = dict if isinstance(shape, dict) else shape
    if kind is float:
        fits = isinstance(value, (int, float)) and abs(value) < 1e15
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise ValueError(f"{where} is missing or damaged; let the file be written again")
    if kind is not dict:
        return
    for key, inner in shape.items():
        for name in value if key == '*' else [key.rstrip('?')]:
            found = value.get(name)
            if found is not None or not key.endswith('?'):
                check(found, inner, f"{where}: {name}")


def read_json(path, shape):
    """ValueError says what is wrong with the file"""
    try:
        with open(path, encoding='utf-8') as f:
            found = json.load(f)
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: it is no JSON") from None
    check(found, shape, path)
    return found


def folder_of(name):
    return 'out/release' if name == 'release' else name


class Tested(NamedTuple):
    """What score.py has found out about one seed of a run, and how long it was trained"""
    scores: dict  # by task and test
    seconds: float


def load_scores(names, file='scores.json'):
    """Names of runs -> {run: [Tested of each seed]}"""
    folders = [folder_of(name) for name in names]
    parents = [os.path.dirname(os.path.abspath(folder)) for folder in folders]
    top = os.path.commonpath(parents)
    runs = {}
    for folder in folders:
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            print(f"{folder} has no {file}", file=sys.stderr)
            continue
        found = read_json(path, SCORES)
        run = re.sub(r'_s\d+$', '', os.path.relpath(folder, top))
        seed = Tested(found['scores'], found.get('seconds'))
        runs.setdefault(run, []).append(seed)
    if not runs:
        raise ValueError(f"none of these runs has a {file}; score.py makes it")
    return runs


def every_seed(runs):
    return sum(runs.values(), [])


def exact_match(seeds, task, test):
    """Exact match in per cent of each seed of a run that was asked this"""
    found = [seed.scores[task] for seed in seeds if task in seed.scores]
    return [100 * tests[test]['exact_match'] for tests in found if test in tests]


def mean_exact(seeds, task, test):
    """Their mean, NaN if none was asked this"""
    return np.mean(exact_match(seeds, task, test) or [np.nan])


def tested_splits(runs, task):
    seeds = every_seed(runs)
    return [split for split in TASKS[task].splits if exact_match(seeds, task, split)]


def in_words(task, split):
    return TASKS[task].splits[split].said or split


# --- tables ---

def table_row(name, seeds, task, splits):
    """The cells of a run that was asked a task, as text"""
    tested = [seed.scores[task] for seed in seeds if task in seed.scores]
    asked = min(found['n'] for tests in tested for found in tests.values())
    row = [name, str(len(tested)), f"{asked:.0f}"]
    for split in splits:
        numbers = exact_match(seeds, task, split)
        text = f"{np.mean(numbers):.4g}" if numbers else ''
        if len(numbers) > 1:
            text += f" ({min(numbers):.4g})"
        row.append(text)
    seconds = [seed.seconds for seed in seeds if seed.seconds]
    row.append(f"{np.mean(seconds):.0f}" if seconds else '')
    return row


def print_table(runs):
    """Print every run on every split of each task, as Markdown"""
    for task in TASKS:
        splits = tested_splits(runs, task)
        if not splits:
            continue
        print(f"\n| {task} | seeds | questions | {' | '.join(splits)} | seconds |")
        print('|' + ' --- |' * (len(splits) + 4))
        for name, seeds in runs.items():
            if any(seed.scores.get(task) for seed in seeds):
                row = table_row(name, seeds, task, splits)
                print(f"| {' | '.join(row)} |")


def chart(runs, path):
    """Draw the same table in colours, without the splits on which no run is under 97 %, as these
    tell no run from another"""
    columns = [(task, split) for task in TASKS for split in tested_splits(runs, task)]
    values = np.array([[mean_exact(seeds, *column) for column in columns]
                       for seeds in runs.values()])
    telling = (values < 97).any(0)
    if telling.any():
        values = values[:, telling]
        columns = [column for column, tells in zip(columns, telling, strict=True) if tells]
    size = 2.4 + 0.37 * len(columns), 1.9 + 0.24 * len(runs)
    fig = Figure(figsize=size, layout='constrained')
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
    words = [in_words(*column) for column in columns]
    ax.set_xticks(range(len(columns)), words, rotation=55, ha='right', rotation_mode='anchor')
    ax.set_yticks(range(len(runs)), [literally(name.replace('_', ' ')) for name in runs])
    fig.supxlabel('exact match (%)', fontsize=10)
    save(fig, path)


def table(names, path):
    runs = load_scores(names)
    if not any(tested_splits(runs, task) for task in TASKS):
        raise ValueError("these runs were asked nothing that is in tasks/")
    print_table(runs)
    chart(runs, path)


# --- curves of a training, and of thought ---

def draw_losses(ax, rows, label):
    """The loss of the symbols, smoothed, of rows of a log -> the line"""
    losses = [row['symbols'] for row in rows]
    width = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(width) / width, 'valid') if losses else []
    at = [row['iter'] for row in rows[width - 1:]]
    line, = ax.plot(at, smooth, label=literally(label), marker='')
    return line


def curves(folders, path):
    """Draw the loss of the symbols and validation, out of distribution dotted, against updates, for
    each run and task"""
    fig = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = fig.subplots(1, 2)
    plain(left, xlabel='updates', ylabel='loss of the symbols', yscale='log')
    plain(right, xlabel='updates', ylabel='exact match in validation (%)', ylim=PER_CENT)
    for folder in folders:
        log = os.path.join(folder, 'log.jsonl')
        if not os.path.isfile(log):
            raise ValueError(f"{folder} has no log.jsonl; train.py writes it")
        rows = rows_in(log)
        trained = [row for row in rows if 'symbols' in row]
        validated = [row for row in rows if 'val' in row]
        for some, shape in ((trained, TRAINED), (validated, VALIDATED)):
            for row in some:
                check(row, shape, log)
        tasks = [task for row in validated for task in row['val']]
        tasks += [row['task'] for row in trained]
        for task in dict.fromkeys(tasks):
            label = task if len(folders) == 1 else f"{folder}: {task}"
            line = draw_losses(left, [row for row in trained if row['task'] == task], label)
            for split, style in (('val', '-'), ('val_ood', ':')):
                known = [row for row in validated if task in row[split]]
                right.plot([row['iter'] for row in known],
                           [100 * row[split][task] for row in known],
                           style, color=line.get_color())
    for ax in (left, right):
        ax.xaxis.set_major_formatter(EngFormatter())
    left.legend(frameon=False)
    save(fig, path)


def passes(names, path):
    """Draw exact match against how often the model may hear its own answer, and how often it did,
    by how many lines of working the question takes"""
    runs = load_scores(names)
    if len(runs) > 1:
        raise ValueError(f"name one run and its seeds, not {', '.join(runs)}")
    of_task = [seed.scores[task] for seed in every_seed(runs) if task in seed.scores]
    fig = Figure(figsize=(8.8, 3.8), layout='constrained')
    left, right = fig.subplots(1, 2)
    plain(left, xlabel='passes allowed', ylabel='exact match (%)', ylim=PER_CENT)
    plain(right, xlabel='lines of working that the question takes',
          ylabel='passes that the model used (mean)')
    right.axline((1, 1), slope=1, color='0.7')
    for split in TASKS[task].splits:
        tested = [tests[split] for tests in of_task if 'by_passes' in tests.get(split, {})]
        if not tested or not split.startswith(('iid', 'ood')):
            continue
        allowed = [k for k in tested[0]['by_passes']
                   if all(k in found['by_passes'] for found in tested)]
        exact = [100 * np.mean([found['by_passes'][k] for found in tested]) for k in allowed]
        left.plot(allowed, exact, label=in_words(task, split))
        used = [pair for found in tested for pair in found.get('passes_by_lines', {}).items()]
        right.plot([int(lines) for lines, _ in used], [mean for _, mean in used],
                   linestyle='none', alpha=0.8)
    if not left.lines:
        raise ValueError(f"none of these was taught {task} aloud; --task names another task")
    left.legend(frameon=False)
    save(fig, path)


# --- where it breaks: longer questions, worse sound ---

def tests_in(runs):
    """What the runs were asked, in the order of the files"""
    asked = [test for seed in every_seed(runs) for tests in seed.scores.values() for test in tests]
    return list(dict.fromkeys(asked))


def compare(ax, runs, at, tests):
    """Draw exact match on `tests`, one for each x of `at`, for each task; all but the first run
    dotted"""
    seeds = every_seed(runs)
    asked = [task for task in TASKS if any(task in seed.scores for seed in seeds)]
    for i, seeds in enumerate(runs.values()):
        for j, task in enumerate(asked):
            exact = [mean_exact(seeds, task, test) for test in tests]
            if not np.isnan(exact).all():
                line, = ax.plot(at, exact, ':' if i else '-', color=COLORS[j % len(COLORS)],
                                marker=MARKERS[j % len(MARKERS)])
                line.set_label('' if i else task)


def lengths(names, path):
    """Draw exact match against the length of questions"""
    runs = load_scores(names, 'lengths.json')
    at = sorted(filter(str.isdecimal, tests_in(runs)), key=int)
    fig = Figure(figsize=(6, 3.8), layout='constrained')
    ax = fig.subplots()
    plain(ax, xlabel='symbols of the question; digits of A in mod', ylabel='exact match (%)',
          ylim=PER_CENT)
    compare(ax, runs, at, at)
    ax.legend(frameon=False)
    save(fig, path)


# Kinds of sound (see conditions.py), in words: title, and what is measured
KINDS = {
    'white': ('white noise', 'signal to noise (dB)'),
    'pink': ('pink noise', 'signal to noise (dB)'),
    'echo': ('echo', '60 dB down after (s)'),
    'tempo': ('tempo', 'times as fast'),
    'gap': ('gaps', '(s)'),
    'off': ('all tones off pitch', 'by (Hz)'),
    'each': ('each tone off pitch', 'by up to (Hz)'),
    'loudness': ('loudness of each tone', 'up to (dB)'),
    'volume': ('a faint recording', '(dB)'),
    'clipped': ('clipped', 'at (share of a tone)'),
    'telephone': ('telephone', '300 Hz to (Hz)'),
}
OTHERS = ('clean', 'square', 'sawtooth', 'piano', 'mulaw', 'mp3_32', 'offset_0.2', 'hum_50',
          'clicks_5')


def robustness(names, path):
    """Draw exact match on iid questions against each kind of worse sound"""
    runs = load_scores(names, 'sounds.json')
    asked = tests_in(runs)
    fig = Figure(figsize=(11, 7), layout='constrained')
    *axes, last = fig.subplots(3, 4, sharey=True).flat
    for ax, (kind, (title, measure)) in zip(axes, KINDS.items(), strict=True):
        plain(ax, title=title, xlabel=measure, ylim=PER_CENT)
        sounds = [sound for sound in asked if sound.startswith(kind + '_')]
        compare(ax, runs, [sound.removeprefix(kind + '_') for sound in sounds], sounds)
    plain(last, title='others', ylim=PER_CENT)
    last.tick_params(axis='x', labelrotation=60)
    compare(last, runs, OTHERS, OTHERS)
    fig.supylabel('exact match (%)', fontsize=10)
    lines = last.get_legend_handles_labels()
    fig.legend(*lines, loc='outside upper center', frameon=False, ncols=len(COLORS))
    save(fig, path)


def confusion(names, path):
    """Draw which symbols were heard for which, in wrong answers of the right length"""
    pairs = Counter()
    for seed in every_seed(load_scores(names, 'sounds.json')):
        for tests in seed.scores.values():
            for found in tests.values():
                pairs.update(found.get('confused', {}))
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


# --- by difficulty ---

def load_summaries(names):
    """Folders, or summary.json files of score.py or text.ask -> {model: [{task: {level: exact match
    in per cent}} of each seed]}. Seeds' names differ in a last _s and a number."""
    models = {}
    for name in names:
        path = folder_of(name)
        if os.path.isdir(path):
            path = os.path.join(path, 'summary.json')
        if not os.path.isfile(path):
            raise ValueError(f"{name} has no summary.json; score.py and text.ask write it")
        summary = read_json(path, SUMMARY)
        levels = {task: {int(level): 100 * found['accuracy']
                         for level, found in part['by_difficulty'].items() if found['total']}
                  for task, part in summary['by_task'].items()}
        model = re.sub(r'_s\d+$', '', summary['model'])
        label = f"{model}, {summary.get('questions', 'in tones')}"
        models.setdefault(label, []).append(levels)
    return models


def scaling(names, path):
    """Draw accuracy against difficulty, for each task and model; of seeds the mean"""
    models = load_summaries(names)
    tasks = list(dict.fromkeys(task for seed in every_seed(models) for task in seed))
    if not tasks:
        raise ValueError("nothing was answered in any of these")
    fig = Figure(figsize=(2.8 * len(tasks), 3.2), layout='constrained')
    axes = fig.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, task in zip(axes, tasks, strict=True):
        plain(ax, title=task, xlabel='difficulty', xlim=(0.8, 3.2), ylim=PER_CENT)
        ax.set_xticks((1, 2, 3))
        lines = []
        for seeds in models.values():
            tested = [seed[task] for seed in seeds if task in seed]
            levels = sorted({level for found in tested for level in found})
            means = [np.mean([found[level] for found in tested if level in found])
                     for level in levels]
            lines += ax.plot(levels, means)
    axes[0].set_ylabel('right (%)')
    fig.legend(lines, map(literally, models), loc='outside lower center', frameon=False, ncols=2)
    save(fig, path)


# --- the program ---

PICTURES = {
    'spectrogram': spectrograms_of,
    'table': table,
    'curves': curves,
    'passes': passes,
    'lengths': lengths,
    'robustness': robustness,
    'confusion': confusion,
    'scaling': scaling,
}


def main():
    names = [arg for arg in dict.fromkeys(sys.argv[1:]) if not arg.startswith('-')]
    choices(globals(), what=('', *PICTURES), task=TASKS)
    if not names:
        fail("name the WAV files, or the folders of runs, to draw")
    is_run = names[0] == 'release' or os.path.isdir(names[0])
    kind = what or ('table' if is_run else 'spectrogram')
    path = out or kind + '.png'
    try:
        PICTURES[kind](names, path)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {path}: {e.strerror}")
    print(f"wrote {path}")


if __name__ == '__main__':
    main()
