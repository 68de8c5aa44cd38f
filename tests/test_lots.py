"""
Lots: examples that are drawn for several updates at once, sorted, and shown in windows that are as
long as they need; conversations go on from lot to lot.

$ python -m pytest tests/test_lots.py
"""
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import fast
from fast import processes
from fast.lots import Lots, by_length, kept, make_lot, window
from lessons import begin, last_line
from prepare import BLOCK, draw_examples, max_samples
from tasks import TASKS, so_far
from tests.helpers import gen, texts_of


def rows_of(tree, rows):
    """Some rows of each tensor of a Drawn"""
    return tree_map(lambda t: t[rows], tree)


def same(one, other):
    """Are all tensors, and all numbers, of two trees alike?"""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(*map(torch.as_tensor, pair)) for pair in pairs)


def joined(parts):
    """Several Drawn -> one"""
    return tree_map(lambda *ts: torch.cat(ts), *parts)


# --- one lot ---

def who(drawn, among):
    """Which rows of `among` those of `drawn` are: no two have the same phase"""
    [first, others] = drawn.rhythm.phase[:, 0], among.rhythm.phase[:, 0]
    return [others.tolist().index(phase) for phase in first.tolist()]


@pytest.mark.parametrize('sound', ['clean', 'real'])
def test_the_shortest_come_first_and_each_beside_its_neighbour(sound):
    fresh = draw_examples('mod', 'train', 60, gen(), sound=sound, aloud=True, pairs=True)
    found = by_length(fresh)
    order = who(found, fresh)
    assert sorted(order) == list(range(60))
    assert same(found, rows_of(fresh, order))
    neighbour = (torch.arange(60) + found.to_neighbour).tolist()
    drawn_together = (torch.arange(60) + fresh.to_neighbour).tolist()
    assert [order[i] for i in neighbour] == [drawn_together[i] for i in order]
    longest = found.lengths.view(-1, 2).amax(1)
    assert torch.equal(longest, longest.sort().values)
    assert longest[0] < longest[-1] / 2


@pytest.mark.parametrize('sound', ['clean', 'real'])
@pytest.mark.parametrize('n_own', [0, 2])
def test_the_batches_of_a_lot_hold_each_example_once(n_own, sound):
    how = {'sound': sound, 'aloud': True, 'pairs': True, 'pauses': 4}
    fresh = by_length(draw_examples('mod', 'train', 8 * 6, gen(1), **how))
    drawn, talks = fresh, None
    if n_own:
        talks = begin(draw_examples('mod', 'train', 8 * n_own, gen(2), **how), 10 * BLOCK)
        drawn = tree_map(lambda *ts: torch.cat(ts), fresh, talks.drawn)
    lot = make_lot('mod', fresh, talks, True, 8)
    order = who(lot.drawn, drawn)
    assert sorted(order) == list(range(len(drawn.asked)))
    assert same(lot.drawn, rows_of(drawn, order))
    assert torch.equal(lot.so_far, so_far('mod', lot.drawn.asked))
    assert torch.equal(lot.is_last, last_line('mod', lot.drawn, True))

    # In each batch the conversations are the last rows.
    batches = torch.tensor(order).view(8, -1)
    assert lot.talk.shape == (8, n_own)
    assert torch.equal(batches[:, 6:], lot.talk + len(fresh.asked))
    neighbours = batches[:, :6].unflatten(1, (-1, 2))
    assert torch.equal(neighbours[..., 0] + fresh.to_neighbour[neighbours[..., 0]],
                       neighbours[..., 1])
    lengths = lot.drawn.lengths.view(8, -1)
    for part in (lengths[:, :6], lengths[:, 6:]) if n_own else (lengths,):
        longest = part.amax(1)
        assert torch.equal(longest, longest.sort().values)

    # Windows hold their batches, and most are shorter than one for all would be.
    windows = [*map(window, lengths.amax(1).tolist())]
    for samples, row in zip(windows, lengths, strict=True):
        assert row.max() <= samples < row.max() + 2 * BLOCK
    for_all = max_samples(lot.drawn.asked.shape[1], 2 * BLOCK)
    assert sum(windows) < {'clean': 0.75, 'real': 0.9}[sound] * 8 * for_all


def test_what_a_task_does_not_teach_has_no_labels():
    fresh = by_length(draw_examples('mirror', 'train', 4 * 4, gen()))
    lot = make_lot('mirror', fresh, None, False, 4)
    assert (lot.so_far == -1).all()
    assert lot.is_last.all()


def test_windows_are_of_whole_blocks_and_few():
    sizes = [window(BLOCK * n) // BLOCK for n in range(1, 13)]
    assert sizes == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12]
    for samples in range(1, 20 * BLOCK, 999):
        assert samples <= window(samples) < samples + 2 * BLOCK


def test_what_is_kept_lies_where_the_old_one_did():
    old, new = (draw_examples('mirror', 'train', 6, gen(seed), high=5) for seed in (0, 1))
    assert kept(None, new) is new
    where = [t.data_ptr() for t in tree_leaves(old)]
    found = kept(old, new)
    assert same(found, new) and same(old, new)
    assert [t.data_ptr() for t in tree_leaves(found)] == where


# --- lots of several tasks ---

N = 4  # updates


@pytest.fixture(autouse=True)
def of_few_updates(monkeypatch):
    monkeypatch.setattr(fast.lots, 'LOT', N)


def some_lots(n_rows=4, n_own=0, n_batches=1, aloud=('mod',)):
    """Lots, and a list that gets what is Drawn for them"""
    drawn = []

    def draw(task, n, generator):
        wishes = {'pairs': True, 'pauses': 6} if task == 'mod' else {'pauses': 6}
        examples = draw_examples(task, 'train', n, generator, aloud=task in aloud, **wishes)
        drawn.append(examples)
        return examples

    return Lots(draw, aloud, n_rows, n_own, n_batches, BLOCK, 'cpu'), drawn


def update(lots, task, n, seed=7):
    """Update n of a task -> how many samples its window has, and its batches"""
    n_samples = lots.next(task, n, seed)
    return n_samples, [lots.batch(task, i, n_samples) for i in range(lots.n_batches)]


@pytest.mark.parametrize('task, n_own, n_batches', [('mod', 0, 1), ('mod', 2, 2), ('mirror', 0, 2)])
def test_the_updates_of_a_lot_hold_each_example_that_is_drawn_once(task, n_own, n_batches):
    lots, drawn = some_lots(6, n_own, n_batches)
    batches = [batch for n in range(N) for batch in update(lots, task, n)[1]]
    found, everything = joined([batch[0] for batch in batches]), joined(drawn)
    assert len(drawn) == (2 if n_own else 1)
    assert len(everything.asked) == N * n_batches * 6
    order = who(found, everything)
    assert sorted(order) == list(range(len(everything.asked)))
    assert same(found._replace(to_neighbour=()),
                rows_of(everything, order)._replace(to_neighbour=()))
    for chosen, labels, is_last, talk, _ in batches:
        assert len(chosen.asked) == 6 and len(talk) == n_own
        teaches = TASKS[task].so_far
        wanted = so_far(task, chosen.asked) if teaches else torch.full_like(chosen.asked, -1)
        assert torch.equal(labels, wanted)
        assert torch.equal(is_last, last_line(task, chosen, task == 'mod'))
        # What may be hidden, all but conversations, stands in one batch with its neighbour.
        fresh = rows_of(chosen, slice(6 - n_own))
        at = torch.arange(6 - n_own)
        assert torch.equal(at + fresh.to_neighbour, at ^ 1)
        if task == 'mod':
            divisors = [text.split('%')[1:] for text in texts_of(fresh.asked)]
            assert divisors[::2] == divisors[1::2]


def test_a_window_is_as_long_as_the_longest_of_its_update():
    lots, _ = some_lots(n_batches=2)
    sizes = []
    for n in range(4 * N):
        n_samples, batches = update(lots, 'mod', n)
        sizes.append(n_samples)
        assert n_samples == window(max(int(batch[0].lengths.max()) for batch in batches))
    # Those of a lot are sorted, and then shuffled.
    by_lot = [sizes[i:i + N] for i in range(0, len(sizes), N)]
    assert all(len(set(part)) > 1 for part in by_lot)
    assert any(part != sorted(part) for part in by_lot)


def of_updates(lots, numbers, task='mod', **more):
    return [update(lots, task, n, **more) for n in numbers]


@pytest.mark.parametrize('first', [N, 2 * N + 1, 3 * N - 1])
def test_who_resumes_in_the_middle_of_a_lot_draws_the_same(first):
    whole = of_updates(some_lots()[0], range(3 * N))
    lots, drawn = some_lots()
    rest = of_updates(lots, range(first, 3 * N))
    assert same(whole[first:], rest)
    assert len(drawn) == 3 - first // N


def test_what_is_drawn_depends_on_the_seed_and_the_number_of_the_update_alone():
    alone = of_updates(some_lots()[0], range(2 * N))
    lots, _ = some_lots()
    between = []
    for n in range(2 * N):
        update(lots, 'mirror', n)
        between.append(update(lots, 'mod', n))
    assert same(alone, between)
    assert not same(alone, of_updates(some_lots()[0], range(2 * N), seed=8))
    phases = [batch[0].rhythm.phase[:, 0] for _, [batch] in alone]
    assert len(set(torch.cat(phases).tolist())) == 2 * N * 4


def test_the_next_lot_lies_where_the_last_one_did():
    lots, _ = some_lots(4, 2)
    update(lots, 'mod', 0)
    where = [t.data_ptr() for t in tree_leaves((lots.lots, lots.talks))]
    for n in range(1, 2 * N + 1):
        update(lots, 'mod', n)
    assert [t.data_ptr() for t in tree_leaves((lots.lots, lots.talks))] == where


def test_two_processes_share_what_one_draws(monkeypatch):
    def mine(rank, world):
        monkeypatch.setattr(processes, 'rank', rank)
        monkeypatch.setattr(processes, 'world', world)
        lots, _ = some_lots(n_batches=2)
        lots.generator.manual_seed(3)
        return lots.drawn('mod', 4 // world)

    whole, halves = mine(0, 1), [mine(rank, 2) for rank in range(2)]
    # Each has a part of every batch.
    parts = [tree_map(lambda t: t.unflatten(0, (2 * N, -1)), half) for half in halves]
    together = tree_map(lambda *ts: torch.cat(ts, 1).flatten(0, 1), *parts)
    assert same(whole, together)


# --- conversations ---

def test_only_what_is_thought_aloud_has_conversations():
    lots, _ = some_lots(4, 2)
    for task, n in (('mod', 2), ('mirror', 0)):
        n_samples, [(chosen, *_, talk, own)] = update(lots, task, 0)
        assert len(chosen.asked) == 4 and len(talk) == n
        assert [*map(len, own)] == [n] * n
        if n:
            sound, is_own = own
            assert sound.shape == (n, n_samples) and sound.dtype == torch.float32
            assert not is_own.any()
    assert set(lots.talks) == {'mod'}


def test_what_was_replied_is_heard_in_the_next_lot_by_whom_it_is_right():
    lots, _ = some_lots(8, 8)
    before = {}
    for n in range(N):
        n_samples, [(chosen, *_, talk, _)] = update(lots, 'mod', n)
        # Each answers in a sound of its own; every other one is right.
        is_right = talk % 2 == 0
        loudness = (1 + talk) / 64
        lots.replied('mod', talk, loudness[:, None].expand(-1, n_samples), is_right)
        texts = texts_of(chosen.asked), texts_of(chosen.wanted)
        before |= dict(zip(talk.tolist(), zip(*texts, strict=True), strict=True))
    assert sorted(before) == list(range(8 * N))
    went_on = 0
    for n in range(N, 2 * N):
        n_samples, [(chosen, *_, talk, own)] = update(lots, 'mod', n)
        inside = torch.arange(n_samples) < chosen.lengths[:, None]
        asked_now = texts_of(chosen.asked)
        for row, i in enumerate(talk.tolist()):
            asked, wanted = before[i]
            goes_on = i % 2 == 0 and asked != wanted
            assert own[1][row] == goes_on
            if goes_on:
                assert asked_now[row] == wanted
                assert torch.equal(own[0][row], (1 + i) / 64 * inside[row])
                went_on += 1
    assert went_on >= N
