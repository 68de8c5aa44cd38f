"""
What was played? An FFT scorer: waveforms in, symbols out; and a checkpoint's accuracy, heard by it, on every split.

$ python score.py answer.wav --verbose=True
$ python score.py --out_dir=out/mirror
$ python score.py --out_dir=out/mirror --errors=True            # and sorts the mistakes
$ python score.py config/control_noise.py --out_dir=out/mirror  # questions without tones: it must not know the answers

The second asks 1,000 questions of each split, prints a table and writes out/mirror/scores.json.
"""
import json
import math
import os
import re
import sys
import time
from collections import Counter
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import load_checkpoint, pick_device
from prepare import LOWEST, SAMPLE_RATE, SPACING, SPLITS, SYMBOLS, Rhythm, decode, depth_of, fresh_folder, leading, play, read_wav, split_batches, working, write_wav

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


def find_tones(waves, shortest=4):
    """Waveforms (B, S) at 16 kHz -> Tones.

    A tone is a run of at least `shortest` frames, 2 or more, whose energy lies mostly in one peak that is not 10 dB under the clip's loudest
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
    keep = last - first >= shortest - 1
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
    own = beside <= (4096 // n).clamp(min=6)[:, None]  # the peak of a tone that is shorter than 4 frames is wider
    inside = (power * own).sum(1) / power.sum(1).clamp(min=1e-20)
    second = (power * ~own).amax(1) / power.amax(1).clamp(min=1e-20)
    symbol = ((hertz - LOWEST) / SPACING).round().clamp(0, UNKNOWN - 1).long()
    error = (hertz - LOWEST - SPACING * symbol).abs()
    symbol = torch.where((error <= TOLERANCE) & (second < 0.16) & (inside > 0.25), symbol, UNKNOWN)
    level = 10 * torch.log10(power.amax(1).clamp(min=1e-20)) + 20 * torch.log10(2 / taper.sum(1))
    start = (begin - WINDOW // 2).clamp(min=0) / SAMPLE_RATE
    return Tones(clip, symbol, start, length / SAMPLE_RATE, hertz, level)


def transcribe(waves, shortest=4):
    """Waveforms (B, S) -> a list of B texts; '?' stands for a sound that is no symbol. Tones as in find_tones."""
    tones = find_tones(waves, shortest)
    rows = [[] for _ in waves]
    for clip, symbol in zip(tones.clip.tolist(), tones.symbol.tolist()):
        rows[clip].append(symbol)
    return [decode(r) for r in rows]


# --- a model's accuracy ---

def edits(a, b):
    """The fewest insertions, deletions and substitutions that turn text b into text a (Levenshtein) -> their numbers"""
    row = [(j, 0, j, 0) for j in range(len(b) + 1)]  # (all, insertions, deletions, substitutions), of a's start and b's first j
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], (i, i, 0, 0)
        for j, y in enumerate(b, 1):
            (n, p, q, r), (n1, p1, q1, r1), (n2, p2, q2, r2) = row[j], row[j - 1], previous
            previous = row[j]
            row[j] = min((n2 + (x != y), p2, q2, r2 + (x != y)), (n + 1, p + 1, q, r), (n1 + 1, p1, q1 + 1, r1))
    return row[-1][1:]


def edit_distance(a, b):
    return sum(edits(a, b))


PASSES = (1, 2, 4, 8, 16)  # how often the model may hear its own answer, in the table of accuracy against thought


def spoil_batch(b, how):
    """A batch with its questions spoilt: 'phase', tones of other phases; 'noise', noise of the same energy in the place of
    tones; 'longer', half a second of silence behind; 'shorter', nothing behind the last tone"""
    if how == 'longer':
        pad = (0, SAMPLE_RATE // 2)
        return b._replace(question=F.pad(b.question, pad), answer=F.pad(b.answer, pad), lengths=b.lengths + SAMPLE_RATE // 2)
    if how == 'shorter':
        ends = torch.where(b.asked >= 0, b.rhythm.start + b.rhythm.length, 0).amax(1)
        return b._replace(lengths=(ends * SAMPLE_RATE).long())
    g = torch.Generator(b.question.device).manual_seed(len(b.lengths))
    if how == 'phase':
        phase = 2 * math.pi * torch.rand(b.asked.shape, generator=g, device=b.question.device)
        noise = b.question - play(b.asked, b.rhythm, b.question.shape[1])
        return b._replace(question=noise + play(b.asked, b.rhythm._replace(phase=phase), b.question.shape[1]))
    energy = F.avg_pool1d(b.question.square()[:, None], 81, 1, 40)[:, 0]  # over 5 ms
    return b._replace(question=energy.sqrt() * torch.randn(b.question.shape, generator=g, device=b.question.device))


def read_logits(model, question, lengths, rhythm):
    """What the symbol logits say, at the middle of each tone -> a list of texts. To tell kinds of mistakes apart, never for a score."""
    logits, middle = model.reply(question, lengths)[2], (rhythm.start + rhythm.length / 2) * SAMPLE_RATE  # of each tone
    at = ((middle - model.config.middle) / model.config.token).round().long().clamp(0, logits.shape[1] - 1)
    symbols = logits.argmax(2).gather(1, at)
    return [decode(row) for row in symbols.where((symbols < UNKNOWN) & (middle < lengths[:, None]), -1)]


def diagnose(task, line, wanted, heard, read, brief):
    """One line, asked, wanted, heard in the audio, read from the logits, and heard in the audio if tones of 20 ms count as well -> dict: its
    kind, and what was hard about it.

    reasoning: the logits say the same wrong thing; rendering: they are right; timing: so are the tones, but for some that run together,
    fall apart or are too short; both: audio and logits are wrong in different ways; unfinished: the line is right, and there were no passes left."""
    once = lambda text: re.sub(r'(.)\1+', r'\1', text)  # AAB -> AB
    kind = 'unfinished' if heard == wanted else 'reasoning' if heard == read else 'both' if read != wanted else \
        'timing' if once(wanted) in (once(heard), once(brief)) else 'rendering'
    found = {'kind': kind, **dict(zip(('insertions', 'deletions', 'substitutions'), edits(heard, wanted)))}
    if task == 'mod' and '%' in line:
        a, b = line.split('%')[:2]
        lead = int(a[:leading(a, b)] or 0)
        found |= {'digits': len(a), 'quotient': lead // int(b), 'A < B': int(a or 0) < int(b), 'borrow': lead % 10 < lead // int(b) * int(b) % 10}
    if task == 'bracket' and set(line) <= set('()'):
        depth = depth_of(line)
        found |= {'length': len(line), 'deepest': max(depth), 'first violation': next((i for i, d in enumerate(depth) if d < 0), 'none')}
    return found


def first_wrong_line(model, task, lines, sounds, heard, lengths, rhythm, keep):
    """Diagnose the first line of a conversation that is not the one of `lines`, from the question to the answer, given its sounds, (1, S)
    each, the question's first, and what was heard in the answers -> dict, with the two sounds if they are to be kept"""
    line = lambda k: lines[min(k, len(lines) - 1)]
    k = next((k for k, h in enumerate(heard) if h != line(k + 1)), len(heard) - 1)
    read = read_logits(model, sounds[k], lengths, rhythm)[0]
    return {'line': k + 1, 'line_asked': line(k), 'line_wanted': line(k + 1), 'line_heard': heard[k], 'line_read': read,
            **diagnose(task, line(k), line(k + 1), heard[k], read, transcribe(sounds[k + 1], 2)[0]),
            **({'sounds': [s[0, :lengths[0]].cpu().clone() for s in sounds[k:k + 2]]} if keep else {})}


@torch.no_grad()
def evaluate(model, task, split, n, seed=1337, device='cpu', think=1, spoil=None, errors=False, **override):
    """Ask n questions of a split and listen to the answers -> dict of exact match, token accuracy (share of the wanted
    symbols at the right place), mean edit distance, and mistakes as dicts of what was asked, wanted and heard. With think > 1 also
    exact match after so many passes, the mean number of passes that changed something, in all and by how many lines the right
    working has, and the share that stopped by itself. spoil(batch) changes what is asked. errors=True diagnoses each mistake at its first wrong line and keeps the sounds."""
    exact, right, total, distance, mistakes, asked = 0, 0, 0, 0, [], set()
    ladder, used, stopped = {k: 0 for k in PASSES if k <= think}, {}, 0
    for b in split_batches(task, split, n, seed, device, **override):
        b = spoil(b) if spoil else b
        answers, passes = model.generate(b.question, b.lengths, think, conversation=True)
        stopped += int((passes < think).sum())
        last = len(answers) - 1
        heard_at = {i: transcribe(answers[i]) for i in (range(last + 1) if errors else {last, *(min(k - 1, last) for k in ladder)})}
        wants, questions = [decode(a) for a in b.wanted], [decode(q) for q in b.asked]
        for k in ladder:
            ladder[k] += sum(h == w for h, w in zip(heard_at[min(k - 1, last)], wants))
        asked.update(questions)
        for q, n_passes in zip(questions, passes.tolist()) if think > 1 else ():
            used.setdefault(len(working(q)) - 1, []).append(n_passes)
        for i, (q, wanted, heard) in enumerate(zip(questions, wants, heard_at[last])):
            total += len(wanted)
            right += sum(x == y for x, y in zip(wanted, heard))
            if heard == wanted:
                exact += 1
                continue
            distance += edit_distance(heard, wanted)
            mistakes.append({'asked': q, 'wanted': wanted, 'heard': heard})
            if errors:
                one = slice(i, i + 1)
                mistakes[-1] |= first_wrong_line(model, task, working(q) if think > 1 else [q, wanted], [b.question[one], *(a[one] for a in answers)],
                                                 [heard_at[k][i] for k in range(last + 1)], b.lengths[one], Rhythm(*[t[one] for t in b.rhythm]), keep=len(mistakes) <= 20)
    thought = {'by_passes': {k: v / n for k, v in ladder.items()}, 'passes': sum(map(sum, used.values())) / n, 'stopped': stopped / n,
               'passes_by_lines': {k: sum(v) / len(v) for k, v in sorted(used.items())}} if think > 1 else {}
    return {'exact_match': exact / n, 'token_accuracy': right / total, 'edit_distance': distance / n, 'n': n,
            'distinct': len(asked), **thought, 'mistakes': mistakes}


def write_errors(mistakes, folder, name):
    """Write mistakes to folder/name.jsonl, the sounds of the first ones to folder/name/, and print what kinds there are"""
    fresh_folder(os.path.join(folder, name), r'\d+_(question|answer)\.wav')
    for i, m in enumerate(mistakes):
        for kind, sound in zip(('question', 'answer'), m.pop('sounds', ())):
            m[kind] = f'{name}/{i:03d}_{kind}.wav'
            write_wav(os.path.join(folder, m[kind]), sound)
    with open(os.path.join(folder, name + '.jsonl'), 'w') as f:
        f.writelines(json.dumps(m) + '\n' for m in mistakes)
    print(f"\nwrote {len(mistakes)} mistakes to {os.path.join(folder, name + '.jsonl')}, the sounds of the first ones to {os.path.join(folder, name)}")
    count = lambda rows, key: ', '.join(f"{k}: {v}" for k, v in Counter(r[key] for r in rows if key in r).most_common(6))
    print(f"{'task':8} {'split':14} {'wrong':>5}  what is wrong with the first wrong line")
    for task, split in dict.fromkeys((m['task'], m['split']) for m in mistakes):
        rows = [m for m in mistakes if (m['task'], m['split']) == (task, split)]
        more = [f"{key:16} {found}" for key in ('line', 'digits', 'quotient', 'A < B', 'borrow', 'length', 'deepest', 'first violation') if (found := count(rows, key))]
        print(f"{task:8} {split:14} {len(rows):5}  {count(rows, 'kind')}; " + ', '.join(
            f"{sum(r[key] for r in rows)} {key}" for key in ('insertions', 'deletions', 'substitutions')) + ''.join(f"\n{'':31}{m}" for m in more))


if __name__ == '__main__':
    from configurator import SEEDS, bounds, configure, fail, provenance
    out_dir = 'out/mirror'  # folder of the checkpoint, and of scores.json
    init_from = 'out_dir'   # or release: the weights that come with the code; scores.json then goes to out/release
    num_samples = 1000      # questions of each split
    split = 'all'           # or one of them, such as ood_length
    seed = 1337             # of the questions; the same seed asks the same questions anywhere
    think = 16              # passes at most when a task is worked out aloud
    device = 'auto'         # auto, cpu, cuda
    verbose = False         # a row for each tone of a WAV file; every mistake of a checkpoint
    errors = False          # sort the mistakes: prints a table, writes errors.jsonl and errors/, the sounds of the first ones; with the split and the control in their names, if one is given
    spoil = ''              # a control: phase, noise, longer, shorter: see spoil_batch; writes no scores.json
    wavs = [a for a in sys.argv[1:] if not a.startswith('-') and not a.endswith('.py')]
    configure(globals(), [a for a in sys.argv[1:] if a not in wavs])

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
    if spoil not in ('', 'phase', 'noise', 'longer', 'shorter'):
        fail(f"spoil is phase, noise, longer or shorter, not {spoil!r}")
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
    scores, wrong_lines, t0 = {}, [], time.time()
    print(f"{'task':8} {'split':14} {'questions':>9} {'distinct':>8} {'exact match':>11} {'token acc':>9} {'edit dist':>9}   first mistake")
    for task, name in splits:
        r = evaluate(model, task, name, num_samples, seed, device, think if task in trained_on['aloud'].split(',') else 1,
                     partial(spoil_batch, how=spoil) if spoil else None, errors)
        wrong = ', '.join(f"asked {m['asked']}, wanted {m['wanted']}, heard {m['heard'] or 'nothing'}" for m in r['mistakes'][:None if verbose else 1])
        print(f"{task:8} {name:14} {r['n']:9} {r['distinct']:8} {r['exact_match']:11.4f} {r['token_accuracy']:9.4f} {r['edit_distance']:9.4f}   {wrong}",
              flush=True)
        if 'passes' in r:
            print(f"{'':25} after {', '.join(f'{k}: {v:.3f}' for k, v in r['by_passes'].items())} passes; "
                  f"{r['passes']:.1f} used on average (by lines of working {', '.join(f'{k}: {v:.1f}' for k, v in r['passes_by_lines'].items())}), "
                  f"{r['stopped']:.1%} stopped by themselves")
        wrong_lines += [{'task': task, 'split': name, **m} for m in r['mistakes']]
        scores.setdefault(task, {})[name] = {k: v for k, v in r.items() if k != 'mistakes'}
    print()
    for task, rows in scores.items():
        for name, r in rows.items():
            print(f"{task}_{name}_em: {r['exact_match']:.4f}")
    print(f"seconds: {time.time() - t0:.1f}")
    folder = 'out/release' if init_from == 'release' else out_dir
    try:
        os.makedirs(folder, exist_ok=True)
        if errors:
            write_errors(wrong_lines, folder, '_'.join(filter(None, ('errors', split * (split != 'all'), spoil))))
        if split == 'all' and not spoil:  # scores.json is of the whole test
            path = os.path.join(folder, 'scores.json')
            with open(path + '.tmp', 'w') as f:
                json.dump({'scores': scores, 'seed': seed, 'think': think, 'iterations': checkpoint['iter_num'], 'seconds': checkpoint.get('seconds'),
                           'checkpoint': checkpoint.get('provenance'), **provenance()}, f, indent=1)
            os.replace(path + '.tmp', path)
    except OSError as e:
        fail(f"cannot write to {folder}: {e.strerror}")
