"""
What training teaches: what may be generated, what is hidden, conversations that go on from line to
line, and how far off an answer is.

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
    plays,
    reply,
)
from model import Answer, JMambaConfig
from prepare import BLOCK, draw_examples, make_batch, max_samples, play, render
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


def rows_of(tree, rows):
    """Some rows of each tensor of a Drawn or a Batch"""
    return tree_map(lambda t: t[rows], tree)


def same(one, other):
    return all(map(torch.equal, tree_leaves(one), tree_leaves(other)))


# --- what is new ---

@pytest.mark.parametrize('task, aloud', [('mirror', False), ('bracket', True), ('mod', True)])
def test_what_may_be_generated_is_what_is_new(task, aloud):
    model = tiny_model()
    b = make_batch(task, 'train', 64, gen(), aloud=aloud, pauses=6)
    may_generate = ~b.repeats
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
    may_generate = ~b.repeats
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


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_of_conversations_nothing_is_hidden(share):
    b = make_batch('mod', 'train', 40, gen(), aloud=True, pairs=True)
    whole = hidden_in(b, share)
    found = hide_from(b, share, 40, slice(None), JMambaConfig(d_model=32), gen(1), 10)
    assert found.visible[30:].all()
    assert found.neighbour[30:].tolist() == list(range(30, 40))
    assert not whole.visible[30:].all()
    assert same(rows_of(found, slice(30)), rows_of(whole, slice(30)))


# --- replay ---

@pytest.mark.parametrize('task', ['mod', 'bracket', 'logic', 'dyna', 'filtro'])
def test_lines_follow_each_other_whatever_the_pauses(task):
    q, a = draw(task, 'train', 300, gen(1), aloud=True, pauses=6)
    assert torch.equal(next_line(task, q), a)


def some_drawn(task, seed, sound='clean', n=8):
    return draw_examples(task, 'train', n, gen(seed), aloud=True, pauses=3, sound=sound)


def asked_aloud(task, talks, seed=3):
    """Talks -> the Batch that is heard"""
    n, S = talks.own.shape
    white = torch.randn(n, S, generator=gen(seed))
    return render(task, talks.drawn, S, white, gen(seed + 1), own=talks.own.float(),
                  is_own=talks.is_own)


def replied(model, talks, batch, frames):
    wave, is_right = reply(model, frames, batch)
    return talks._replace(played=wave.half(), is_right=is_right)


def talks_about(drawn):
    return begin(drawn, max_samples(drawn.asked.shape[1], 2 * BLOCK))


@pytest.mark.parametrize('task, sound', [
    ('mod', 'clean'), ('mod', 'real'), ('bracket', 'clean'), ('logic', 'real'), ('dyna', 'clean'),
])
def test_who_answers_right_hears_it_and_is_asked_the_next_line(task, sound):
    model = tiny_model()
    talks = talks_about(some_drawn(task, 0, sound))
    assert not talks.is_own.any()
    goes_on, ends = 0, 0
    for seed in range(1, 6):
        batch = asked_aloud(task, talks, seed)
        talks = replied(model, talks, batch, frames_of(model, batch.answer))
        was, wanted = texts_of(batch.asked), texts_of(batch.wanted)
        fresh = some_drawn(task, seed, sound)
        before, talks = talks, go_on(task, talks, fresh, gen(seed))
        batch = asked_aloud(task, talks)
        heard, then_wanted = transcribe(batch.question), transcribe(batch.answer)
        for i in range(8):
            if before.is_right[i] and was[i] != wanted[i]:
                assert talks.is_own[i]
                assert texts_of(batch.asked)[i] == wanted[i]
                assert torch.equal(batch.wanted[i], next_line(task, batch.asked[i:i + 1])[0])
                assert torch.equal(batch.rhythm.phase[i], before.drawn.rhythm.phase[i])
                if sound == 'clean':
                    assert heard[i] == wanted[i]
                    assert then_wanted[i] == texts_of(batch.wanted)[i]
                goes_on += 1
            elif before.is_right[i]:
                assert not talks.is_own[i]
                assert same(rows_of(talks.drawn, [i]), rows_of(fresh, [i]))
                ends += 1
            else:
                assert sound == 'real'  # where a room may drown the answer
    assert goes_on > 5
    assert ends > 2


def test_what_is_heard_again_has_a_little_noise_and_is_recorded_no_more():
    model = tiny_model()
    talks = talks_about(some_drawn('mod', 0, 'real', 40))
    batch = asked_aloud('mod', talks)
    talks = replied(model, talks, batch, frames_of(model, batch.answer))
    talks = go_on('mod', talks, some_drawn('mod', 1, 'real', 40), gen())
    own, S = talks.is_own, talks.own.shape[1]
    assert 5 < own.sum() < 40
    noise = asked_aloud('mod', talks).question - talks.own
    assert noise[own].std(1).sub(0.01).abs().max() < 0.001
    other = asked_aloud('mod', talks, 4).question - talks.own
    assert (noise != other)[own].float().mean() > 0.99  # each time another
    # It is silent where the question is over, whatever was played there before.
    at = torch.arange(S)
    late = at >= talks.drawn.lengths[:, None]
    loud = talks._replace(played=talks.played + late, is_right=torch.ones_like(own))
    after = go_on('mod', loud, some_drawn('mod', 2, 'real', 40), gen())
    assert 5 < after.is_own.sum() < 40
    assert torch.equal(after.own[after.is_own], (loud.played * ~late)[after.is_own])


@pytest.mark.parametrize('sound', ['clean', 'real'])
def test_who_answers_wrong_is_asked_the_same_sound_again(sound):
    model = tiny_model()
    talks = talks_about(some_drawn('mod', 0, sound, 64))
    batch = asked_aloud('mod', talks)
    talks = replied(model, talks, batch, frames_of(model, batch.answer))
    talks = before = go_on('mod', talks, some_drawn('mod', 1, sound, 64), gen())
    assert 10 < talks.is_own.sum() < 64
    stayed, fresh = torch.ones(64, dtype=torch.bool), some_drawn('mod', 9, sound, 64)
    for seed in range(2):
        batch = asked_aloud('mod', talks, seed)
        silence = torch.zeros_like(frames_of(model, batch.question))
        talks = replied(model, talks, batch, silence)
        assert not talks.is_right[(batch.wanted >= 0).any(1)].any()
        talks = go_on('mod', talks, fresh, gen(seed))
        same_rows = torch.ones_like(stayed)
        for now, then in zip(tree_leaves((talks.drawn, talks.own, talks.is_own)),
                             tree_leaves((before.drawn, before.own, before.is_own)), strict=True):
            same_rows &= (now == then).flatten(1).all(1) if now.dim() > 1 else now == then
        # All but those that got nowhere, which make room.
        stayed &= same_rows
        for i in (~same_rows).nonzero()[:, 0].tolist():
            assert not talks.is_own[i]
            assert same(rows_of(talks.drawn, [i]), rows_of(fresh, [i]))
    assert 64 / 2 < int(stayed.sum()) < 64
    assert (stayed & talks.is_own).sum() > 5


def test_only_the_last_rows_of_a_batch_reply():
    model = tiny_model()
    b = make_batch('mod', 'train', 10, gen(4), aloud=True)
    frames = frames_of(model, b.answer)
    wave, is_right = reply(model, frames, b)
    assert is_right.all()
    some, right = reply(model, frames[-4:], b)
    assert torch.allclose(some, wave[-4:], atol=1e-6)
    assert right.all() and len(right) == 4
    assert not reply(model, frames[:4], b)[1].any()
    assert transcribe(some) == texts_of(b.wanted[-4:])


@pytest.mark.parametrize('sound, least', [('clean', 1.0), ('real', 0.85)])
def test_an_answer_is_right_if_every_slot_plays_its_symbol(sound, least):
    model = tiny_model()
    b = make_batch('mod', 'train', 100, gen(4), aloud=True, pauses=3, sound=sound)
    heard = model.spectrum.magnitude(model.spectrum.stft(b.answer))

    def right(wanted):
        return plays(b.asked, wanted, b.rhythm, heard)

    assert right(b.wanted).float().mean() >= least
    sounds = (b.wanted != REST).long()
    slot = torch.arange(b.wanted.shape[1])
    last = slot == (sounds * slot).argmax(1, keepdim=True)
    for other in (torch.where(last, REST, b.wanted), torch.where(last, b.wanted ^ 1, b.wanted)):
        assert not right(other).any()
    first_silent = slot == (sounds == 0).long().argmax(1, keepdim=True)
    more = torch.where(first_silent & (sounds == 0), 3, b.wanted)
    has_silence = (sounds == 0).any(1)
    assert not right(more)[has_silence].any()


# --- losses ---

NAMES = 'w_frames', 'w_symbols', 'w_so_far', 'w_halt'


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
    answer = right_answer(model, b, 'bracket')
    example = Example(b, so_far=so_far('bracket', b.asked), is_last=last_line('bracket', b, True))
    asked = weights('w_frames', 'w_symbols', 'w_so_far', 'w_halt')
    found = losses(model, answer, example, asked)
    assert set(found) == {key for key in asked if asked[key]}
    assert max(found.values()) < 0.02, found
    for name, wrong in (
        ('w_frames', answer._replace(frames=answer.frames + 1)),
        ('w_symbols', answer._replace(logits=answer.logits.roll(1, 2))),
        ('w_so_far', answer._replace(so_far=answer.so_far.roll(1, 2))),
        ('w_halt', answer._replace(halt=-answer.halt)),
    ):
        found = losses(model, wrong, example, asked)
        assert [key for key, x in found.items() if x > 0.5] == [name], found


def test_what_is_not_taught_is_no_loss():
    model = tiny_model()
    b = make_batch('bracket', 'train', 4, gen(), aloud=True)
    answer = right_answer(model, b, 'bracket')
    asked = weights('w_symbols', 'w_so_far', 'w_halt')
    labels, is_last = so_far('bracket', b.asked), last_line('bracket', b, True)
    for given, example, names in (
        (answer, Example(b, is_last=is_last), {'w_symbols', 'w_halt'}),
        (answer._replace(halt=None), Example(b, so_far=labels), {'w_symbols', 'w_so_far'}),
        (answer._replace(halt=None), Example(b), {'w_symbols'}),
    ):
        assert set(losses(model, given, example, asked)) == names


def test_the_loss_of_frames_is_absolute_and_square():
    model = tiny_model()
    b = make_batch('mirror', 'train', 4, gen())
    frames = frames_of(model, b.answer) + 0.5
    answer = Answer(frames, torch.zeros(4, frames.shape[1] // 5, 2), None)
    found = losses(model, answer, Example(b), weights('w_frames'))
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
        found = losses(model, given, Example(b, hiding=hiding), asked)
        return float(found['w_frames']), float(found['w_symbols'])

    assert max(loss(behind, None)) < 0.02
    assert loss(out_of_sight, hiding)[1] < 0.02
    assert loss(out_of_sight, None)[1] > 0.5
    assert loss(out_of_sight, hiding)[0] > 0.1  # but it must be played
