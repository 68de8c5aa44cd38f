"""
Every picture.

$ python figures.py out/mirror/samples/000_question.wav out/mirror/samples/000_answer.wav    # spectrograms, symbols at their tones
$ python figures.py out/*                                   # a table of runs' test results, and its chart
$ python figures.py --what=passes out/mod out/mod_s*        # accuracy against how often the model may hear its own answer
$ python figures.py --what=robustness out/multitask         # accuracy against noise, echo, clipping, tempo, pitch, ...
$ python figures.py --what=counting out/bracket             # can the depth of brackets be read off the encoder's states?
$ python figures.py --what=pointer out/mirror               # where the pointer points

Runs are shown in the order in which they are named. Those whose folders differ only in a last _s and a number are seeds of one run: means are drawn, and tables show (the worst).
"""
import io
import json
import math
import os
import re
import sys

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.io import wavfile

import model as jmamba
from prepare import LOUDNESS, SAMPLE_RATE, SPLITS, decode, depths, make_batch, max_samples, play, play_text, read_wav
from score import evaluate, find_tones

COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')  # told apart by the colour-blind too (Okabe and Ito)


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
    """Run folders -> {name: [(its scores, seconds of training) of each seed]}"""
    folders, runs = {f: 'out/release' if f == 'release' else f for f in folders}, {}
    top = os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in folders.values()] or ['.'])
    for named, folder in folders.items():
        flag = '--init_from=release' if named == 'release' else f'--out_dir={folder}'
        try:
            with open(os.path.join(folder, 'scores.json')) as f:
                found = json.load(f)
            runs.setdefault(re.sub(r'_s\d+$', '', os.path.relpath(folder, top)), []).append((found['scores'], found.get('seconds')))
        except (OSError, ValueError, KeyError):
            print(f"{named} has no scores.json; make it with: python score.py {flag}", file=sys.stderr)
    if not runs:
        raise ValueError("none of these folders has a scores.json; score.py makes it")
    return runs


def cells(runs, task):
    """Exact match in per cent of each run that was tested on a task, in all splits -> splits, {name: [its seeds' numbers] for each}"""
    splits = [s for s in SPLITS[task] if any(s in one.get(task, {}) for seeds in runs.values() for one, _ in seeds)]
    rows = {name: [[100 * one[task][s]['exact_match'] for one, _ in seeds if s in one.get(task, {})] for s in splits] for name, seeds in runs.items()}
    return splits, {name: row for name, row in rows.items() if any(row)}


def mean(numbers):
    return sum(numbers) / len(numbers)


def table(runs):
    """Print every run on every split of each task, as Markdown"""
    for task in SPLITS:
        splits, rows = cells(runs, task)
        if rows:
            print(f"\n| {task} | seeds | questions | {' | '.join(splits)} | seconds |\n|{' --- |' * (len(splits) + 4)}")
        for name, row in rows.items():
            texts = ['' if not c else f"{c[0]:.4g}" if len(c) == 1 else f"{mean(c):.4g} ({min(c):.4g})" for c in row]
            times = [t for _, t in runs[name] if t]
            asked = min(split['n'] for one, _ in runs[name] for split in one.get(task, {}).values())
            print(f"| {name} | {len(runs[name])} | {asked} | " + ' | '.join(texts) + f" | {f'{mean(times):.0f}' if times else ''} |")


def chart(runs, path):
    """Draw the same table, in colours"""
    found = {task: found for task in SPLITS if (found := cells(runs, task))[1]}
    columns = [len(splits) for splits, _ in found.values()]
    fig = Figure(figsize=(3 + 0.55 * sum(columns), 2.2 + 0.32 * len(runs)), layout='constrained')
    axes = fig.subplots(1, len(found), sharey=True, squeeze=False, gridspec_kw={'width_ratios': columns})[0]
    for ax, (task, (splits, rows)) in zip(axes, found.items()):
        values = np.array([[mean(c) if c else np.nan for c in rows.get(name, [[]] * len(splits))] for name in runs])
        ax.imshow(values, vmin=0, vmax=100, cmap='YlGnBu', aspect='auto')
        for (i, j), v in np.ndenumerate(values):
            if v == v:
                ax.text(j, i, f"{v:.3g}", ha='center', va='center', fontsize=9, color='white' if v > 60 else 'black')
        ax.set_xticks(range(len(splits)), splits, rotation=60, ha='right')
        ax.set_yticks(range(len(runs)), runs)
        ax.set_title(f"{task}: exact match (%)", fontsize=10)
    fig.savefig(path, dpi=110)


def plain(ax, **settings):
    ax.set(**settings)
    ax.grid(alpha=0.25)
    ax.spines[['top', 'right']].set_visible(False)


def passes(runs, path):
    """Draw exact match against how often the model may hear its own answer, and how often it did, by what the question takes"""
    if len(runs) > 1:
        raise ValueError(f"name one run and its seeds, not {', '.join(runs)}")
    ones = [one['mod'] for seeds in runs.values() for one, _ in seeds if 'by_passes' in one.get('mod', {}).get('iid', {})]
    if not ones:
        raise ValueError("none of these was taught mod aloud, the task that takes passes")
    fig = Figure(figsize=(11, 4.2), layout='constrained')
    left, right = fig.subplots(1, 2)
    names = {'iid': 'one or two %', 'ood_digits_4': 'A of 4 digits', 'ood_digits_5': 'A of 5 digits',
             'ood_compose_3': 'three %', 'ood_compose_5': 'five %'}
    for color, marker, (split, name) in zip(COLORS, 'os^Dv', names.items()):
        rows = [one[split] for one in ones if split in one]
        if rows:
            ks = sorted(map(int, rows[0]['by_passes']))
            left.plot(range(len(ks)), [100 * mean([r['by_passes'][str(k)] for r in rows]) for k in ks], color=color, marker=marker, label=name)
            lines = sorted({int(n) for r in rows for n in r['passes_by_lines']})
            right.plot(lines, [mean([r['passes_by_lines'][str(n)] for r in rows if str(n) in r['passes_by_lines']]) for n in lines],
                       color=color, marker=marker, linestyle='none', alpha=0.8)
    left.legend(frameon=False)
    right.axline((0, 0), slope=1, color='0.7', linewidth=1, zorder=0)
    plain(left, xticks=range(len(ks)), xticklabels=ks, xlabel='passes allowed', ylabel=f"exact match (%) of {ones[0]['iid']['n']:,} questions", ylim=(-3, 103))
    plain(right, xlabel='lines of working the question takes', ylabel='passes that the model used (mean)', xlim=(0, None), ylim=(0, None))
    fig.savefig(path, dpi=110)


# --- what a model makes of worse sound ---

def noise_at(b, db, pink):
    """White or pink noise, the tones' power over its own being so many dB"""
    g = torch.Generator().manual_seed(7)
    noise = torch.randn(b.question.shape, generator=g)
    if pink:
        spectrum = torch.fft.rfft(noise)
        noise = torch.fft.irfft(spectrum / torch.arange(spectrum.shape[1]).clamp(min=1).sqrt(), n=noise.shape[1])
        noise /= noise.std()
    sounding = b.answer.new_tensor(LOUDNESS ** 2 / 2)  # power of a tone of middle loudness
    return b._replace(question=b.question + noise * (sounding * 10 ** (-db / 10)).sqrt())


def echo(b, seconds):
    """Reverberation: exponentially decaying noise after the direct sound, 60 dB down after so many seconds. As in a room, it is the louder
    in all the longer it lasts: 6 dB under the direct sound at 0.4 s."""
    n = max(1, round(seconds * SAMPLE_RATE))
    tail = torch.randn(n, generator=torch.Generator().manual_seed(7)) * 10 ** (-3 * torch.arange(n) / n)
    tail *= 0.5 * (seconds / 0.4) ** 0.5 / tail.norm()
    tail[0] = 1
    size = b.question.shape[1] + n
    wet = torch.fft.irfft(torch.fft.rfft(b.question, size) * torch.fft.rfft(tail, size), size)[:, :b.question.shape[1]]
    return b._replace(question=wet)


def replayed(b, tempo=1.0, hertz=0.0):
    """The same questions at another tempo and pitch"""
    r = b.rhythm
    r = r._replace(start=r.start / tempo, length=r.length / tempo, detune=r.detune + hertz)
    n = math.ceil(max_samples(b.asked.shape[1]) / tempo)
    noise = 0.015 * torch.randn(len(b.asked), n, generator=torch.Generator().manual_seed(7))
    return b._replace(question=play(b.asked, r, n) + noise, lengths=(b.lengths / tempo).long())


def filtered(b, low, high):
    """Band-limited, as by a telephone"""
    from scipy.signal import butter, sosfilt  # slow to import, and sample.py does without
    return b._replace(question=torch.from_numpy(sosfilt(butter(6, (low, high), 'bandpass', fs=SAMPLE_RATE, output='sos'), b.question.numpy())).float())


def through_file(b, rate):
    """Written to a WAV file of another sample rate, and read back"""
    from scipy.signal import resample_poly
    def there_and_back(wave):
        file = io.BytesIO()
        wavfile.write(file, rate, resample_poly(wave.numpy().astype(np.float64), rate, SAMPLE_RATE).astype(np.float32))
        file.seek(0)
        return F.pad(read_wav(file, 'file'), (0, len(wave)))[:len(wave)]
    return b._replace(question=torch.stack([there_and_back(w) for w in b.question]))


WORSE = {
    'white noise: signal to noise (dB)': ((20, 10, 5, 0, -5, -10), lambda b, x: noise_at(b, x, pink=False)),
    'pink noise: signal to noise (dB)': ((20, 10, 5, 0, -5, -10), lambda b, x: noise_at(b, x, pink=True)),
    'reverberation (s)': ((0, 0.1, 0.2, 0.4, 0.8), echo),
    'clipped at (share of a middling tone)': ((1.0, 0.5, 0.2, 0.1, 0.05), lambda b, x: b._replace(question=LOUDNESS * (b.question / (LOUDNESS * x)).clamp(-1, 1))),
    'band from 300 Hz to (Hz)': ((7000, 5000, 3400, 3000), lambda b, x: filtered(b, 300, x)),
    'tempo': ((0.8, 0.9, 1.0, 1.1, 1.25), lambda b, x: replayed(b, tempo=x)),
    'pitch shifted by (Hz)': ((-40, -20, -10, 0, 10, 20, 40), lambda b, x: replayed(b, hertz=x)),
    'sample rate of the file (Hz)': ((8000, 11025, 16000, 22050, 44100, 48000), through_file),
}


def robustness(model, config, path, n):
    """Draw exact match on iid questions against eight kinds of worse sound"""
    fig = Figure(figsize=(15, 6.5), layout='constrained')
    for ax, (label, (xs, worse)) in zip(fig.subplots(2, 4).flat, WORSE.items()):
        for color, marker, task in zip(COLORS, 'os^', config['tasks'].split(',')):
            think = config['think'] if task in config['aloud'].split(',') else 1
            ys = [100 * evaluate(model, task, 'iid', n, think=think, spoil=lambda b: worse(b, x))['exact_match'] for x in xs]
            print(f"{task}, {label}: {', '.join(f'{x:g}: {y:.1f}' for x, y in zip(xs, ys))}", flush=True)
            ax.plot(range(len(xs)), ys, color=color, marker=marker, label=task)
        plain(ax, xlabel=label, xticks=range(len(xs)), xticklabels=[f"{x:g}" for x in xs], ylabel='exact match (%)', ylim=(-3, 103))
        ax.tick_params(axis='x', labelrotation=30 if len(str(xs[0])) > 3 else 0)
    fig.axes[0].legend(frameon=False)
    fig.savefig(path, dpi=110)


# --- what goes on inside ---

@torch.no_grad()
def states_of_brackets(model, split, n, **more):
    """n bracket questions of a split -> the encoder's tokens at the end of each bracket (n, N, D), the depth there, whether it has been below
    0 by then, and whether there is a bracket, (n, N) each"""
    b = make_batch('bracket', split, n, torch.Generator().manual_seed(7), **more)
    memory = model.encode(model.hear(b.question))
    at = (b.rhythm.end * SAMPLE_RATE / model.config.token).long().clamp(1, memory.shape[1]) - 1  # the last token that hears nothing of the next
    depth, below = depths(b.asked)
    return memory.gather(1, at[..., None].expand(-1, -1, memory.shape[2])), depth, below, b.asked >= 0


def counting(model, path):
    """Fit a line from the encoder's states to the depth of brackets, and to whether it has been below 0, on questions as long as in
    training; draw how well both can be read off at each place in these and in longer questions. Dotted: the same for a model that has
    learned nothing, which can count a little too, as half of its heads never forget."""
    torch.manual_seed(0)
    untrained = jmamba.MiniJMamba(model.config).eval()
    fig = Figure(figsize=(13, 3.8), layout='constrained')
    trace, left, right = fig.subplots(1, 3)
    ones = lambda t: torch.cat([t, torch.ones(*t.shape[:-1], 1)], -1).double()
    for net, style in ((model, '-'), (untrained, ':')):
        x, depth, below, there = states_of_brackets(net, 'train', 1000)
        X, targets = ones(x)[there], torch.stack([depth, below], -1)[there].double()
        line = torch.linalg.solve(X.T @ X + 1e-3 * torch.eye(X.shape[1], dtype=X.dtype), X.T @ targets)
        for color, marker, length in zip(COLORS, 'os^D', (12, 20, 40, 100)):
            x, depth, below, there = states_of_brackets(net, 'val' if length == 12 else 'val_ood', 100, low=length, high=length)
            found = ones(x) @ line
            hits = (found[..., 0].round() == depth).double().mean(0), ((found[..., 1] > 0.5) == below).double().mean(0)
            print(f"{'' if net is model else 'untrained, '}length {length}: the depth can be read off at {hits[0].mean():.1%} of the brackets, "
                  f"whether it has been below 0 at {hits[1].mean():.1%} (always no: {1 - below.double().mean():.1%})")
            for ax, hit in zip((left, right), hits):
                ax.plot(range(1, length + 1), 100 * hit, style, color=color, **({'marker': marker, 'markevery': max(1, length // 10), 'label': f"length {length}"}
                                                                                if net is model else {'alpha': 0.5}))
            if length == 40 and net is model:
                trace.step(range(1, 41), depth[0], where='mid', color='0.6', label='depth')
                trace.plot(range(1, 41), found[0, :, 0], color=color, label='read off the state')
    plain(trace, xlabel='bracket', ylabel='depth', title='one question of length 40')
    plain(left, xlabel='bracket', ylabel='depth right, rounded (%)', ylim=(-3, 103), title='depth')
    plain(right, xlabel='bracket', ylabel='right (%)', ylim=(-3, 103), title='has it been below 0?')
    left.plot([], [], ':', color='0.4', label='untrained')
    trace.legend(frameon=False)
    left.legend(frameon=False)
    fig.savefig(path, dpi=110)


@torch.no_grad()
def pointer(model, path, text='CABLEKAJ'):
    """Draw where in the question each frame of the answer is fetched from"""
    if not model.config.pointer:
        raise ValueError("this model has no pointer")
    kept, local_weights, wave = [], jmamba.local_weights, play_text(text)[None]
    heard = model.hear(wave)
    memory = model.encode(heard)
    jmamba.local_weights = lambda *a, **more: kept.append(local_weights(*a, **more)) or kept[-1]
    try:
        model.answer(memory, heard, torch.tensor([wave.shape[1]]))
    finally:
        jmamba.local_weights = local_weights
    weights, w = kept[0][0, -1], jmamba.WINDOW  # (T / w, w, 3w); the pointer is the last head of the cross-attention, which comes first
    T = math.ceil(wave.shape[1] / model.config.token)
    full = torch.zeros(len(weights) * w, (len(weights) + 2) * w)
    for i, block in enumerate(weights):
        full[i * w:(i + 1) * w, i * w:(i + 3) * w] = block
    full, seconds = full[:T, w:w + T], T * model.config.token / SAMPLE_RATE
    fig = Figure(figsize=(6, 5), layout='constrained')
    ax = fig.subplots()
    image = ax.imshow(full.numpy(), origin='lower', extent=(0, seconds, 0, seconds), cmap='magma', vmin=0, vmax=1)
    fig.colorbar(image, ax=ax, label='attention')
    ax.set(xlabel='time in the question (s)', ylabel='time in the answer (s)', title=f"the pointer, asked {text}")
    fig.savefig(path, dpi=110)


if __name__ == '__main__':
    from configurator import bounds, configure, fail
    what = ''          # passes, robustness, counting or pointer; '' is spectrograms of WAV files, the table and chart of runs
    out = ''           # the picture to write; '' is named after what it shows
    num_samples = 200  # questions for each point of robustness
    named = list(dict.fromkeys(a for a in sys.argv[1:] if not a.startswith('-')))
    configure(globals(), [a for a in sys.argv[1:] if a.startswith('-')])
    bounds(globals(), num_samples=1)
    if not named:
        fail("name the WAV files, or the folders of runs, to draw")
    runs = [name for name in named if name == 'release' or os.path.isdir(name)]
    what = what or ('table' if named[0] in runs else 'spectrogram')
    out = out or what + '.png'
    try:
        if what == 'spectrogram':
            spectrogram([(w, read_wav(w)) for w in named], out)
        elif what == 'table':
            scores = load_scores(runs)
            table(scores)
            chart(scores, out)
        elif what == 'passes':
            passes(load_scores(named), out)
        elif what in ('robustness', 'counting', 'pointer'):
            if len(named) > 1:
                fail(f"{what} is of one run: name its folder alone")
            net, checkpoint = jmamba.load_checkpoint(named[0], init_from='release' if named[0] == 'release' else 'out_dir')
            if what == 'counting' and 'bracket' not in checkpoint['config']['tasks']:
                fail(f"counting is for a model of bracket, not of {checkpoint['config']['tasks']}")
            if what == 'robustness':
                robustness(net, checkpoint['config'], out, num_samples)
            else:
                {'counting': counting, 'pointer': pointer}[what](net, out)
        else:
            fail(f"what is passes, robustness, counting or pointer, not {what!r}")
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {out}: {e.strerror}")
    print(f"wrote {out}")
