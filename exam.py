"""
An exam: a model is asked a split of a task, and the scorer listens to its answers.
"""
import importlib
from collections import Counter
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
    if not names:
        return None
    module, _, function = names[0].partition(':')
    return getattr(importlib.import_module(module), function)


def ask(model, task, split, b, think, door, on_mistake, how):
    """Ask a Batch and listen to the answers after 1, 2, 4, ... passes and to the last, or for a
    diagnosis to all -> Asked for each question"""
    asked = [decode(row) for row in b.asked]
    wanted = [decode(row) for row in b.wanted]
    itself = transcribe(b.question)
    question, lengths = b.question, b.lengths
    if door:
        question, lengths = door(question, lengths)
    answers, heard, k = [], {}, 0
    for answer, passes in conversation(model, question, lengths, think, **how):  # noqa: B007
        k += 1
        if k in PASSES or on_mistake:
            heard[k] = transcribe(answer)
        answers = [*answers, answer] if on_mistake else [answer]
    if k not in heard:
        heard[k] = transcribe(answer)
    passes = passes.tolist()

    rows = []
    for i in range(len(asked)):
        mine = {k: texts[i] for k, texts in heard.items()}
        mistake = None
        if mine[k] != wanted[i]:
            mistake = {'task': task, 'split': split, 'asked': asked[i], 'wanted': wanted[i],
                       'heard': mine[k]}
        if mistake and on_mistake:
            one_row = tree_map(lambda t: t[i:i + 1], (b, *answers))  # noqa: B023
            on_mistake(mistake, one_row[0], one_row[1:], list(mine.values()))
        rows.append(Asked(asked[i], wanted[i], mine, itself[i], passes[i], mistake))
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
        if change:
            b = change(b)
        rows += ask(model, task, split, b, think, door, on_mistake, how or {})
    mistakes = [row.mistake for row in rows if row.mistake]
    return {**graded(task, rows, think), 'mistakes': mistakes}


# --- grading ---

def share(hits):
    """Bools or numbers -> their mean"""
    hits = list(hits)
    return sum(hits) / len(hits)


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
    shortcuts = {}
    for name, shortcut in TASKS[task].shortcuts.items():
        shortcuts[name] = share(shortcut(row.question) == row.wanted for row in rows)
    found = {
        'exact_match': share(not row.mistake for row in rows),
        'token_accuracy': n_right / sum(len(row.wanted) for row in rows),
        'wire': share(row.itself == row.wanted for row in rows),
        'edit_distance': distance / len(rows),
        'n': len(rows),
        'distinct': len({row.question for row in rows}),
        'shortcuts': shortcuts,
        'confused': dict(confused.most_common()),
    }
    return {**found, **graded_passes(task, rows, think)} if think > 1 else found


def graded_passes(task, rows, think):
    """The part of `graded` that is about thought"""
    by_passes, by_lines = {}, {}
    for k in PASSES:
        if k <= think:
            by_passes[k] = share(row.heard_after(k) == row.wanted for row in rows)
    for row in rows:
        n_lines = len(TASKS[task].working(row.question)) - 1
        by_lines.setdefault(n_lines, []).append(row.passes)
    return {
        'by_passes': by_passes,
        'passes': share(row.passes for row in rows),
        'stopped': share(row.passes < think for row in rows),
        'passes_by_lines': {k: share(by_lines[k]) for k in sorted(by_lines)},
    }


# --- while training ---

def validate(model, tasks, aloud, n, seed, device, think, sound, level, door=None):
    """n validation questions of each task, of a level of difficulty -> {'val': {task: exact match},
    'val_ood': the same out of distribution, 'token_accuracy': ..., 'edit_distance': ...}, the last
    two of val"""
    model.eval()
    # Other shapes than in training are not worth compiling.
    torch.compiler.set_stance('force_eager')
    # Long counts need all of their digits.
    fast = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    how = {'between': between_of(tasks)}
    found = {'val': {}, 'val_ood': {}, 'token_accuracy': {}, 'edit_distance': {}}
    for task in tasks:
        passes = think if task in aloud else 1
        wishes = taken(task, level=level)
        for split in ('val', 'val_ood'):
            r = evaluate(model, task, split, n, seed, device, passes, sound, door=door, how=how,
                         **wishes)
            found[split][task] = r['exact_match']
            if split == 'val':
                found['token_accuracy'][task] = r['token_accuracy']
                found['edit_distance'][task] = r['edit_distance']
    torch.backends.cuda.matmul.allow_tf32 = fast
    torch.compiler.set_stance('default')
    model.train()
    return found
