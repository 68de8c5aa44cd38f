"""
What was played? The FFT scorer on WAV files; and a checkpoint's accuracy, heard by it, on every
split.

$ python score.py answer.wav --verbose=True
$ python score.py --out_dir=out/mirror
$ python score.py --out_dir=out/mirror --errors=True            # and sorts the mistakes
$ python score.py --out_dir=out/mirror --sound=all              # iid, played in all ways
$ python score.py --out_dir=out/mirror --split=lengths          # longer, until it breaks
$ python score.py config/control/noise.py --out_dir=out/mirror  # questions without tones

The second asks 1,000 questions of each split, prints a table and writes out/mirror/scores.json;
the fourth and fifth write sounds.json and lengths.json, which lab.figures draws; others are named
after what they ask, such as scores_iid_noise.json.
"""
import sys

from configurator import SEEDS, bounds, choices, configure, fail, names_of

wavs = [a for a in sys.argv[1:] if not a.startswith('-') and not a.endswith('.py')]

# --- settings ---
# which model
out_dir = 'out/mirror'  # folder of the checkpoint, and of scores.json
init_from = 'out_dir'   # or release: the weights that come with the code; a file; hf:user/name
# what it is asked
tasks = ''              # some of its tasks; '' asks all
split = 'all'           # or one of them, such as ood_length; or length_100, say; or lengths
sound = 'clean'         # or how it is asked instead: see SOUNDS in lab/conditions.py; or all
num_samples = 1000      # questions of each split
seed = 1337             # of the questions; the same seed asks the same questions anywhere
# how it thinks
think = 64              # passes at most when a task is worked out aloud
brief = True            # of long lines the ends alone are heard: see lab/ends.py
halting = True          # a model that can tell when it has answered stops then
# what is shown
verbose = False         # a row for each tone of a WAV file; every mistake of a checkpoint
errors = False          # sort the mistakes: a table, errors.jsonl, the sounds of the first ones
# system
device = 'auto'         # auto, cpu, cuda, mps
config = configure(globals(), [a for a in sys.argv[1:] if a not in wavs])

# isort: split
import os
import re
import time
from collections import Counter
from functools import partial

import fast
from audio.listen import hear_file
from audio.tune import prepared
from checkpoint import load_checkpoint, results_of
from exam import between_of, evaluate
from lab.conditions import SOUNDS, as_heard
from lab.ends import brief_pass
from lab.mistakes import Diagnosis, write_errors
from system import pick_device, provenance, write_json
from tasks import TASKS, check, split_names
from text.summary import rows_by_level, show, summarize

LENGTHS = [10 * 2 ** k for k in range(8)]  # 10 to 1,280 symbols or digits
BROKEN = 0.05  # exact match under which still longer questions are not asked


def tests_of(task, split, sound):
    """What is asked of a task -> {name: (split, sound, more arguments of evaluate)}"""
    lengths = re.fullmatch(r'length(s|_\d+)', split)
    if lengths and TASKS[task].of_length:
        each = LENGTHS if lengths[1] == 's' else [int(lengths[1][1:])]
        return {str(n): ('val_ood', sound, TASKS[task].of_length(n)) for n in each}
    if sound == 'all' or sound != 'clean' and split == 'iid':
        return {name: ('iid', name, {}) for name in (SOUNDS if sound == 'all' else [sound])}
    return {name: (name, sound, {}) for name in split_names(task, split)}


def named_after(kind):
    """What the results, or the mistakes, of these settings are called"""
    asked = tasks.replace(',', '_'), split, sound
    return '_'.join([kind, *[x for x in asked if x not in ('all', 'clean', 'lengths', '')]])


def print_row(task, split, r, verbose):
    """A line of the table, one of shortcuts, one of confusions, and one about thought"""
    wrong = [f"asked {m['asked']}, wanted {m['wanted']}, heard {m['heard'] or 'nothing'}"
             for m in r['mistakes']]
    shown = ', '.join(wrong if verbose else wrong[:1])
    print(f"{task:8} {split:14} {r['n']:9} {r['distinct']:8} {r['exact_match']:11.4f} "
          f"{r['wire']:6.4f} {r['token_accuracy']:9.4f} {r['edit_distance']:9.4f}   {shown}")
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


def ask_all(model, tests, aloud):
    """Ask all tests of all tasks, as the settings say -> {task: {name: found}}, mistakes"""
    scores, mistakes = {}, []
    how = {'between': between_of(tests), 'brief': brief and brief_pass, 'halting': halting}
    on_mistake = Diagnosis(model, aloud) if errors else None
    # A diagnosis compares the sounds of passes, which must be as long as the question's.
    door = partial(prepared, hurry=not errors)
    print(f"{'task':8} {'split':14} {'questions':>9} {'distinct':>8} {'exact match':>11} "
          f"{'wire':>6} {'token acc':>9} {'edit dist':>9}   first mistake")
    for task, asked in tests.items():
        passes = think if task in aloud else 1
        for name, (of, as_sound, more) in asked.items():
            r = evaluate(
                model, task, of, num_samples, seed, model.start.device, passes,
                sound='real' if as_sound == 'real' else 'clean',
                change=partial(as_heard, sound=as_sound),
                door=door, on_mistake=on_mistake, how=how, **more,
            )
            print_row(task, name, r, verbose)
            mistakes += r.pop('mistakes')
            scores.setdefault(task, {})[name] = r
            if split == 'lengths' and r['exact_match'] < BROKEN:
                break
    return scores, mistakes


def write_results(folder, scores, mistakes, checkpoint, seconds):
    """Write what was found, a summary of puzzles, and the mistakes"""
    os.makedirs(folder, exist_ok=True)
    kind = {'all': 'sounds'}.get(sound, 'lengths' if split == 'lengths' else 'scores')
    path = os.path.join(folder, named_after(kind) + '.json')
    write_json(path, {
        'scores': scores,
        **{key: config[key] for key in ('seed', 'think', 'brief', 'halting')},
        'iterations': checkpoint['iter_num'],
        'seconds': checkpoint.get('seconds'),  # of training
        'asked_in': round(seconds, 1),
        'checkpoint': checkpoint.get('provenance'),
        **provenance(),
    })
    print(f"wrote {path}")
    rows = rows_by_level(scores)
    if rows:  # one table with what text.ask asks others
        found = summarize(folder if init_from == 'out_dir' else init_from, folder, rows)
        found['questions'] = 'tones'
        write_json(os.path.join(folder, named_after('summary') + '.json'), found)
        show(found)
    if errors:
        write_errors(mistakes, folder, named_after('errors'))


def main():
    for path in wavs:
        hear_file(path, verbose, len(wavs) > 1)
    if wavs:
        return
    model, checkpoint = load_checkpoint(out_dir, pick_device(device), init_from)
    fast.use(model)
    known = names_of(checkpoint['config'], 'tasks', TASKS)
    names = names_of(config, 'tasks', known) or known
    for name in names:
        check(name)
    tests = {task: tests_of(task, split, sound) for task in names}
    if not any(tests.values()):
        fail(f"no split {split!r}; {names[-1]} has {', '.join(TASKS[names[-1]].splits)}")
    began = time.time()
    scores, mistakes = ask_all(model, tests, checkpoint['config']['aloud'].split(','))
    print()
    for task, rows in scores.items():
        for name, r in rows.items():
            print(f"{task}_{name}_em: {r['exact_match']:.4f}")
    seconds = time.time() - began
    print(f"seconds: {seconds:.1f}")
    write_results(results_of(out_dir, init_from), scores, mistakes, checkpoint, seconds)


if __name__ == '__main__':
    bounds(config, num_samples=1, think=1, seed=SEEDS)
    choices(config, sound=(*SOUNDS, 'all'))
    try:
        main()
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {e.filename or results_of(out_dir, init_from)}: {e.strerror}")
