"""
What was played? An FFT scorer: waveforms in, symbols out; and a checkpoint's accuracy, heard by it, on every split.

$ python score.py answer.wav --verbose=True
$ python score.py --out_dir=out/mirror

The second asks 1,000 questions of each split, prints a table and writes out/mirror/scores.json.
"""
import json
import math
import os
import sys
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import load_checkpoint, pick_device
from prepare import LOWEST, SAMPLE_RATE, SPACING, SPLITS, SYMBOLS, decode, read_wav, split_batches, working

# --- the scorer ---

WINDOW, HOP = 400, 160   # samples: 25 ms frames, 10 ms apart
TOLERANCE = 35.0         # Hz off a tone that still count as it; tones are 100 Hz apart
UNKNOWN = len(SYMBOLS)   # a sound that is no symbol, '?' in text


class Tones(NamedTuple):
    """Every tone of a batch of waveforms, in order: which waveform, the symbol or UNKNOWN, start and length in seconds, measured
    hertz, level in dB below a full-scale sine; (M,) each"""
    clip: torch.Tensor
    symbol: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    hertz: torch.Tensor
    level: torch.Tensor


def squared(z):
    """|z|^2 of complex numbers, without the square root that abs() takes"""
    return torch.view_as_real(z).square().sum(-1)


def find_tones(waves):
    """Waveforms (B, S) at 16 kHz -> Tones.

    A tone is a run of at least 4 frames whose energy lies mostly in one peak that is not 10 dB under the clip's loudest
    and stays near one tone. Its pitch is the FFT peak of the whole run, with a parabola through the three highest bins. It is
    UNKNOWN if no symbol is near, if a second peak is nearly as high, or if less than a quarter of its energy is in the peak."""
    waves = F.pad(waves.float(), (WINDOW // 2, WINDOW // 2 + -waves.shape[1] % HOP))
    window = torch.hann_window(WINDOW, device=waves.device)
    power = squared(torch.fft.rfft(waves.unfold(1, WINDOW, HOP) * window, 512))  # (B, T, 257)
    power[..., :4] = 0  # hum and DC, under 125 Hz
    peak, at = power.max(-1)
    near = (at[..., None] + torch.arange(-3, 4, device=at.device)).clamp(0, 256)
    share = power.gather(-1, near).sum(-1) / (power.sum(-1) + 1e-12)
    amplitude = peak.sqrt() * (2 / window.sum())
    tonal = amplitude * (share > 0.2)
    on = (tonal > 0.32 * tonal.amax(1, keepdim=True)) & (tonal > 1e-3)
    on = F.pad(on | (F.pad(on, (1, -1)) & F.pad(on, (-1, 1))), (1, 1))  # close holes of one frame
    nearest = ((at * (SAMPLE_RATE / 512) - LOWEST) / SPACING).round()
    moved = F.pad(nearest[:, 1:] != nearest[:, :-1], (2, 1))  # another tone without a gap
    starts, ends = on & (~F.pad(on, (1, -1)) | moved), on & (~F.pad(on, (-1, 1)) | F.pad(moved, (-1, 1)))
    clip, first = starts.nonzero(as_tuple=True)
    last = ends.nonzero(as_tuple=True)[1]
    keep = last - first >= 3
    clip, first, last = clip[keep], first[keep] - 1, last[keep] - 1
    if not len(clip):
        return Tones(clip, clip, *4 * [clip.float()])
    # one FFT for each tone, over at most 2,048 samples about its middle
    begin, length = first * HOP + WINDOW // 4, (last - first) * HOP + WINDOW // 2  # in the padded waveform
    n = length.clamp(max=2048)
    i = torch.arange(2048, device=waves.device)
    sound = waves.flatten()[(clip * waves.shape[1] + begin + (length - n) // 2)[:, None] + i.minimum(n[:, None] - 1)]
    taper = torch.sin(math.pi * (i + 0.5) / n[:, None]).square() * (i < n[:, None])
    power = squared(torch.fft.rfft(sound * taper))
    power[:, :16] = 0
    k = power[:, 1:-1].argmax(1) + 1
    left, top, right = (power.gather(1, (k + j)[:, None])[:, 0].clamp(min=1e-20).log() for j in (-1, 0, 1))
    hertz = (k + (left - right) / (2 * (left - 2 * top + right)).clamp(max=-1e-6)) * (SAMPLE_RATE / 2048)
    beside = (torch.arange(power.shape[1], device=k.device) - k[:, None]).abs()
    inside = (power * (beside <= 6)).sum(1) / power.sum(1).clamp(min=1e-20)
    second = (power * (beside > 6)).amax(1) / power.amax(1).clamp(min=1e-20)
    symbol = ((hertz - LOWEST) / SPACING).round().clamp(0, UNKNOWN - 1).long()
    error = (hertz - LOWEST - SPACING * symbol).abs()
    symbol = torch.where((error <= TOLERANCE) & (second < 0.16) & (inside > 0.25), symbol, UNKNOWN)
    level = 10 * torch.log10(power.amax(1).clamp(min=1e-20)) + 20 * torch.log10(2 / taper.sum(1))
    start = (begin - WINDOW // 2).clamp(min=0) / SAMPLE_RATE
    return Tones(clip, symbol, start, length / SAMPLE_RATE, hertz, level)


def transcribe(waves):
    """Waveforms (B, S) -> a list of B texts; '?' stands for a sound that is no symbol"""
    tones = find_tones(waves)
    rows = [[] for _ in waves]
    for clip, symbol in zip(tones.clip.tolist(), tones.symbol.tolist()):
        rows[clip].append(symbol)
    return [decode(r) for r in rows]


# --- a model's accuracy ---

def edit_distance(a, b):
    """Insertions, deletions and substitutions that turn text a into text b (Levenshtein)"""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


PASSES = (1, 2, 4, 8, 16)  # how often the model may hear its own answer, in the table of accuracy against thought


def evaluate(model, task, split, n, seed=1337, device='cpu', think=1, **override):
    """Ask n questions of a split and listen to the answers -> dict of exact match, token accuracy (share of the wanted
    symbols at the right place), mean edit distance, and mistakes as (asked, wanted, heard). With think > 1 also exact match
    after so many passes, the mean number of passes that changed something, in all and by how many lines the right working has,
    and the share that stopped by itself."""
    exact, right, total, distance, mistakes, asked = 0, 0, 0, 0, [], set()
    ladder, used, stopped = {k: 0 for k in PASSES if k <= think}, {}, 0
    for b in split_batches(task, split, n, seed, device, **override):
        answers, passes = model.generate(b.question, b.lengths, think, conversation=True)
        stopped += int((passes < think).sum())
        last = len(answers) - 1
        heard_at = {i: transcribe(answers[i]) for i in {last, *(min(k - 1, last) for k in ladder)}}
        wants, questions = [decode(a) for a in b.wanted], [decode(q) for q in b.asked]
        for k in ladder:
            ladder[k] += sum(h == w for h, w in zip(heard_at[min(k - 1, last)], wants))
        asked.update(questions)
        for q, n_passes in zip(questions, passes.tolist()) if think > 1 else ():
            used.setdefault(len(working(q)) - 1, []).append(n_passes)
        for q, wanted, heard in zip(questions, wants, heard_at[last]):
            total += len(wanted)
            right += sum(x == y for x, y in zip(wanted, heard))
            if heard == wanted:
                exact += 1
            else:
                distance += edit_distance(heard, wanted)
                mistakes.append((q, wanted, heard))
    thought = {'by_passes': {k: v / n for k, v in ladder.items()}, 'passes': sum(map(sum, used.values())) / n, 'stopped': stopped / n,
               'passes_by_lines': {k: sum(v) / len(v) for k, v in sorted(used.items())}} if think > 1 else {}
    return {'exact_match': exact / n, 'token_accuracy': right / total, 'edit_distance': distance / n, 'n': n,
            'distinct': len(asked), **thought, 'mistakes': mistakes}


if __name__ == '__main__':
    from configurator import SEEDS, bounds, configure, fail, provenance
    out_dir = 'out/mirror'  # folder of the checkpoint, and of scores.json
    init_from = 'out_dir'   # or release: the weights that come with the code; scores.json then goes to out/release
    num_samples = 1000      # questions of each split
    split = 'all'           # or one of them, such as ood_length
    seed = 1337             # of the questions; the same seed asks the same questions anywhere
    think = 16              # passes at most when a task is worked out aloud
    device = 'auto'         # auto, cpu, cuda, mps
    verbose = False         # a row for each tone of a WAV file; every mistake of a checkpoint
    wavs = [a for a in sys.argv[1:] if not a.startswith('-')]
    configure(globals(), [a for a in sys.argv[1:] if a.startswith('-')])

    for path in wavs:
        try:
            wave = read_wav(path)
        except ValueError as e:
            fail(e)
        tones = find_tones(wave[None])
        text = decode(tones.symbol)
        note = '' if text and '?' not in text else \
            '  (? is a sound that is no symbol)' if text else \
            '  (silence)' if wave.abs().max() < 1e-3 else '  (sound, but no steady tone)'
        print((f"{path}: " if len(wavs) > 1 else '') + text + note)
        if verbose:
            print(f"{'symbol':>6} {'start s':>8} {'length s':>8} {'hertz':>8} {'error Hz':>8} {'level dB':>8}")
            for _, s, start, length, hertz, level in zip(*[t.tolist() for t in tones]):
                error = (hertz - LOWEST + SPACING / 2) % SPACING - SPACING / 2  # from the nearest multiple
                print(f"{decode([s]):>6} {start:8.3f} {length:8.3f} {hertz:8.1f} {error:+8.1f} {level:8.1f}")
    if wavs:
        sys.exit(0)

    bounds(globals(), num_samples=1, think=1, seed=SEEDS)
    try:
        device = pick_device(device)
        model, checkpoint = load_checkpoint(out_dir, device, init_from)
        trained_on = checkpoint['config']
    except ValueError as e:
        fail(e)
    splits = [(task, name) for task in trained_on['tasks'].split(',') for name in SPLITS[task] if name == split
              or name.startswith(split + '_') or (split == 'all' and not name.startswith(('train', 'val')))]
    if not splits:
        fail(f"no split {split!r}; {trained_on['tasks']} has {', '.join(s for t in trained_on['tasks'].split(',') for s in SPLITS[t])}")
    scores, t0 = {}, time.time()
    print(f"{'task':8} {'split':14} {'questions':>9} {'distinct':>8} {'exact match':>11} {'token acc':>9} {'edit dist':>9}   first mistake")
    for task, name in splits:
        r = evaluate(model, task, name, num_samples, seed, device, think if task in trained_on['aloud'].split(',') else 1)
        wrong = ', '.join(f"asked {q}, wanted {a}, heard {h or 'nothing'}" for q, a, h in
                          r['mistakes'][:None if verbose else 1])
        print(f"{task:8} {name:14} {r['n']:9} {r['distinct']:8} {r['exact_match']:11.4f} {r['token_accuracy']:9.4f} {r['edit_distance']:9.4f}   {wrong}",
              flush=True)
        if 'passes' in r:
            print(f"{'':25} after {', '.join(f'{k}: {v:.3f}' for k, v in r['by_passes'].items())} passes; "
                  f"{r['passes']:.1f} used on average (by lines of working {', '.join(f'{k}: {v:.1f}' for k, v in r['passes_by_lines'].items())}), "
                  f"{r['stopped']:.1%} stopped by themselves")
        scores.setdefault(task, {})[name] = {k: v for k, v in r.items() if k != 'mistakes'}
    print()
    for task, rows in scores.items():
        for name, r in rows.items():
            print(f"{task}_{name}_em: {r['exact_match']:.4f}")
    print(f"seconds: {time.time() - t0:.1f}")
    if split != 'all':  # scores.json is of the whole test
        sys.exit(0)
    path = os.path.join('out/release' if init_from == 'release' else out_dir, 'scores.json')
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + '.tmp', 'w') as f:
            json.dump({'scores': scores, 'seed': seed, 'think': think, 'iterations': checkpoint['iter_num'],
                       'checkpoint': checkpoint.get('provenance'), **provenance()}, f, indent=1)
        os.replace(path + '.tmp', path)
    except OSError as e:
        fail(f"cannot write {path}: {e.strerror}")
