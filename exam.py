"""
An exam: a model is asked a split of a task, and the scorer listens to its answers.
"""
from collections import Counter
from pkgutil import resolve_name
from statistics import fmean
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map

from prepare import split_batches
from tasks import TASKS, decode, taken
from think import conversation
from transcribe import transcribe

PASSES = [2 ** k for k in range(9)]  # 1 to 256, in the table of accuracy against thought


# --- how far from right? ---

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


# --- asking ---

class Asked(NamedTuple):
    """One question that was asked, in text"""
    question: str
    wanted: str
    heard: dict     # what was heard in the answer, by pass
    itself: str     # what is heard in the question's own sound
    passes: int     # how many of them changed something
    mistake: dict   # None if the last answer is right

    def heard_after(self, k):
        """What was heard after so many passes at most"""
        return self.heard[min(k, max(self.heard))]


def between_of(tasks):
    """What is called between the passes of a model of these tasks (Task.between), or None"""
    names = [TASKS[task].between for task in tasks if TASKS[task].between]
    return resolve_name(names[0]) if names else None


def ask(model, task, split, b, think, door, on_mistake, how):
    """Ask a Batch and listen to the answers after 1, 2, 4, ... passes and to the last, or for a
    diagnosis to all -> Asked for each question"""
    question, lengths = door(b.question, b.lengths) if door else (b.question, b.lengths)
    answers, heard = [], {}
    conversing = conversation(model, question, lengths, think, **how)
    for k, (answer, passes) in enumerate(conversing, 1):  # noqa: B007
        if k in PASSES or on_mistake:
            heard[k] = transcribe(answer)
        if on_mistake:
            answers.append(answer)
    if k not in heard:
        heard[k] = transcribe(answer)

    rows = []
    itself = transcribe(b.question)
    for i, n in enumerate(passes.tolist()):
        asked, wanted = decode(b.asked[i]), decode(b.wanted[i])
        mine = {k: texts[i] for k, texts in heard.items()}
        mistake = None
        if mine[k] != wanted:
            mistake = dict(task=task, split=split, asked=asked, wanted=wanted, heard=mine[k])
        if mistake and on_mistake:
            one, *sounds = tree_map(lambda t: t[i:i + 1], (b, *answers))  # noqa: B023
            on_mistake(mistake, one, sounds, list(mine.values()))
        rows.append(Asked(asked, wanted, mine, itself[i], n, mistake))
    return rows


@torch.no_grad()
def evaluate(model, task, split, n, seed=1337, device='cpu', think=1, sound='clean', change=None,
             door=None, on_mistake=None, how=None, **override):
    """Ask n questions of a split and listen to the answers -> dict, see `graded`, and mistakes,
    dicts of what was asked, wanted and heard.

    sound: clean or real, as prepare.py plays it. change: a Batch -> the same, heard otherwise
    (lab/conditions.py). door: waveforms, lengths -> the same, in tune and in time (audio/tune.py).
    on_mistake: called with a mistake's dict, a Batch of that row alone, the sounds of all passes
    and what was heard in them. how: what else conversation is told."""
    rows = []
    for b in split_batches(task, split, n, seed, device, sound=sound, **override):
        b = change(b) if change else b
        rows += ask(model, task, split, b, think, door, on_mistake, how or {})
    return {**graded(task, rows, think), 'mistakes': [r.mistake for r in rows if r.mistake]}


# --- grading ---

def graded(task, rows, think):
    """Asked questions -> dict: exact match; token accuracy (share of the wanted symbols at the
    right place); mean edit distance; wire, the exact match of the question's own sound; shortcuts,
    that of what a sceptic would try; confused, which symbols were heard for which in answers of the
    right length. With think > 1 also exact match after so many passes, the mean number of passes
    that changed something, in all and by how many lines the right working has, and the share that
    stopped by itself."""
    confused = Counter()
    n_right = distance = 0
    for row in rows:
        heard = row.heard_after(think)
        pairs = list(zip(row.wanted, heard, strict=False))
        n_right += sum(x == y for x, y in pairs)
        distance += edit_distance(heard, row.wanted) if row.mistake else 0
        if len(heard) == len(row.wanted):
            confused.update(x + y for x, y in pairs if x != y)
    found = {
        'exact_match': fmean(not row.mistake for row in rows),
        'token_accuracy': n_right / sum(len(row.wanted) for row in rows),
        'wire': fmean(row.itself == row.wanted for row in rows),
        'edit_distance': distance / len(rows),
        'n': len(rows),
        'distinct': len({row.question for row in rows}),
        'shortcuts': {name: fmean(shortcut(row.question) == row.wanted for row in rows)
                      for name, shortcut in TASKS[task].shortcuts.items()},
        'confused': dict(confused.most_common()),
    }
    if think == 1:
        return found

    by_lines = {}
    for row in rows:
        n_lines = len(TASKS[task].working(row.question)) - 1
        by_lines.setdefault(n_lines, []).append(row.passes)
    return {
        **found,
        'by_passes': {k: fmean(row.heard_after(k) == row.wanted for row in rows)
                      for k in PASSES if k <= think},
        'passes': fmean(row.passes for row in rows),
        'stopped': fmean(row.passes < think for row in rows),
        'passes_by_lines': {k: fmean(by_lines[k]) for k in sorted(by_lines)},
    }


# --- while training ---

def validate(model, tasks, aloud, n, seed, device, think, sound, level):
    """n validation questions of each task, of a level of difficulty -> {'val': {task: exact match},
    'val_ood': the same out of distribution, 'token_accuracy': ..., 'edit_distance': ...}, the last
    two of val"""
    found = {key: {} for key in ('val', 'val_ood', 'token_accuracy', 'edit_distance')}
    how = {'between': between_of(tasks)}
    model.eval()
    # Long counts need all of their digits.
    fast = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    # Other shapes than in training are not worth compiling.
    with torch.compiler.set_stance('force_eager'):
        for task in tasks:
            passes = think if task in aloud else 1
            for split in ('val_ood', 'val'):
                r = evaluate(model, task, split, n, seed, device, passes, sound, how=how,
                             **taken(task, level=level))
                found[split][task] = r['exact_match']
            for key in ('token_accuracy', 'edit_distance'):
                found[key][task] = r[key]
    torch.backends.cuda.matmul.allow_tf32 = fast
    model.train()
    return found
