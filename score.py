"""
What was played? An FFT scorer: waveforms in, symbols out; and a checkpoint's accuracy, heard by it,
on every split.

$ python score.py answer.wav --verbose=True
$ python score.py --out_dir=out/mirror
$ python score.py --out_dir=out/mirror --errors=True            # and sorts the mistakes
$ python score.py config/control/noise.py --out_dir=out/mirror  # questions without tones

The second asks 1,000 questions of each split, prints a table and writes out/mirror/scores.json.
"""
import json
import math
import os
import re
import sys
import time
from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F

import configurator
import files
import prepare
from configurator import SEEDS, bounds, choices, configure, fail, pick_device, write_whole
from model import load_checkpoint
from prepare import CONTROLS, LOWEST, SAMPLE_RATE, SPACING
from tasks import REST, SYMBOLS, TASKS, decode, split_names, taken
from think import converse, reply

# --- the scorer ---

WINDOW, HOP = 400, 160   # samples: 25 ms frames, 10 ms apart
N_FFT = 512              # of a frame
DEAF = 4                 # bins of a frame that are not listened to: hum and DC, under 125 Hz
AROUND = 20              # bins on either side by which noise is told from a tone
OVER_NOISE = 7.5         # dB of a tone over the noise around it, at least
QUIET = 16.0             # dB under the loudest that a tone may be
DIP = 7.0                # dB between two equal tones that follow each other
STEADY = 20.0            # dB over the noise under which three frames are needed to hear a dip
LONGEST = 2048           # samples of a tone that its pitch is measured in
TOLERANCE = 46.0         # Hz off a tone that still count as it; tones are 100 Hz apart
HIGHEST_OTHER = 0.3      # power of another peak over that of the tone
LEAST_INSIDE = 0.05      # share of the power that lies in the tone and its overtones
UNKNOWN = len(SYMBOLS)   # a sound that is no symbol, '?' in text


class Tones(NamedTuple):
    """Every tone of a batch of waveforms, in order: which waveform, the symbol or UNKNOWN, start
    and length in seconds, measured hertz, level in dB below a full-scale sine; (M,) each"""
    clip: torch.Tensor
    symbol: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    hertz: torch.Tensor
    level: torch.Tensor


def power_of(waves):
    """(..., n) -> |FFT|^2, without the square root that abs() takes"""
    return torch.view_as_real(torch.fft.rfft(waves)).square().sum(-1)


def decibels(power):
    return 10 * torch.log10(power.clamp(min=1e-30))


def noise_around(power, reach):
    """Power (..., F) -> the geometric mean of the bins within `reach`, which one tone changes
    little; of fewer at low pitches, as many on either side, as noise may fall off"""
    bins = torch.arange(power.shape[-1], device=power.device)
    near = (bins - bins[:, None]).abs() <= (bins - reach // 5).clamp(0, reach)
    near = near.float()
    return (power.clamp(min=1e-10).log() @ (near / near.sum(0).clamp(min=1))).exp()


def starts_of(on, moved):
    """Frames (B, T) where sound starts, or where another tone follows without a gap"""
    return on & (~F.pad(on[:, :-1], (1, 0)) | moved)


def find_runs(waves, shortest):
    """Padded waveforms (B, S) -> runs of frames that hold one tone: waveform, first and last frame,
    (M,) each"""
    window = torch.hann_window(WINDOW, device=waves.device)
    frames = waves.unfold(1, WINDOW, HOP) * window
    power = power_of(F.pad(frames, (0, N_FFT - WINDOW))) * (2 / window.sum()) ** 2  # (B, T, 257)
    power[..., :DEAF] = 0
    # Over three frames noise varies less than a tone does.
    smooth = F.avg_pool1d(power.transpose(1, 2), 3, 1, 1, count_include_pad=False).transpose(1, 2)
    peak, at = smooth.max(-1)
    level = decibels(peak)
    noise = decibels(noise_around(smooth, AROUND).gather(-1, at[..., None])[..., 0])
    loudest = level.amax(1, keepdim=True)
    on = (level > -60) & (level > loudest - QUIET) & (level > noise + OVER_NOISE)
    moved = F.pad((at[:, 1:] - at[:, :-1]).abs() > 1, (1, 0))

    # The same tone again: the level dips, and rises as high as before, or is as high again.
    briefly = decibels(power.gather(-1, at[..., None])[..., 0])
    steady = loudest - noise.median(1, keepdim=True).values < STEADY
    level = torch.where(steady, level, level.minimum(briefly))
    level = torch.where(on, level, -300.0)
    run = 1000.0 * starts_of(on, moved).cumsum(1)  # keeps the maxima of each run apart
    before = (level + run).cummax(1).values - run
    after = (level - run).flip(1).cummax(1).values.flip(1) + run
    on = on & (before.minimum(after) - level < DIP)

    starts = starts_of(on, moved)
    ends = starts_of(on.flip(1), F.pad(moved[:, 1:], (0, 1)).flip(1)).flip(1)
    clip, first = starts.nonzero(as_tuple=True)
    last = ends.nonzero(as_tuple=True)[1]
    keep = last - first >= shortest - 1
    return clip[keep], first[keep], last[keep]


def find_tones(waves, shortest=4):
    """Waveforms (B, S) at 16 kHz -> Tones.

    A tone is a run of at least `shortest` frames, 2 or more, with a peak over the noise around it,
    not 16 dB under the clip's loudest, that stays where it is. Its pitch is the FFT peak of the
    whole run, with a parabola through the three highest bins. It is UNKNOWN if no symbol is near,
    if a second peak, other than an overtone, is nearly as high, or if the peak is lost in noise."""
    waves = F.pad(waves.float(), (WINDOW // 2, WINDOW // 2 + -waves.shape[1] % HOP))
    clip, first, last = find_runs(waves, shortest)
    if not len(clip):
        nothing = clip.float()
        return Tones(clip, clip, nothing, nothing, nothing, nothing)

    # One FFT for each tone, over at most LONGEST samples about its middle
    begin = first * HOP + WINDOW // 4  # in the padded waveform
    length = (last - first) * HOP + WINDOW // 2
    n = length.clamp(max=LONGEST)[:, None]
    i = torch.arange(LONGEST, device=waves.device)
    middle = clip * waves.shape[1] + begin + (length - n[:, 0]) // 2
    sound = waves.flatten()[middle[:, None] + i.minimum(n - 1)]
    taper = torch.sin(math.pi * (i + 0.5) / n).square() * (i < n)
    power = power_of(sound * taper)
    power[:, :DEAF * LONGEST // N_FFT] = 0
    k = power[:, 1:-1].argmax(1) + 1
    log = power.clamp(min=1e-20).log()
    left, top, right = (log.gather(1, (k + j)[:, None])[:, 0] for j in (-1, 0, 1))
    shift = (left - right) / (2 * (left - 2 * top + right)).clamp(max=-1e-6)
    hertz = (k + shift) * (SAMPLE_RATE / LONGEST)

    # Is it one steady tone? Its own peak is wider if it is short; its overtones are lower.
    bins = torch.arange(power.shape[1], device=k.device)
    wide = (2 * LONGEST // n).clamp(min=6)
    k = k[:, None]
    own = (bins - k).abs() <= wide
    overtone = (bins % k).minimum(-bins % k) <= wide
    highest = power.amax(1).clamp(min=1e-20)
    others = power * ~own * torch.where(overtone, HIGHEST_OTHER, 1)
    second = others.amax(1) / highest
    inside = (power * (own | overtone)).sum(1) / power.sum(1).clamp(min=1e-20)

    # Which symbol? The whole recording may be off pitch: by the mean, on a circle, of all tones.
    angle = 2 * math.pi / SPACING * (hertz - LOWEST)
    mean = torch.zeros(2, len(waves), device=k.device)
    mean.index_add_(1, clip, torch.stack([angle.cos(), angle.sin()]))
    off = SPACING / (2 * math.pi) * torch.atan2(mean[1], mean[0])[clip]
    tuned = hertz - LOWEST - off
    symbol = (tuned / SPACING).round().clamp(0, UNKNOWN - 1).long()
    error = (tuned - SPACING * symbol).abs()
    clear = (error <= TOLERANCE) & (second < HIGHEST_OTHER) & (inside > LEAST_INSIDE)
    return Tones(
        clip=clip,
        symbol=torch.where(clear, symbol, UNKNOWN),
        start=(begin - WINDOW // 2).clamp(min=0) / SAMPLE_RATE,
        length=length / SAMPLE_RATE,
        hertz=hertz,
        level=decibels(highest) + 20 * torch.log10(2 / taper.sum(1)),
    )


def transcribe(waves, shortest=4):
    """Waveforms (B, S) -> a list of B texts; '?' stands for a sound that is no symbol. Tones as in
    find_tones."""
    tones = find_tones(waves, shortest)
    rows = [[] for _ in waves]
    for clip, symbol in zip(tones.clip.tolist(), tones.symbol.tolist(), strict=True):
        rows[clip].append(symbol)
    return [decode(row) for row in rows]


# --- what kind of mistake? ---

def edits(a, b):
    """The fewest insertions, deletions and substitutions that turn text b into text a (Levenshtein)
    -> their numbers"""
    # Each cell holds (all, insertions, deletions, substitutions) for a's start and b's first j.
    row = [(j, 0, j, 0) for j in range(len(b) + 1)]
    for i, x in enumerate(a, 1):
        above, row = row, [(i, i, 0, 0)]
        for j, y in enumerate(b, 1):
            n, p, q, r = above[j]
            inserted = (n + 1, p + 1, q, r)
            n, p, q, r = row[j - 1]
            deleted = (n + 1, p, q + 1, r)
            n, p, q, r = above[j - 1]
            kept = (n + (x != y), p, q, r + (x != y))
            row.append(min(kept, inserted, deleted))
    return row[-1][1:]


def edit_distance(a, b):
    return sum(edits(a, b))


def read_logits(model, question, lengths, rhythm):
    """What the symbol logits say, at the middle of each tone -> a list of texts. To tell kinds of
    mistakes apart, never for a score."""
    c = model.config
    logits = reply(model, question, lengths)[2]
    middle = (rhythm.start + rhythm.length / 2) * SAMPLE_RATE
    token = ((middle - c.middle) / c.token).round().long().clamp(0, logits.shape[1] - 1)
    symbols = logits.argmax(2).gather(1, token)
    counts = (symbols < c.n_symbols) & (middle < lengths[:, None])
    return [decode(row) for row in torch.where(counts, symbols, REST)]


def diagnose(task, line, wanted, heard, read, brief):
    """One line, asked, wanted, heard in the audio, read from the logits, and heard in the audio if
    tones of 20 ms count as well -> dict: its kind, and what was hard about it.

    unfinished  the line is right, and there were no passes left
    reasoning   the logits say the same wrong thing
    both        audio and logits are wrong in different ways
    timing      the tones are right, but some run together, fall apart or are too short
    rendering   the logits are right, the tones are not"""
    def once(text):
        """AAB -> AB"""
        return re.sub(r'(.)\1+', r'\1', text)

    if heard == wanted:
        kind = 'unfinished'
    elif heard == read:
        kind = 'reasoning'
    elif read != wanted:
        kind = 'both'
    elif once(wanted) in (once(heard), once(brief)):
        kind = 'timing'
    else:
        kind = 'rendering'
    insertions, deletions, substitutions = edits(heard, wanted)
    hard = TASKS[task].hard(line) if TASKS[task].hard else {}
    return {'kind': kind, 'insertions': insertions, 'deletions': deletions,
            'substitutions': substitutions, **hard}


def first_wrong_line(model, task, lines, sounds, heard, lengths, rhythm):
    """Diagnose the first line of a conversation that is not the one of `lines`, from the question
    to the answer, given its sounds, (1, S) each, the question's first, and what was heard in the
    answers -> dict, with the two sounds"""
    lines = lines + lines[-1:] * len(heard)
    wrong = [k for k, text in enumerate(heard) if text != lines[k + 1]]
    k = wrong[0] if wrong else len(heard) - 1
    read = read_logits(model, sounds[k], lengths, rhythm)[0]
    brief = transcribe(sounds[k + 1], 2)[0]
    return {
        'line': k + 1,
        'line_asked': lines[k],
        'line_wanted': lines[k + 1],
        'line_heard': heard[k],
        'line_read': read,
        **diagnose(task, lines[k], lines[k + 1], heard[k], read, brief),
        'sounds': [s[0, :lengths[0]].cpu().clone() for s in sounds[k:k + 2]],
    }


# --- a model's accuracy ---

PASSES = (1, 2, 4, 8, 16)  # in the table of accuracy against thought
SOUNDS = 20                # mistakes of a split whose sounds are kept


@torch.no_grad()
def evaluate(model, task, split, n, seed=1337, device='cpu', think=1, spoil=None, errors=False,
             **override):
    """Ask n questions of a split and listen to the answers -> dict: exact match; token accuracy
    (share of the wanted symbols at the right place); mean edit distance; wire, the exact match of
    the question's own sound; mistakes, dicts of what was asked, wanted and heard.

    With think > 1 also exact match after so many passes, the mean number of passes that changed
    something, in all and by how many lines the right working has, and the share that stopped by
    itself. spoil(batch) changes what is asked. errors=True diagnoses each mistake at its first
    wrong line and keeps the first sounds."""
    exact = right = total = distance = stopped = wire = 0
    mistakes, asked, passes_by_lines = [], set(), {}
    by_passes = {k: 0 for k in PASSES if k <= think}
    for b in prepare.split_batches(task, split, n, seed, device, **override):
        if spoil:
            b = spoil(b)
        answers, passes = converse(model, b.question, b.lengths, think)
        stopped += int((passes < think).sum())
        wants = [decode(row) for row in b.wanted]
        questions = [decode(row) for row in b.asked]
        asked.update(questions)
        wire += sum(h == w for h, w in zip(transcribe(b.question), wants, strict=True))

        # Listen to the answers after so many passes; to all of them for a diagnosis.
        last = len(answers) - 1
        listen = set(range(last + 1)) if errors else {last, *(min(k - 1, last) for k in by_passes)}
        heard_at = {k: transcribe(answers[k]) for k in listen}
        for k in by_passes:
            heard = heard_at[min(k - 1, last)]
            by_passes[k] += sum(h == w for h, w in zip(heard, wants, strict=True))
        for i, (question, wanted) in enumerate(zip(questions, wants, strict=True)):
            heard = heard_at[last][i]
            lines = [question, wanted]
            if think > 1:
                lines = TASKS[task].working(question)
                passes_by_lines.setdefault(len(lines) - 1, []).append(int(passes[i]))
            total += len(wanted)
            right += sum(x == y for x, y in zip(wanted, heard, strict=False))
            if heard == wanted:
                exact += 1
                continue
            distance += edit_distance(heard, wanted)
            mistake = {'task': task, 'split': split, 'asked': question, 'wanted': wanted,
                       'heard': heard}
            if errors:
                one = slice(i, i + 1)
                sounds = [sound[one] for sound in (b.question, *answers)]
                heard = [heard_at[k][i] for k in range(last + 1)]
                rhythm = prepare.Rhythm(*[t[one] for t in b.rhythm])
                mistake |= first_wrong_line(model, task, lines, sounds, heard, b.lengths[one],
                                            rhythm)
                if len(mistakes) >= SOUNDS:
                    del mistake['sounds']
            mistakes.append(mistake)
    found = {'exact_match': exact / n, 'token_accuracy': right / total, 'wire': wire / n,
             'edit_distance': distance / n, 'n': n, 'distinct': len(asked)}
    if think > 1:
        found['by_passes'] = {k: v / n for k, v in by_passes.items()}
        found['passes'] = sum(map(sum, passes_by_lines.values())) / n
        found['stopped'] = stopped / n
        found['passes_by_lines'] = {k: sum(v) / len(v) for k, v in sorted(passes_by_lines.items())}
    return {**found, 'mistakes': mistakes}


@torch.compiler.set_stance('force_eager')  # other shapes than in training: not worth compiling
def validate(model, tasks, aloud, levels, n, seed, device, think, sound):
    """Exact match on n validation questions of each task, of the difficulty reached and out of
    distribution -> {task: (val, val_ood)}"""
    model.eval()
    fast = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # long counts need the digits
    found = {}
    for task in tasks:
        passes = think if task in aloud else 1
        near = evaluate(model, task, 'val', n, seed, device, passes, sound=sound,
                        **taken(task, level=float(levels[task])))
        far = evaluate(model, task, 'val_ood', n, seed, device, passes, sound=sound,
                       **taken(task, level=1.0))
        found[task] = near['exact_match'], far['exact_match']
    torch.backends.cuda.matmul.allow_tf32 = fast
    model.train()
    return found


def write_errors(mistakes, folder, name):
    """Write mistakes to folder/name.jsonl, the sounds of the first ones to folder/name/, and print
    what kinds there are"""
    files.fresh_folder(os.path.join(folder, name), r'\d+_(question|answer)\.wav')
    for i, m in enumerate(mistakes):
        for kind, sound in zip(('question', 'answer'), m.pop('sounds', ()), strict=False):
            m[kind] = f'{name}/{i:03d}_{kind}.wav'
            files.write_wav(os.path.join(folder, m[kind]), sound)
    path = os.path.join(folder, name + '.jsonl')
    with open(path, 'w') as f:
        f.writelines(json.dumps(m) + '\n' for m in mistakes)
    print(f"\nwrote {len(mistakes)} mistakes to {path}, the sounds of the first ones to "
          f"{os.path.join(folder, name)}")

    def count(rows, key):
        most = Counter(r[key] for r in rows if key in r).most_common(6)
        return ', '.join(f"{value}: {times}" for value, times in most)

    by_split = {}
    for m in mistakes:
        by_split.setdefault((m['task'], m['split']), []).append(m)
    print(f"{'task':8} {'split':14} {'wrong':>5}  what is wrong with the first wrong line")
    for (task, split), rows in by_split.items():
        edited = ', '.join(f"{sum(r[key] for r in rows)} {key}"
                           for key in ('insertions', 'deletions', 'substitutions'))
        print(f"{task:8} {split:14} {len(rows):5}  {count(rows, 'kind')}; {edited}")
        hard = TASKS[task].hard(TASKS[task].example) if TASKS[task].hard else {}
        for key in ('line', *hard):
            print(f"{'':31}{key:16} {count(rows, key)}")


def print_row(task, split, r, verbose):
    """A line of the table, and one more about thought"""
    wrong = [f"asked {m['asked']}, wanted {m['wanted']}, heard {m['heard'] or 'nothing'}"
             for m in r['mistakes']]
    shown = ', '.join(wrong if verbose else wrong[:1])
    print(f"{task:8} {split:14} {r['n']:9} {r['distinct']:8} {r['exact_match']:11.4f} "
          f"{r['wire']:6.4f} {r['token_accuracy']:9.4f} {r['edit_distance']:9.4f}   {shown}",
          flush=True)
    if 'passes' in r:
        after = ', '.join(f"{k}: {v:.3f}" for k, v in r['by_passes'].items())
        used = ', '.join(f"{k}: {v:.1f}" for k, v in r['passes_by_lines'].items())
        print(f"{'':25} after {after} passes; {r['passes']:.1f} used on average (by lines of "
              f"working {used}), {r['stopped']:.1%} stopped by themselves")


def hear_file(path, verbose, named):
    """Print what is played in a WAV file"""
    wave = files.read_wav(path)
    tones = find_tones(wave[None])
    text = decode(tones.symbol)
    note = ''
    if '?' in text:
        note = '  (? is a sound that is no symbol)'
    elif not text:
        note = '  (silence)' if wave.abs().max() < 1e-3 else '  (sound, but no steady tone)'
    print((f"{path}: " if named else '') + text + note)
    if verbose:
        print(f"{'symbol':>6} {'start s':>8} {'length s':>8} {'hertz':>8} {'error Hz':>8} "
              f"{'level dB':>8}")
        for _, s, start, length, hertz, level in zip(*[t.tolist() for t in tones], strict=True):
            error = (hertz - LOWEST + SPACING / 2) % SPACING - SPACING / 2
            print(f"{decode([s]):>6} {start:8.3f} {length:8.3f} {hertz:8.1f} {error:+8.1f} "
                  f"{level:8.1f}")


if __name__ == '__main__':
    out_dir = 'out/mirror'  # folder of the checkpoint, and of scores.json
    init_from = 'out_dir'   # or release: the weights that come with the code; see out/release
    num_samples = 1000      # questions of each split
    split = 'all'           # or one of them, such as ood_length
    seed = 1337             # of the questions; the same seed asks the same questions anywhere
    think = 16              # passes at most when a task is worked out aloud
    device = 'auto'         # auto, cpu, cuda
    verbose = False         # a row for each tone of a WAV file; every mistake of a checkpoint
    errors = False          # sort the mistakes: a table, errors.jsonl, the sounds of the first ones
    spoil = ''              # a control: phase, noise, longer or shorter; writes no scores.json
    wavs = [a for a in sys.argv[1:] if not a.startswith('-') and not a.endswith('.py')]
    configure(globals(), [a for a in sys.argv[1:] if a not in wavs])
    bounds(globals(), num_samples=1, think=1, seed=SEEDS)
    choices(globals(), spoil=('', *CONTROLS))
    try:
        for path in wavs:
            hear_file(path, verbose, len(wavs) > 1)
        if wavs:
            sys.exit(0)
        device = pick_device(device)
        model, checkpoint = load_checkpoint(out_dir, device, init_from)
        trained_on = checkpoint['config']
        tests = []
        for task in configurator.names_of(trained_on, 'tasks', TASKS):
            tests += [(task, name) for name in split_names(task, split)]
    except ValueError as e:
        fail(e)
    if not tests:
        fail(f"no split {split!r}; {task} has {', '.join(TASKS[task].splits)}")

    scores, mistakes, t0 = {}, [], time.time()
    print(f"{'task':8} {'split':14} {'questions':>9} {'distinct':>8} {'exact match':>11} "
          f"{'wire':>6} {'token acc':>9} {'edit dist':>9}   first mistake")
    for task, name in tests:
        passes = think if task in trained_on['aloud'].split(',') else 1
        r = evaluate(model, task, name, num_samples, seed, device, passes, CONTROLS.get(spoil),
                     errors)
        print_row(task, name, r, verbose)
        mistakes += r.pop('mistakes')
        scores.setdefault(task, {})[name] = r
    print()
    for task, rows in scores.items():
        for name, r in rows.items():
            print(f"{task}_{name}_em: {r['exact_match']:.4f}")
    print(f"seconds: {time.time() - t0:.1f}")

    folder = 'out/release' if init_from == 'release' else out_dir
    try:
        os.makedirs(folder, exist_ok=True)
        if errors:
            named = [split] if split != 'all' else []
            named += [spoil] if spoil else []
            write_errors(mistakes, folder, '_'.join(['errors', *named]))
        if split == 'all' and not spoil:  # scores.json is of the whole test
            contents = {'scores': scores, 'seed': seed, 'think': think,
                        'iterations': checkpoint['iter_num'], 'seconds': checkpoint.get('seconds'),
                        'checkpoint': checkpoint.get('provenance'), **configurator.provenance()}
            text = json.dumps(contents, indent=1).encode()
            write_whole(os.path.join(folder, 'scores.json'), lambda f: f.write(text))
    except OSError as e:
        fail(f"cannot write to {folder}: {e.strerror}")
