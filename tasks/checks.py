"""
Does a task keep to what README.md in this folder asks of it? It is tried out on 64 questions of the
splits that every task has, and on a few of each other. What does not fit is a ValueError, one
sentence long.
"""
import torch

from tasks.task import REST, SYMBOLS, decode, in_their_slots, last_slot

REQUIRED = {'train': 'train', 'val': 'val', 'val_ood': 'far', 'iid': 'test'}  # and their buckets
WISHES = {'level': 0.0, 'aloud': True, 'pairs': True, 'mixed_symbols': 0.4}   # one of each


def check(t, tasks, draw):
    """A Task, all that are registered, and the function that draws questions of one by its name"""
    # A draw that is written wrongly may use torch's own generator, which others need undisturbed.
    with torch.random.fork_rng(devices=[]):
        check_fields(t)
        check_splits(t)
        check_labels(t, tasks)
        for name in t.wishes:
            drawn(t, 'train', 4, draw, {name: WISHES[name]})
        for split in t.splits:
            n = 16 if split in REQUIRED else 4
            q, a = drawn(t, split, n, draw, {})
            check_symbols(t, q, a)
            check_answers(t, q, a)
            if t.so_far:
                check_so_far(t, q)
            if t.working and split in REQUIRED:  # in training next_line is asked, not in tests
                check_lines(t, q)
        check_what_is_no_question(t, [other.example for other in tasks])


def must(t, holds, otherwise):
    if not holds:
        raise ValueError(f"task {t.name}: {otherwise}")


def check_fields(t):
    """What belongs together is there."""
    must(t, bool(t.next_line) == bool(t.working), "give it next_line and working, or neither")
    must(t, bool(t.so_far) == bool(t.n_labels), "give it so_far and n_labels, or neither")
    must(t, t.next_line or 'aloud' not in t.wishes,
         "only a task with next_line is asked aloud; give it one, or do not wish for aloud")
    for name in t.wishes:
        must(t, name in WISHES,
             f"nobody grants the wish {name!r}; they are some of {', '.join(WISHES)}")
    for name in t.levels:
        must(t, name in t.splits,
             f"its level {name!r} is no split; name splits that are easy, medium and hard")


def check_splits(t):
    """Those that every task has are there, and none of training's questions is asked in tests."""
    for name, bucket in REQUIRED.items():
        must(t, name in t.splits,
             f"it has no split {name!r}; give it {', '.join(REQUIRED)}")
        found = t.splits[name].bucket
        must(t, found == bucket,
             f"the bucket of split {name!r} is {found!r}; let it be {bucket!r}")
    for name, split in t.splits.items():
        must(t, split.bucket in REQUIRED.values(),
             f"the bucket of split {name!r} is {split.bucket!r}; let it be one of "
             f"{', '.join(REQUIRED.values())}")


def labels_of(t):
    return range(t.first_label, t.first_label + t.n_labels)


def check_labels(t, tasks):
    """No two tasks share a label."""
    others = [other for other in tasks if other.name != t.name]
    free = max([labels_of(other).stop for other in others], default=0)
    for other in others:
        shared = set(labels_of(t)) & set(labels_of(other))
        must(t, not shared, f"{other.name} has some of its labels, too; let first_label be {free}")


def drawn(t, split, n, draw, wishes):
    """n questions of a split and their answers. First its own draw is looked at, twice: the same
    seed must give the same."""
    def generator():
        return torch.Generator().manual_seed(1337)

    arguments = {**t.splits[split].arguments, **wishes}
    try:
        once, again = [t.draw(n, generator(), 'cpu', **arguments) for _ in range(2)]
    except TypeError as e:
        raise ValueError(f"task {t.name}: split {split!r} cannot be drawn with {arguments}; its "
                         f"draw says {e}") from e
    kinds = [(x.dtype, x.dim(), len(x)) for x in once]
    must(t, kinds == [(torch.long, 2, n), (torch.bool, 1, n)],
         "draw must give integers (n, N), the questions, and bool (n,), which are as asked")
    must(t, torch.equal(once[0], again[0]),
         f"the same seed draws other questions of split {split!r}; let all random numbers come "
         "from the generator")
    return draw(t.name, split, n, generator(), **wishes)


def check_symbols(t, q, a):
    """All that sounds is a symbol, and that of questions one of the task's."""
    must(t, q.shape == a.shape, "answer must give (B, N) for (B, N), in the slots of the question")
    for row in torch.cat([q, a]):
        must(t, row.min() >= REST and row.max() < len(SYMBOLS),
             f"{row.tolist()} holds what is no symbol; they go from 0 to {len(SYMBOLS) - 1}, and "
             "REST is silent")
    for text in [t.example, *map(decode, q)]:
        more = set(text) - set(t.symbols)
        must(t, not more, f"{text!r} is asked, but {', '.join(sorted(more))} is none of its "
                          "symbols; name all in which questions are written")


def solved(t, text):
    try:
        return t.solve(text)
    except ValueError:
        must(t, False, f"draw asks {text!r}, but solve refuses it; let solve answer it, or draw "
                       "say that it is not as asked")


def check_answers(t, q, a):
    """There is room for each answer, and it is what solve says."""
    ends = 1 + last_slot(q).maximum(last_slot(a))
    for asked, row, end in zip(q, a, ends, strict=True):
        text, played = decode(asked), decode(row)
        wanted, slots = solved(t, text), t.slots(text)
        must(t, max(int(end), len(wanted)) <= slots <= len(row),
             f"{text!r} and its answer {wanted!r} have no room in {slots} of {len(row)} slots; let "
             "`slots` say how many they take, and draw rows that are so long")
        must(t, played == wanted, f"the answer to {text!r} is {wanted!r} by solve, and {played!r} "
                                  "by answer; let them agree")
    if t.source:
        copied = q.gather(1, t.source(q))
        must(t, torch.equal(copied, a), "source must name the slot from which each tone of an "
                                        "answer comes")


def check_lines(t, q):
    """next_line gives the lines of `working`, which ends with what solve says and stays so."""
    lines = [t.working(decode(row)) for row in q]
    for asked in lines:
        wanted, last = t.solve(asked[0]), asked[-1]
        must(t, last == wanted, f"the answer to {asked[0]!r} is {wanted!r} by solve, and {last!r} "
                                "by the last line of working; let them agree")
    if t.between:  # lines depend on what is called between them, but for the last
        return
    for i in range(max(map(len, lines))):
        q = in_their_slots(q, t.next_line)
        for asked, row in zip(lines, q, strict=True):
            before, wanted = (asked[i:] + 2 * asked[-1:])[:2]  # the last line stays as it is
            must(t, decode(row) == wanted, f"the line after {before!r} is {wanted!r} by working, "
                                           f"and {decode(row)!r} by next_line; let them agree")


def check_so_far(t, q):
    label = t.so_far(q)
    must(t, label.shape == q.shape, "so_far must give a label for each slot, (B, N) for (B, N)")
    low, high = int(label.min()), int(label.max())
    must(t, -1 <= low and high < t.n_labels, f"so_far gives {low} to {high}; let it be 0 to "
                                             f"{t.n_labels - 1}, which n_labels says, or -1")


def check_what_is_no_question(t, examples):
    """Whatever is typed, solve answers or raises ValueError."""
    shorter = [text[1:] for text in examples] + [text[:-1] for text in examples]
    for text in [*SYMBOLS, *examples, *shorter]:
        try:
            t.solve(text)
        except ValueError:
            pass
        except Exception as e:
            raise ValueError(f"task {t.name}: solve({text!r}) raises {type(e).__name__}; let it "
                             "raise ValueError for what is no question") from e
