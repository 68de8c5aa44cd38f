"""
The tasks: their registry, how a question is drawn, and which questions are held out.

A new task is a file in this folder that ends in a Task; README.md says what it must give. It is
imported and registered below.
"""
import torch

from tasks import (
    bracket,
    calculator,
    dyna,
    filtro,
    inducto,
    logic,
    mirror,
    mod,
    reverse,
    twice,
)
from tasks.checks import check as check_task
from tasks.task import (
    NO_SYMBOL,
    REST,
    SYMBOLS,
    Split,
    Task,
    decode,
    encode,
    in_their_slots,
)

__all__ = ['NO_SYMBOL', 'REST', 'SYMBOLS', 'TASKS', 'Split', 'Task', 'bucket_of', 'check', 'decode',
           'draw', 'encode', 'insert_pauses', 'n_labels', 'next_line', 'so_far', 'solve',
           'split_names', 'taken', 'task_of']

TASKS = {t.name: t for t in (
    mirror.task, mod.task, bracket.task, reverse.task, twice.task,
    logic.task, dyna.task, filtro.task, inducto.task, calculator.task,
)}


# --- which questions are held out ---

# A fixed hash of its symbols says which bucket a question is in, so that no training run can meet a
# test question. val and val_ood are for choosing among checkpoints and settings: val_ood is as far
# out as the tests, but at no test's length.
BUCKETS = 'train', 'val', 'test'
TRAIN, VAL = 70, 10  # per cent of all questions; the other 20 are for the tests
NO_TESTS = 'train', 'val', 'val_ood'


def hash100(q):
    """Symbols (B, N) -> 0 to 99 for each row, which depends on its symbols alone, not on pauses or
    padding"""
    def mix(h):
        for _ in range(2):  # once would leave it to a few low digits
            h = (h * 48271 + 11) % 2147483647
            h = h ^ (h >> 15)
        return h

    sounds = q >= 0
    place = sounds.cumsum(1)
    each = mix(q + 32 * place) * sounds
    return mix(each.sum(1) % 2147483647) % 100


def bucket_of(task, q):
    """Symbols (B, N) -> 0 for train, 1 for val, 2 for test, (B,). Questions too few to hold out are
    all for training."""
    h = hash100(q)
    bucket = (h >= TRAIN).long() + (h >= TRAIN + VAL).long()
    if TASKS[task].few:
        bucket = torch.where(TASKS[task].few(q), 0, bucket)
    return bucket


def split_names(task, split):
    """'ood_length' stands for every split that begins so: ood_length_15, ood_length_20, ...; 'all'
    for those of the tests"""
    names = list(TASKS[task].splits)
    if split == 'all':
        return [s for s in names if s not in NO_TESTS]
    return [s for s in names if s == split] or [s for s in names if s.startswith(split + '_')]


# --- drawing questions ---

def taken(task, **wishes):
    """Those of the wishes that a task's draw has a parameter for"""
    return {name: wish for name, wish in wishes.items() if name in TASKS[task].wishes}


def draw(task, split, n, generator=None, device='cpu', pauses=0, aloud=False, **override):
    """n questions of a split and their answers, or with aloud=True lines of working and the next
    lines, as symbols, (n, N) each, REST where a slot is silent"""
    t = TASKS[task]
    _, bucket, arguments = t.splits[split]
    arguments = {**arguments, **override, **taken(task, aloud=aloud)}
    in_pairs = t.paired or arguments.get('pairs')

    def candidates(n):
        q, fits = t.draw(n, generator, device, **arguments)
        if bucket != 'far':
            fits = fits & (bucket_of(task, q) == BUCKETS.index(bucket))
        if in_pairs:
            fits = fits.view(-1, 2).all(1).repeat_interleave(2)
        return q, fits

    if split == 'train':
        # Far more than are needed are drawn at once (no loop that would make a GPU wait): that too
        # few of them fit has a probability of under 1e-20.
        q, fits = candidates((8 if in_pairs else 2) * n + 512)
        q = q[(~fits).long().argsort(stable=True)[:n]]
    else:
        found = []
        while sum(map(len, found)) < n:
            q, fits = candidates(40 * n)
            found.append(q[fits])
            if len(found) > 200:
                raise ValueError(f"of what {task} draws, too little fits its split {split}")
        q = torch.cat(found)[:n]
    a = t.next_line(q) if aloud else t.answer(q)
    if pauses:
        q, a = insert_pauses([q, a], pauses, generator)
    return q, a


def insert_pauses(rows, pauses, generator):
    """Insert up to `pauses` silent slots before, between and behind the symbols of each (n, N) in
    rows, in all of them alike -> (n, N + pauses) each. Few examples get many, and then most of
    them in one place."""
    n, N = rows[0].shape
    device = rows[0].device
    # Each gap's share of the pauses: most are small, a few are large.
    share = (torch.rand(n, N + 1, generator=generator, device=device) + 0.01) ** -2
    share = share.cumsum(1)[:, :N] / share.sum(1, keepdim=True)
    total = torch.rand(n, 1, generator=generator, device=device).square() * (pauses + 1)
    before = (share * total).long().clamp(max=pauses)
    slot = torch.arange(N, device=device) + before
    return [row.new_full((n, N + pauses), REST).scatter(1, slot, row) for row in rows]


def check(task):
    """The first use of a task checks it on 64 questions: a ValueError says what does not fit."""
    check_task(TASKS[task], TASKS.values(), draw)


# --- lines and labels ---

def next_line(task, q):
    """Rows (B, N) of lines of working, with pauses anywhere -> the next lines, in the same slots"""
    return in_their_slots(q, TASKS[task].next_line)


def n_labels():
    """How many labels there are for what a question comes to so far, of all tasks together"""
    return max(t.first_label + t.n_labels for t in TASKS.values())


def so_far(task, q):
    """Symbols (B, N) -> labels (B, N) of what they come to so far, which no two tasks share; -1:
    unknown"""
    label = TASKS[task].so_far(q)
    return torch.where(label < 0, -1, label + TASKS[task].first_label)


# --- questions that are typed ---

def solve(task, text):
    """The right answer to a question in text, of any length -> text. ValueError if the task has no
    such question."""
    encode(text)
    if not text:
        raise ValueError("a question needs at least one symbol")
    try:
        return TASKS[task].solve(text)
    except ValueError:
        example = TASKS[task].example
        raise ValueError(f"{text!r} is not a question of {task}, which asks such things as "
                         f"{example}") from None


def is_question(task, text):
    try:
        solve(task, text)
    except ValueError:
        return False
    return True


def task_of(text, names):
    """Which of the tasks named does a typed question belong to? ValueError if that is not clear."""
    encode(text)
    if len(names) == 1:
        return names[0]
    fit = [name for name in names if set(text) <= set(TASKS[name].symbols)]
    if len(fit) > 1:
        fit = [name for name in fit if is_question(name, text)] or fit
    if len(fit) == 1:
        return fit[0]
    if fit:
        found = f"could belong to {' or '.join(fit)}"
    else:
        found = f"belongs to none of {', '.join(names)}"
        fit = names
    raise ValueError(f"{text!r} {found}; name its task, such as --task={fit[0]}")
