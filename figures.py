"""
Every picture.

$ python figures.py out/mirror/samples/000_question.wav out/mirror/samples/000_answer.wav    # spectrograms, symbols at their tones
$ python figures.py out/mod_s1 out/mod_s2 out/mod_s3    # a table of test results, and accuracy against passes
"""
import json
import os
import re
import sys

import numpy as np
from matplotlib.figure import Figure

from prepare import SAMPLE_RATE, SPLITS, decode, read_wav
from score import find_tones


def spectrogram(rows, path):
    """Draw (title, waveform (S,)) rows under one another to a PNG, with what the scorer hears written at the tones (up to
    20 seconds: beyond that nobody could read it)"""
    longest = max(len(wave) for _, wave in rows) / SAMPLE_RATE
    fig = Figure(figsize=(min(16, max(9, 3 * longest)), 0.6 + 2.7 * len(rows)), layout='constrained')
    axes = fig.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, wave) in zip(axes, rows):
        tones = find_tones(wave[None])
        top = max([3200.0, *tones.hertz.tolist()]) + 400
        padded = np.pad(wave.numpy(), (256, 512))  # the middle of the first window is time 0
        with np.errstate(divide='ignore'):  # silence is -inf dB
            *_, image = ax.specgram(padded, NFFT=512, Fs=SAMPLE_RATE, noverlap=432, vmin=-100, vmax=-25, cmap='magma',
                                    xextent=(0, (len(wave) + 256) / SAMPLE_RATE))
        for s, start, length, hertz in [] if longest > 20 else zip(*[t.tolist() for t in (tones.symbol, tones.start, tones.length, tones.hertz)]):
            ax.text(start + length / 2, hertz + 90, decode([s]), color='white', weight='bold', ha='center', va='bottom')
        ax.set(ylim=(0, top), xlim=(0, longest), ylabel='frequency (Hz)', facecolor='black')
        ax.set_title(title if len(title) < 90 else title[:87] + '...', loc='left', fontsize=10)
    axes[-1].set_xlabel('time (s)')
    fig.colorbar(image, ax=list(axes), label='power (dB)', fraction=0.05, pad=0.01)
    fig.savefig(path, dpi=110)


def load_scores(folders):
    """Run folders -> {name: [its scores of each seed]}; folders that differ only in a last _s and a number are seeds of one run"""
    runs = {}
    for folder in folders:
        try:
            with open(os.path.join(folder, 'scores.json')) as f:
                scores = json.load(f)['scores']
        except (OSError, ValueError, KeyError):
            raise ValueError(f"{folder} has no scores.json; make it with: python score.py --out_dir={folder}") from None
        runs.setdefault(re.sub(r'_s\d+$', '', os.path.basename(os.path.normpath(folder))), []).append(scores)
    return runs


def table(runs):
    """Exact match in per cent of every run on every split of each task, as Markdown: the mean over seeds and (the worst)"""
    for task in SPLITS:
        splits = [s for s in SPLITS[task] if any(s in one.get(task, {}) for seeds in runs.values() for one in seeds)]
        if splits:
            print(f"\n| {task} | seeds | {' | '.join(splits)} |\n|{' --- |' * (len(splits) + 2)}")
        for name, seeds in runs.items():
            cells = [[100 * one[task][s]['exact_match'] for one in seeds if s in one.get(task, {})] for s in splits]
            if any(cells):
                print(f"| {name} | {len(seeds)} | " + ' | '.join(
                    '' if not c else f"{c[0]:.4g}" if len(c) == 1 else f"{sum(c) / len(c):.4g} ({min(c):.4g})" for c in cells) + ' |')


def passes(runs, path):
    """Draw exact match against how often the model may hear its own answer, and how often it did, by what the question takes"""
    rows = {s: [one['mod'][s] for seeds in runs.values() for one in seeds if 'by_passes' in one.get('mod', {}).get(s, {})] for s in SPLITS['mod']}
    rows = {s: r for s, r in rows.items() if r}
    if not rows:
        raise ValueError("none of these was taught mod aloud, the task that takes passes")
    mean = lambda found: sum(found) / len(found)
    fig = Figure(figsize=(11, 4.2), layout='constrained')
    left, right = fig.subplots(1, 2)
    names = {'iid': 'one or two %', 'ood_digits_4': 'A of 4 digits', 'ood_digits_5': 'A of 5 digits',
             'ood_compose_3': 'three %', 'ood_compose_5': 'five %'}
    for color, marker, (split, name) in zip(('#0072b2', '#d55e00', '#cc79a7', '#009e73', '#e69f00'), 'os^Dv', names.items()):
        if split in rows:
            ks = sorted(map(int, rows[split][0]['by_passes']))
            left.plot(range(len(ks)), [100 * mean([r['by_passes'][str(k)] for r in rows[split]]) for k in ks], color=color, marker=marker, label=name)
            lines = sorted({int(n) for r in rows[split] for n in r['passes_by_lines']})
            right.plot(lines, [mean([r['passes_by_lines'][str(n)] for r in rows[split] if str(n) in r['passes_by_lines']]) for n in lines],
                       color=color, marker=marker, linestyle='none', alpha=0.8)
    left.set(xticks=range(len(ks)), xticklabels=ks, xlabel='passes allowed', ylabel='exact match (%)', ylim=(-3, 103))
    left.legend(frameon=False)
    right.axline((0, 0), slope=1, color='0.7', linewidth=1, zorder=0)
    right.set(xlabel='lines of working the question takes', ylabel='passes that the model used (mean)', xlim=(0, None), ylim=(0, None))
    for ax in (left, right):
        ax.grid(alpha=0.25)
        ax.spines[['top', 'right']].set_visible(False)
    fig.savefig(path, dpi=110)


if __name__ == '__main__':
    from configurator import configure, fail
    out = ''  # the picture to write; '' is spectrogram.png or passes.png
    named = [a for a in sys.argv[1:] if not a.startswith('-')]
    configure(globals(), [a for a in sys.argv[1:] if a.startswith('-')])
    if not named:
        fail("name the WAV files, or the folders of runs, to draw")
    folders = [a for a in named if os.path.isdir(a)]
    out = out or ('passes.png' if folders else 'spectrogram.png')
    try:
        if folders:
            runs = load_scores(named)
            table(runs)
            if any('by_passes' in one.get('mod', {}).get('iid', {}) for seeds in runs.values() for one in seeds):
                passes(runs, out)
        else:
            spectrogram([(w, read_wav(w)) for w in named], out)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {out}: {e.strerror}")
