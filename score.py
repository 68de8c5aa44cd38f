"""
What was played? An FFT scorer: waveforms in, symbols out; and a checkpoint's accuracy, heard by it,
on every split.

$ python score.py answer.wav --verbose=True
$ python score.py --out_dir=out/mirror
$ python score.py --out_dir=out/mirror --errors=True            # and sorts the mistakes
$ python score.py --out_dir=out/mirror --sound=all              # iid, played in all ways
$ python score.py --out_dir=out/mirror --split=lengths          # longer, until it breaks
$ python score.py config/control/noise.py --out_dir=out/mirror  # questions without tones

The second asks 1,000 questions of each split, prints a table and writes out/mirror/scores.json;
the fourth and fifth write sounds.json and lengths.json. figures.py draws them.
"""
import json
import os
import re
import sys
import time
from collections import Counter

import torch

import configurator
import files
import prepare
from checkpoint import load_checkpoint, results_of
from conditions import SOUNDS, change
from configurator import SEEDS, bounds, choices, configure, fail, pick_device
from prepare import LOWEST, SAMPLE_RATE, SPACING
from results import claim, clear, provenance, write_json, write_whole
from tasks import NO_SYMBOL, REST, TASKS, decode, split_names, taken, tool_of
from think import conversation, reply, with_silence
from transcribe import find_tones, transcribe
from words import show, summarize

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
    question = with_silence(model, question)
    logits = reply(model, question, model.spectrum.stft(question), lengths)[1]
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
    k = next((k for k, text in enumerate(heard) if text != lines[k + 1]), len(heard) - 1)
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

PASSES = [2 ** k for k in range(9)]  # 1 to 256, in the table of accuracy against thought
KEPT = 20                  # mistakes of a split whose sounds are kept
LENGTHS = [10 * 2 ** k for k in range(8)]  # 10 to 1,280 symbols or digits
BROKEN = 0.05              # exact match under which still longer questions are not asked


@torch.no_grad()
def evaluate(model, task, split, n, seed=1337, device='cpu', think=1, sound='clean',
             errors=False, how=None, **override):
    """Ask n questions of a split and listen to the answers -> dict: exact match; token accuracy
    (share of the wanted symbols at the right place); mean edit distance; wire, the exact match of
    the question's own sound; shortcuts, that of what a sceptic would try; confused, which symbols
    were heard for which in answers of the right length; mistakes, dicts of what was asked, wanted
    and heard.

    With think > 1 also exact match after so many passes, the mean number of passes that changed
    something, in all and by how many lines the right working has, and the share that stopped by
    itself. sound, one of conditions.SOUNDS, is how it is asked; how, a dict, what else conversation
    is told. errors=True diagnoses each mistake at its first wrong line and keeps the first sounds.
    """
    exact = right = total = distance = stopped = wire = 0
    mistakes, asked, passes_by_lines = [], set(), {}
    by_passes = {k: 0 for k in PASSES if k <= think}
    shortcuts = dict.fromkeys(TASKS[task].shortcuts, 0.0)
    confused = Counter()
    override['sound'] = 'real' if sound == 'real' else 'clean'
    for b in prepare.split_batches(task, split, n, seed, device, **override):
        b = change(b, sound)
        wants = [decode(row) for row in b.wanted]
        questions = [decode(row) for row in b.asked]
        asked.update(questions)
        wire += sum(h == w for h, w in zip(transcribe(b.question), wants, strict=True))

        # Listen to the answers after so many passes; to all of them for a diagnosis.
        answers, heard_at = [], {}
        for answer, passes in conversation(model, b.question, b.lengths, think, hurry=not errors,
                                           **how or {}):
            last = len(heard_at)
            heard_at[last] = transcribe(answer) if errors or last + 1 in by_passes else None
            finished = int((passes < think).sum())
            if errors:
                answers.append(answer)
        heard_at[last] = heard_at[last] or transcribe(answer)
        stopped += finished
        for k in by_passes:
            heard = heard_at[min(k - 1, last)]
            by_passes[k] += sum(h == w for h, w in zip(heard, wants, strict=True))
        for i, (question, wanted) in enumerate(zip(questions, wants, strict=True)):
            heard = heard_at[last][i]
            lines = [question, wanted]
            if think > 1:
                lines = TASKS[task].working(question)
                passes_by_lines.setdefault(len(lines) - 1, []).append(int(passes[i]))
            for name, shortcut in TASKS[task].shortcuts.items():
                shortcuts[name] += (shortcut(question) == wanted) / n
            total += len(wanted)
            right += sum(x == y for x, y in zip(wanted, heard, strict=False))
            if heard == wanted:
                exact += 1
                continue
            distance += edit_distance(heard, wanted)
            if len(heard) == len(wanted):
                confused.update(x + y for x, y in zip(wanted, heard, strict=True) if x != y)
            mistake = {'task': task, 'split': split, 'asked': question, 'wanted': wanted,
                       'heard': heard}
            if errors:
                one = slice(i, i + 1)
                sounds = [sound[one] for sound in (b.question, *answers)]
                heard = [heard_at[k][i] for k in range(last + 1)]
                rhythm = prepare.Rhythm(*[t[one] for t in b.rhythm])
                mistake |= first_wrong_line(model, task, lines, sounds, heard, b.lengths[one],
                                            rhythm)
                if len(mistakes) >= KEPT:
                    del mistake['sounds']
            mistakes.append(mistake)
    found = {'exact_match': exact / n, 'token_accuracy': right / total, 'wire': wire / n,
             'edit_distance': distance / n, 'n': n, 'distinct': len(asked),
             'shortcuts': shortcuts, 'confused': dict(confused.most_common())}
    if think > 1:
        found['by_passes'] = {k: v / n for k, v in by_passes.items()}
        found['passes'] = sum(map(sum, passes_by_lines.values())) / n
        found['stopped'] = stopped / n
        found['passes_by_lines'] = {k: sum(v) / len(v) for k, v in sorted(passes_by_lines.items())}
    return {**found, 'mistakes': mistakes}


@torch.compiler.set_stance('force_eager')  # other shapes than in training: not worth compiling
def validate(model, tasks, aloud, n, seed, device, think, sound, level):
    """n validation questions of each task, of a level of difficulty -> {'val': {task: exact match},
    'val_ood': the same out of distribution, 'token_accuracy': ..., 'edit_distance': ...}, the last
    two of val"""
    model.eval()
    fast = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # long counts need the digits
    model.tool = tool_of(tasks)
    found = {'val': {}, 'val_ood': {}, 'token_accuracy': {}, 'edit_distance': {}}
    for task in tasks:
        passes = think if task in aloud else 1
        for split in ('val', 'val_ood'):
            r = evaluate(model, task, split, n, seed, device, passes, sound,
                         **taken(task, level=level))
            found[split][task] = r['exact_match']
            if split == 'val':
                found['token_accuracy'][task] = r['token_accuracy']
                found['edit_distance'][task] = r['edit_distance']
    torch.backends.cuda.matmul.allow_tf32 = fast
    model.train()
    return found


def write_errors(mistakes, folder, name):
    """Write mistakes to folder/name.jsonl, the sounds of the first ones to folder/name/, and print
    what kinds there are"""
    claim(os.path.join(folder, name))
    clear(os.path.join(folder, name), r'\d+_(question|answer)\.wav')
    for i, m in enumerate(mistakes):
        for kind, sound in zip(('question', 'answer'), m.pop('sounds', ()), strict=False):
            m[kind] = f'{name}/{i:03d}_{kind}.wav'
            files.write_wav(os.path.join(folder, m[kind]), sound)
    path = os.path.join(folder, name + '.jsonl')
    text = ''.join(json.dumps(m) + '\n' for m in mistakes).encode()
    write_whole(path, lambda f: f.write(text))
    print(f"\nwrote {len(mistakes)} mistakes to {path}, the first ones' sounds to {folder}/{name}")

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


def tests_of(task, split, sound):
    """What score.py asks of a task -> {name: (split, sound, more arguments of evaluate)}"""
    if split == 'lengths':
        ask = TASKS[task].of_length
        return {str(n): ('val_ood', sound, ask(n)) for n in LENGTHS if ask}
    if sound == 'all':
        return {name: ('iid', name, {}) for name in SOUNDS}
    return {name: (name, sound, {}) for name in split_names(task, split)}


def graded(scores):
    """Scores -> a row for each question of a split that is a level of difficulty (Task.levels)"""
    rows = []
    for task, found in scores.items():
        for difficulty, split in enumerate(TASKS[task].levels, 1):
            n, exact = found[split]['n'], found[split]['exact_match']
            rows += [{'task': task, 'difficulty': difficulty, 'is_correct': i < round(n * exact)}
                     for i in range(n)]
    return rows


def print_row(task, split, r, verbose):
    """A line of the table, and one more about thought"""
    wrong = [f"asked {m['asked']}, wanted {m['wanted']}, heard {m['heard'] or 'nothing'}"
             for m in r['mistakes']]
    shown = ', '.join(wrong if verbose else wrong[:1])
    print(f"{task:8} {split:14} {r['n']:9} {r['distinct']:8} {r['exact_match']:11.4f} "
          f"{r['wire']:6.4f} {r['token_accuracy']:9.4f} {r['edit_distance']:9.4f}   {shown}",
          flush=True)
    if r['shortcuts']:
        tried = ', '.join(f"{name} {share:.3f}" for name, share in r['shortcuts'].items())
        print(f"{'':25} shortcuts: {tried}")
    if r['confused']:
        most = Counter(r['confused']).most_common(6)
        shown = ', '.join(f"{pair[1]} for {pair[0]} {times}" for pair, times in most)
        print(f"{'':25} heard {shown}")
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
    if NO_SYMBOL in text:
        note = f'  ({NO_SYMBOL} is a sound that is no symbol)'
    elif not text:
        note = '  (silence)' if wave.abs().max() < 1e-3 else '  (sound, but no steady tone)'
    print((f"{path}: " if named else '') + text + note)
    if verbose:
        print(f"{'symbol':>6} {'start s':>8} {'length s':>8} {'hertz':>8} {'error Hz':>8} "
              f"{'level dB':>8}")
        for s, start, length, hertz, level in zip(*[t.tolist() for t in tones[1:6]], strict=True):
            error = (hertz - LOWEST + SPACING / 2) % SPACING - SPACING / 2
            print(f"{decode([s]):>6} {start:8.3f} {length:8.3f} {hertz:8.1f} {error:+8.1f} "
                  f"{level:8.1f}")


if __name__ == '__main__':
    out_dir = 'out/mirror'  # folder of the checkpoint, and of scores.json
    init_from = 'out_dir'   # or release: the weights that come with the code; a file; hf:user/name
    tasks = ''              # some of its tasks, to look at; '' asks all and writes the results
    num_samples = 1000      # questions of each split
    split = 'all'           # or one of them, such as ood_length; or lengths
    seed = 1337             # of the questions; the same seed asks the same questions anywhere
    think = 64              # passes at most when a task is worked out aloud
    brief = True            # of long lines the ends alone are heard: see brief_pass in think.py
    halting = True          # a model that can tell when it has answered stops then
    tool = True             # a model that was taught to call a tool has one
    device = 'auto'         # auto, cpu, cuda, mps
    verbose = False         # a row for each tone of a WAV file; every mistake of a checkpoint
    errors = False          # sort the mistakes: a table, errors.jsonl, the sounds of the first ones
    sound = 'clean'         # or how it is asked instead: see SOUNDS in conditions.py; or all
    wavs = [a for a in sys.argv[1:] if not a.startswith('-') and not a.endswith('.py')]
    configure(globals(), [a for a in sys.argv[1:] if a not in wavs])
    bounds(globals(), num_samples=1, think=1, seed=SEEDS)
    choices(globals(), sound=(*SOUNDS, 'all'))
    try:
        for path in wavs:
            hear_file(path, verbose, len(wavs) > 1)
        if wavs:
            sys.exit(0)
        device = pick_device(device)
        model, checkpoint = load_checkpoint(out_dir, device, init_from)
        model.tool = model.tool if tool else None
        trained_on = checkpoint['config']
        known = configurator.names_of(trained_on, 'tasks', TASKS)
        names = configurator.names_of(globals(), 'tasks', known) or known
        tests = {task: tests_of(task, split, sound) for task in names}
    except ValueError as e:
        fail(e)
    if not any(tests.values()):
        fail(f"no split {split!r}; {names[-1]} has {', '.join(TASKS[names[-1]].splits)}")

    # Where the results go
    folder = results_of(out_dir, init_from)
    kinds = {('all', 'clean'): 'scores', ('all', 'all'): 'sounds', ('lengths', 'clean'): 'lengths'}
    kind = '' if tasks else kinds.get((split, sound), '')
    named = '_'.join(x for x in ('errors', split, sound, tasks) if x not in ('all', 'clean', ''))
    how = {'brief': brief, 'halting': halting}

    scores, mistakes, t0 = {}, [], time.time()
    print(f"{'task':8} {'split':14} {'questions':>9} {'distinct':>8} {'exact match':>11} "
          f"{'wire':>6} {'token acc':>9} {'edit dist':>9}   first mistake")
    for task in names:
        passes = think if task in trained_on['aloud'].split(',') else 1
        for name, (of, played, more) in tests[task].items():
            r = evaluate(model, task, of, num_samples, seed, device, passes, played, errors, how,
                         **more)
            print_row(task, name, r, verbose)
            mistakes += r['mistakes']
            kept = {k: v for k, v in r.items() if k != 'mistakes'}
            scores.setdefault(task, {})[name] = kept
            if split == 'lengths' and r['exact_match'] < BROKEN:
                break
    print()
    for task, rows in scores.items():
        for name, r in rows.items():
            print(f"{task}_{name}_em: {r['exact_match']:.4f}")
    print(f"seconds: {time.time() - t0:.1f}")

    try:
        os.makedirs(folder, exist_ok=True)
        if kind:
            contents = {'scores': scores, 'seed': seed, 'think': think, **how, 'tool': tool,
                        'iterations': checkpoint['iter_num'], 'seconds': checkpoint.get('seconds'),
                        'checkpoint': checkpoint.get('provenance'), **provenance()}
            write_json(os.path.join(folder, kind + '.json'), contents)
        rows = graded(scores) if kind == 'scores' else []
        if rows:  # one table with what ask.py asks others
            found = summarize(folder if init_from == 'out_dir' else init_from, folder, rows)
            found['questions'] = 'tones'
            write_json(os.path.join(folder, 'summary.json'), found)
            show(found)
        if errors:
            write_errors(mistakes, folder, named)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {folder}: {e.strerror}")
