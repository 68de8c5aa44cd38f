"""
What training teaches: what may be generated, what is hidden, conversations that go on from update
to update, and how far off an answer is.

$ python -m pytest tests/test_lessons.py
"""
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

from lessons import (
    Example,
    begin,
    go_on,
    hide_from,
    last_line,
    losses,
    new_frames,
    plays,
    with_replay,
)
from model import Answer, JMambaConfig
from prepare import Synthesis, make_batch, play
from tasks import REST, SYMBOLS, draw, n_labels, next_line, so_far
from tests.helpers import gen, texts_of, tiny_model
from transcribe import transcribe

TOKEN = 800  # samples


def frames_of(model, waves):
    """Waveforms (B, S) -> the frames of a model that answers them (B, frames, F)"""
    s = model.spectrum
    return s.log(s.magnitude(s.stft(waves)))


def shuffled_rows(batch, seed=5):
    """The rows of a Batch in another order, each with its neighbour"""
    n = len(batch.asked)
    order = torch.randperm(n, generator=gen(seed))
    stands = order.argsort()  # where each row stands now
    neighbour = torch.arange(n) + batch.to_neighbour
    moved = tree_map(lambda t: t[order], batch)
    return moved._replace(to_neighbour=(stands[neighbour] - stands)[order])


def divisors_of(batch):
    return [text.split('%')[1:] for text in texts_of(batch.asked)]


# --- what is new ---

@pytest.mark.parametrize('task, aloud', [('mirror', False), ('bracket', True), ('mod', True)])
def test_what_may_be_generated_is_what_is_new(task, aloud):
    model = tiny_model()
    b = make_batch(task, 'train', 64, gen(), aloud=aloud, pauses=6)
    may_generate = new_frames(task, b)
    asked, wanted = (frames_of(model, play(x, b.rhythm, b.question.shape[1]))
                     for x in (b.asked, b.wanted))
    off = (asked - wanted).abs().amax(2)
    assert off[~may_generate].max() < 0.2
    assert may_generate.any()
    assert (off > 1)[may_generate].any() == (task != 'mirror')


@pytest.mark.parametrize('task', ['reverse', 'twice'])
def test_what_is_played_elsewhere_cannot_be_generated(task):
    s = tiny_model().spectrum
    b = make_batch(task, 'train', 8, gen())
    may_generate = new_frames(task, b)
    level = s.magnitude(s.stft(b.answer)).amax(2)
    assert level[may_generate].max() < 0.5
    assert (level[~may_generate] > 0.1).float().mean() > 0.8


@pytest.mark.parametrize('task, aloud, is_last', [
    ('mod', True, lambda wanted: '%' not in wanted),
    ('calculator', True, lambda wanted: '=' not in wanted),  # a call is still to be answered
    ('mirror', False, lambda wanted: True),
])
def test_what_is_the_last_line(task, aloud, is_last):
    b = make_batch(task, 'train', 200, gen(), aloud=aloud)
    found = last_line(task, b, aloud).bool().tolist()
    assert found == list(map(is_last, texts_of(b.wanted)))


# --- what is hidden ---

def hidden_in(batch, share, seed=1):
    n = len(batch.asked)
    return hide_from(batch, share, n, slice(None), JMambaConfig(d_model=32), gen(seed))


@pytest.mark.parametrize('moved', [False, True])
def test_what_is_hidden_is_found_in_a_question_of_the_same_divisors(moved):
    b = make_batch('mod', 'train', 200, gen(), aloud=True, pairs=True)
    b = shuffled_rows(b) if moved else b
    hiding = hidden_in(b, 0.75)
    at, nothing = torch.arange(200), hiding.visible.all(1)
    assert 100 < (~nothing).sum() < 180
    assert torch.equal(hiding.neighbour[nothing], at[nothing])
    other = hiding.neighbour[~nothing]
    assert (other != at[~nothing]).all()
    divisors, texts = divisors_of(b), texts_of(b.asked)
    for i in at[~nothing].tolist():
        assert divisors[i] == divisors[hiding.neighbour[i]]
    assert any(texts[i] != texts[hiding.neighbour[i]] for i in at.tolist())


def test_what_changes_is_always_visible():
    b = make_batch('mod', 'train', 64, gen(), aloud=True, pairs=True, pauses=6)
    visible = hidden_in(b, 1.0).visible
    ends = TOKEN * (1 + torch.arange(visible.shape[1]))
    assert visible[ends <= b.changed[:, None]].all()
    assert not visible.all()
    assert hidden_in(b, 0.0).visible.all()


def test_every_row_is_hidden_as_often_as_another():
    b = make_batch('mirror', 'train', 8, gen())
    hidden = sum((~hidden_in(b, 0.5, seed).visible.all(1)).float() for seed in range(400)) / 400
    assert 0.3 < hidden.min()
    assert hidden.max() - hidden.min() < 0.15


def test_two_processes_hide_what_one_does():
    b = make_batch('mirror', 'train', 8, gen())
    whole = hidden_in(b, 0.5)
    for part in (slice(0, 4), slice(4, 8)):
        mine = tree_map(lambda t: t[part], b)  # noqa: B023
        half = hide_from(mine, 0.5, 8, part, JMambaConfig(d_model=32), gen(1))
        assert torch.equal(half.visible, whole.visible[part])
        assert torch.equal(half.noise, whole.noise[part])
        assert torch.equal(half.neighbour + part.start, whole.neighbour[part])


# --- replay: who goes on ---

@pytest.mark.parametrize('task', ['mod', 'bracket', 'logic', 'dyna', 'filtro'])
def test_lines_follow_each_other_whatever_the_pauses(task):
    q, a = draw(task, 'train', 300, gen(1), aloud=True, pauses=6)
    assert torch.equal(next_line(task, q), a)


@pytest.mark.parametrize('task, sound', [
    ('mod', 'clean'), ('mod', 'real'), ('bracket', 'clean'), ('logic', 'real'), ('dyna', 'clean'),
])
def test_who_answers_right_hears_it_and_is_asked_the_next_line(task, sound):
    model, generator = tiny_model(), gen(2)

    def drawn(seed):
        return make_batch(task, 'train', 8, gen(seed), aloud=True, pauses=3, sound=sound)

    kept = begin(drawn(0), 8)
    was = texts_of(kept.asked)
    goes_on, ends = 0, 0
    for seed in range(1, 6):
        wanted = texts_of(kept.wanted)
        fresh = drawn(seed)
        go_on(task, model, frames_of(model, kept.answer), kept, fresh, generator, play)
        now, new = texts_of(kept.asked), texts_of(fresh.asked)
        for i in range(8):
            if was[i] == wanted[i]:
                assert now[i] == new[i]
                ends += 1
            elif now[i] == wanted[i]:
                if sound == 'clean':
                    assert transcribe(kept.question[i:i + 1]) == [now[i]]
                    assert transcribe(kept.answer[i:i + 1]) == texts_of(kept.wanted[i:i + 1])
                goes_on += 1
        was = now
    assert goes_on > 5
    assert ends > 2


@pytest.mark.parametrize('sound, least', [('clean', 1.0), ('real', 0.85)])
def test_an_answer_is_right_if_every_slot_plays_its_symbol(sound, least):
    model = tiny_model()
    b = make_batch('mod', 'train', 100, gen(4), aloud=True, pauses=3, sound=sound)
    heard = model.spectrum.stft(b.answer)
    assert plays(b.wanted, model, heard, b).float().mean() >= least
    sounds = (b.wanted != REST).long()
    slot = torch.arange(b.wanted.shape[1])
    last = slot == (sounds * slot).argmax(1, keepdim=True)
    for other in (torch.where(last, REST, b.wanted), torch.where(last, b.wanted ^ 1, b.wanted)):
        assert not plays(other, model, heard, b).any()
    first_silent = slot == (sounds == 0).long().argmax(1, keepdim=True)
    more = torch.where(first_silent & (sounds == 0), 3, b.wanted)
    has_silence = (sounds == 0).any(1)
    assert not plays(more, model, heard, b)[has_silence].any()


def test_who_answers_wrong_is_asked_the_same_sound_again():
    model = tiny_model()
    kept = begin(make_batch('mod', 'train', 64, gen(0), aloud=True), 64)
    before = [t.clone() for t in tree_leaves(kept)]
    silence = torch.zeros_like(frames_of(model, kept.question))
    fresh = make_batch('mod', 'train', 64, gen(1), aloud=True)
    go_on('mod', model, silence, kept, fresh, gen(2), play)
    same = torch.ones(64, dtype=torch.bool)
    for now, then in zip(tree_leaves(kept), before, strict=True):
        same &= (now == then).view(64, -1).all(1) if now.numel() else True
    assert 64 / 2 < int(same.sum()) < 64  # but for those that got nowhere


# --- replay: where it is heard ---

def example_of(batch):
    return Example(batch, new_frames('mod', batch), hidden_in(batch, 1.0))


@pytest.mark.parametrize('moved', [False, True])
def test_conversations_take_the_place_of_whole_pairs_and_hide_nothing(moved):
    b = make_batch('mod', 'train', 16, gen(0), aloud=True, pairs=True)
    example = example_of(shuffled_rows(b) if moved else b)
    kept = begin(make_batch('mod', 'train', 8, gen(1), aloud=True), 4)
    mixed = with_replay('mod', example, kept, gen(2))
    rows, b = mixed.replayed, example.batch
    others = torch.tensor([i for i in range(16) if i not in rows])
    assert set((rows + b.to_neighbour[rows]).tolist()) == set(rows.tolist())
    assert len(rows) == 4

    texts = texts_of(mixed.batch.asked)
    assert [texts[i] for i in rows] == texts_of(kept.asked)
    noise = mixed.batch.question[rows] - kept.question
    assert 0.005 < noise.std() < 0.02  # each time another
    assert torch.equal(mixed.may_generate[rows], new_frames('mod', kept))
    assert mixed.hiding.visible[rows].all()
    assert torch.equal(mixed.hiding.neighbour[rows], rows)

    # All others are as they were.
    for now, then in zip(tree_leaves((mixed.batch, mixed.may_generate, mixed.hiding)),
                         tree_leaves((b, example.may_generate, example.hiding)), strict=True):
        assert torch.equal(now[others], then[others])
    assert torch.equal(mixed.batch.to_neighbour, b.to_neighbour)


def test_where_nothing_is_hidden_or_pointed_at_nothing_of_it_is_replayed():
    b = make_batch('mod', 'train', 8, gen(0), aloud=True)
    mixed = with_replay('mod', Example(b), begin(b, 4), gen(2))
    assert mixed.may_generate is None
    assert mixed.hiding is None


def without_tones(waves, room):
    return 0 * waves


def in_rooms(batch):
    """Which rows (B,) of a batch that was made without_tones in rooms are in one"""
    return (batch.answer == 0).all(1)


def test_half_of_what_is_drawn_is_in_rooms_with_replay_too():
    how = {'sound': 'real', 'synthesis': Synthesis(reverberate=without_tones)}
    fresh, in_a_room, taken = torch.zeros(3, 8)
    for seed in range(150):
        b = make_batch('mirror', 'train', 8, gen(seed), high=3, **how)
        assert in_rooms(b).sum() == 4
        mixed = with_replay('mirror', Example(b), begin(b, 2), gen(1000 + seed))
        is_fresh = torch.ones(8, dtype=torch.bool).index_fill(0, mixed.replayed, False)
        fresh += is_fresh
        in_a_room += is_fresh & in_rooms(b)
        taken += ~is_fresh
    assert in_a_room.sum() / fresh.sum() == pytest.approx(1 / 2, abs=0.04)
    # Wherever a row stands, it is as often in a room, and as often replayed.
    assert (in_a_room / fresh - 1 / 2).abs().max() < 0.17
    assert (taken / 150 - 1 / 4).abs().max() < 0.14


# --- losses ---

NAMES = 'w_frames', 'w_symbols', 'w_ctc', 'w_so_far', 'w_halt'


def weights(*names):
    return {name: float(name in names) for name in NAMES}


def sounding(batch, T):
    """The slot whose tone sounds in the middle of what each token's frames hear (B, T), or -1: from
    240 samples before a token to its end"""
    middle = (torch.arange(T) * TOKEN + 280) / 16000
    slot = (middle[None, :, None] >= batch.rhythm.start[:, None]).sum(2) - 1
    at = slot.clamp(min=0)
    ends = (batch.rhythm.start + batch.rhythm.length).gather(1, at)
    return torch.where(middle < ends, slot, -1)


def right_answer(model, batch, task):
    """The Answer that leaves nothing to be learned"""
    T = batch.question.shape[1] // TOKEN
    slot = sounding(batch, T)
    symbol = batch.wanted.gather(1, slot.clamp(min=0)).where(slot >= 0, -1)
    symbol = symbol.where(symbol >= 0, len(SYMBOLS))
    logits = 50.0 * F.one_hot(symbol, len(SYMBOLS) + 1)
    # What it comes to so far is known 50 ms after a symbol has begun.
    heard_until = (torch.arange(T) + 1) * TOKEN / 16000 - 0.05
    slot = (heard_until[None, :, None] >= batch.rhythm.start[:, None]).sum(2) - 1
    labels = so_far(task, batch.asked).gather(1, slot.clamp(min=0)).clamp(min=0)
    known = 50.0 * F.one_hot(labels, n_labels())
    halt = 50.0 * (2 * last_line(task, batch, True) - 1)
    return Answer(frames_of(model, batch.answer), logits, halt, known)


def test_a_right_answer_has_no_loss_and_each_is_about_its_own():
    model = tiny_model()
    b = make_batch('bracket', 'train', 16, gen(), aloud=True, pauses=2)
    is_last = last_line('bracket', b, True)
    answer = right_answer(model, b, 'bracket')
    asked = weights('w_frames', 'w_symbols', 'w_so_far', 'w_halt')
    found = losses(model, answer, Example(b), is_last, 'bracket', asked, True)
    assert set(found) == {key for key in asked if asked[key]}
    assert max(found.values()) < 0.02, found
    for name, wrong in (
        ('w_frames', answer._replace(frames=answer.frames + 1)),
        ('w_symbols', answer._replace(logits=answer.logits.roll(1, 2))),
        ('w_so_far', answer._replace(so_far=answer.so_far.roll(1, 2))),
        ('w_halt', answer._replace(halt=-answer.halt)),
    ):
        found = losses(model, wrong, Example(b), is_last, 'bracket', asked, True)
        assert [key for key, x in found.items() if x > 0.5] == [name], found


def test_the_loss_of_frames_is_absolute_and_square():
    model = tiny_model()
    b = make_batch('mirror', 'train', 4, gen())
    frames = frames_of(model, b.answer) + 0.5
    answer = Answer(frames, torch.zeros(4, frames.shape[1] // 5, 2), None)
    found = losses(model, answer, Example(b), None, 'mirror', weights('w_frames'), False)
    assert list(found) == ['w_frames']
    assert float(found['w_frames']) == pytest.approx(0.5 + 0.25, abs=1e-4)


def test_what_lies_behind_a_question_or_is_hidden_need_not_be_right():
    model = tiny_model()
    b = make_batch('mod', 'train', 16, gen(), aloud=True, pairs=True, pauses=6)
    answer = right_answer(model, b, 'mod')
    hiding = hidden_in(b, 1.0)
    out_of_sight = ~hiding.visible
    behind = torch.arange(out_of_sight.shape[1]) * TOKEN >= b.lengths[:, None]
    assert behind.any()

    def loss(wrong, hiding):
        """What is lost if these tokens (B, T) are wrong"""
        frames = answer.frames + wrong.repeat_interleave(5, 1)[..., None]
        logits = torch.where(wrong[..., None], answer.logits.roll(1, 2), answer.logits)
        given = answer._replace(frames=frames, logits=logits)
        asked = weights('w_frames', 'w_symbols')
        found = losses(model, given, Example(b, hiding=hiding), None, 'mod', asked, True)
        return float(found['w_frames']), float(found['w_symbols'])

    assert max(loss(behind, None)) < 0.02
    assert loss(out_of_sight, hiding)[1] < 0.02
    assert loss(out_of_sight, None)[1] > 0.5
    assert loss(out_of_sight, hiding)[0] > 0.1  # but it must be played


def test_any_alignment_will_do():
    """CTC: the symbols in their order, wherever they are."""
    b = make_batch('mirror', 'train', 4, gen(), pauses=3)
    T = b.question.shape[1] // TOKEN
    logits = torch.zeros(4, T, len(SYMBOLS) + 1)
    logits[..., -1] = 50
    for i, row in enumerate(b.wanted):
        for k, symbol in enumerate(row[row >= 0].tolist()):
            logits[i, 2 * k, -1] = 0
            logits[i, 2 * k, symbol] = 50
    def loss(logits):
        answer = Answer(None, logits, None)
        found = losses(tiny_model(), answer, Example(b), None, 'mirror', weights('w_ctc'), False)
        assert list(found) == ['w_ctc']
        return float(found['w_ctc'])

    assert loss(logits) < 0.01
    assert loss(logits.flip(1)) > 5
