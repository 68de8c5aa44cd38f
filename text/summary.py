"""
What comes of asking a model the four puzzles: one summary.json and one table, whether it is this
project's model that score.py asked in tones, or another one that text.ask asked in words.
"""
import json
from collections import Counter
from contextlib import suppress
from statistics import quantiles

from tasks import TASKS

LINE = '=' * 65
LEVEL_NAMES = {'1': 'Easy', '2': 'Medium', '3': 'Hard'}


def rows_in(path):
    """The rows of a .jsonl file, dicts; those that were not written to their end are left out"""
    rows = []
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            with suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def counted(rows):
    """How many rows are right; what was not answered is not counted as wrong"""
    rows = [row for row in rows if not row.get('error')]
    right = sum(row['is_correct'] for row in rows)
    return {'total': len(rows), 'correct': right, 'accuracy': right / max(1, len(rows))}


def summarize(model, run_id, rows):
    """Rows that hold task, difficulty, is_correct, and perhaps error, latency_ms, prompt_tokens,
    completion_tokens -> the contents of summary.json"""
    levels = sorted({row['difficulty'] for row in rows})

    def by_level(rows):
        return {str(n): counted([row for row in rows if row['difficulty'] == n]) for n in levels}

    by_task = {}
    for task in dict.fromkeys(row['task'] for row in rows):
        of_task = [row for row in rows if row['task'] == task]
        by_task[task] = {**counted(of_task), 'by_difficulty': by_level(of_task)}
    overall = counted(rows)
    overall['total_samples'] = overall.pop('total')
    errors = Counter(row['error'] for row in rows if row.get('error'))
    found = {
        'run_id': run_id,
        'model': model,
        'overall': overall,
        'by_task': by_task,
        'by_difficulty': by_level(rows),
        'unanswered': errors.total(),
        'errors': dict(errors),
    }
    times = [row['latency_ms'] for row in rows if row.get('latency_ms') is not None]
    if times:
        found['timing'] = timing_of(times)
        found['tokens'] = {key: sum(row.get(key) or 0 for row in rows)
                           for key in ('prompt_tokens', 'completion_tokens')}
    return found


def timing_of(times):
    """Milliseconds of each answer -> their mean, median and 95th percentile"""
    cuts = quantiles(times, n=20, method='inclusive') if len(times) > 1 else 20 * times
    return {
        'avg_latency_ms': sum(times) / len(times),
        'p50_latency_ms': cuts[9],
        'p95_latency_ms': cuts[18],
    }


def show(found):
    """Print a summary as a table"""
    overall = found['overall']
    print(f"{LINE}\nRESULTS SUMMARY\n{LINE}")
    print(f"Model: {found['model']}")
    print(f"Total: {overall['correct']}/{overall['total_samples']} correct "
          f"({overall['accuracy']:.1%})")
    print("\nBy Task:")
    for task, part in found['by_task'].items():
        levels = [f"L{level}: {one['accuracy']:.0%}"
                  for level, one in part['by_difficulty'].items() if one['total']]
        print(f"  {row_of(task.upper(), part)}  [{' | '.join(levels)}]")
    print("\nBy Difficulty:")
    for level, part in found['by_difficulty'].items():
        print(f"  {row_of(LEVEL_NAMES.get(level, level), part)}")
    if 'timing' in found:
        timing, tokens = found['timing'], found['tokens']
        print(f"\nTiming: avg {timing['avg_latency_ms']:.0f}ms, "
              f"p50 {timing['p50_latency_ms']:.0f}ms, p95 {timing['p95_latency_ms']:.0f}ms")
        print(f"Tokens: {tokens['prompt_tokens']:,} prompt + "
              f"{tokens['completion_tokens']:,} completion = {sum(tokens.values()):,} total")
    for error, times in found['errors'].items():
        print(f"Not answered: {times} x {error}")
    print(LINE)


def row_of(name, part):
    return f"{name:8} {part['accuracy']:6.1%} ({part['correct']}/{part['total']})"


def rows_by_level(scores):
    """What score.py found, {task: {split: found}} -> a row for each question of a split that is a
    level of difficulty (Task.levels)"""
    rows = []
    for task, found in scores.items():
        for difficulty, name in enumerate(TASKS[task].levels, 1):
            if name not in found:  # another split was asked
                continue
            n = found[name]['n']
            n_right = round(n * found[name]['exact_match'])
            rows += [{'task': task, 'difficulty': difficulty, 'is_correct': i < n_right}
                     for i in range(n)]
    return rows
