"""
How questions sound: the synthesizer, batches, and what is done to them.

$ python -m pytest tests/test_sound.py
"""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

import prepare
from audio.tune import hertz_off, hurried, prepared, tuned
from exam import edit_distance
from lab.conditions import SOUNDS, as_heard
from prepare import (
    BLOCK,
    LOUDNESS,
    draw_examples,
    make_batch,
    make_rhythm,
    max_samples,
    play,
    render,
    split_batches,
)
from tasks import REST, TASKS, encode
from tests.helpers import gen, texts_of
from transcribe import transcribe


def test_the_synthesizer_plays_what_its_docstring_says():
    symbols = torch.tensor([encode('A9%'), [REST, *encode('(0')]])
    rhythm = make_rhythm(2, 3, gen())
    wanted = np.zeros((2, 6400 * 2))
    for i in range(2):
        for j in range(3):
            start, length, detune, amplitude, phase, end = (float(x[i, j]) for x in rhythm[:6])
            assert 0.09 <= length <= 0.11 and 0.045 <= end - start - length <= 0.055
            first = int(np.ceil(start * 16000))
            n = np.arange(int(length * 16000) + 1)
            t = n / 16000
            fade = np.sin(np.clip(np.minimum(t, length - t) / 0.005, 0, 1) * np.pi / 2) ** 2
            hertz = 400 + 100 * int(symbols[i, j]) + detune
            tone = amplitude * fade * np.sin(2 * np.pi * hertz * t + phase)
            if symbols[i, j] != REST:
                wanted[i, first + n] += tone
    found = play(symbols, rhythm, wanted.shape[1]).double().numpy()
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(wanted).max() > 0.5


def test_what_sounds_at_a_time():
    symbols = torch.tensor([encode('AB'), [REST, *encode('C')]])
    rhythm = make_rhythm(2, 2, gen())
    found = prepare.sounding_at(symbols, rhythm, 40, 0.01, 0.003)
    for i in range(2):
        for k in range(40):
            time, wanted = 0.003 + 0.01 * k, REST
            for j in range(2):
                if 0 <= time - float(rhythm.start[i, j]) < float(rhythm.length[i, j]):
                    wanted = int(symbols[i, j])
            assert found[i, k] == wanted


def test_splits_are_the_same_every_time_whatever_is_asked_beside():
    def questions(n, *seed):
        return torch.cat([b.question for b in split_batches('mod', 'iid', n, *seed)])

    assert torch.equal(questions(60), questions(73)[:60])
    assert not torch.equal(questions(60), questions(60, 1))


@pytest.mark.parametrize('task', TASKS)
def test_question_and_answer_of_a_batch_are_what_the_scorer_hears(task):
    b = make_batch(task, 'train', 32, gen(7))
    assert transcribe(b.question) == texts_of(b.asked)
    assert transcribe(b.answer) == texts_of(b.wanted)
    assert b.question.shape[1] % BLOCK == 0
    assert b.lengths.max() <= b.question.shape[1] <= max_samples(b.asked.shape[1])
    silent = torch.arange(b.question.shape[1]) >= b.lengths[:, None]
    assert (b.answer * silent).abs().max() == 0  # the window holds the whole answer


def test_an_answer_of_another_question_is_as_long():
    b = make_batch('mirror', 'train', 64, gen(7), shuffled=True)
    pairs = list(zip(transcribe(b.question), transcribe(b.answer), strict=True))
    assert sorted(q for q, _ in pairs) == sorted(a for _, a in pairs)
    assert sum(q == a for q, a in pairs) < 10


def test_controls_change_what_they_say():
    b = make_batch('mirror', 'train', 30, gen())
    asked = texts_of(b.asked)
    spoilt = {name: as_heard(b, name) for name in ('phase', 'noise', 'longer', 'shorter')}
    for name in ('phase', 'longer', 'shorter'):
        assert transcribe(spoilt[name].question) == asked, name
    assert (spoilt['phase'].question - b.question).abs().mean() > 0.1
    assert (spoilt['longer'].lengths > b.lengths).all()
    assert (spoilt['shorter'].lengths < b.lengths).all()
    noise = spoilt['noise'].question
    assert float(noise.square().mean()) == pytest.approx(float(b.question.square().mean()), 0.05)
    assert not set(''.join(transcribe(noise))) - {'*'}


# --- real sound ---

# The hardest that the scorer hears well enough
HEARD = [
    'clean', 'phase', 'longer', 'shorter', 'mulaw', 'square', 'sawtooth', 'piano',
    'white_-5', 'pink_-5', 'echo_0.4', 'tempo_1.6', 'tempo_0.5', 'gap_0.5', 'gap_0.015',
    'uneven_0.25', 'off_-45', 'off_45', 'each_20', 'loudness_6', 'volume_0', 'volume_-26',
    'clipped_0.1', 'telephone_3000', 'rate_48000', 'rate_8000', 'mp3_32', 'offset_0.2', 'hum_60',
    'clicks_5',
]


def test_every_kind_of_sound_is_tested():
    kinds = {name.partition('_')[0] for name in SOUNDS}
    assert kinds - {name.partition('_')[0] for name in HEARD} == {'real', 'noise'}


@pytest.mark.parametrize('sound', HEARD)
def test_the_scorer_hears_through(sound):
    b = next(split_batches('mirror', 'iid', 20))
    changed = as_heard(b, sound)
    same = torch.equal(changed.question, b.question)
    assert same == (sound in ('clean', 'volume_0', 'shorter'))
    assert changed.lengths.max() <= changed.question.shape[1]
    heard = transcribe(changed.question)
    wrong = sum(map(edit_distance, heard, texts_of(b.asked)))
    assert wrong <= 0.05 * sum(map(len, heard))


@pytest.mark.parametrize('task', ['mirror', 'mod', 'bracket'])
def test_real_sound_is_heard_in_its_window(task):
    b = make_batch(task, 'train', 80, gen(3), sound='real', pauses=4)
    assert torch.isfinite(b.question).all() and torch.isfinite(b.answer).all()
    assert b.lengths.max() <= b.question.shape[1]
    clean = make_batch(task, 'train', 80, gen(3), pauses=4)
    assert b.question.shape == clean.question.shape
    assert torch.equal(b.asked, clean.asked)
    right = [h == w for h, w in zip(transcribe(b.answer), texts_of(b.wanted), strict=True)]
    assert np.mean(right) > 0.75  # some rooms are such that the question is not heard either
    # Its tempo varies, and so does its pitch.
    length = b.rhythm.length.mean(1)
    assert length.min() < 0.07 and length.max() > 0.12
    assert b.rhythm.detune.abs().max() > 40


@pytest.mark.parametrize('task', ['mirror', 'reverse', 'twice'])
def test_nothing_of_a_room_is_repeated_in_gaps(task):
    b = make_batch(task, 'train', 100, gen(3), sound='real')
    at = torch.arange(b.answer.shape[1] // 160) * 160
    sounds = prepare.repeats_at(task, b.asked, b.wanted, b.rhythm, len(at), 0.01)
    level = b.answer.unflatten(1, (-1, 160)).abs().amax(2)
    assert (level[~sounds] == 0).all()
    assert (level[sounds] > 0.01).float().mean() > 0.9


def test_about_half_of_the_rows_are_in_rooms_whoever_that_is():
    times, n_in_rooms, together = torch.zeros(8), set(), 0
    for seed in range(150):
        drawn = draw_examples('mirror', 'train', 8, gen(seed), sound='real', high=3)
        dry = drawn.recording._replace(echoes=torch.zeros_like(drawn.recording.echoes))
        heard, direct = (render('mirror', x, BLOCK, torch.zeros(8, BLOCK), gen(seed))
                         for x in (drawn, drawn._replace(recording=dry)))
        in_rooms = (heard.question != direct.question).any(1)
        assert torch.equal(in_rooms, (heard.answer != direct.answer).any(1))
        times += in_rooms
        n_in_rooms.add(int(in_rooms.sum()))
        together += bool(in_rooms[0] == in_rooms[1])
    assert times.mean() / 150 == pytest.approx(1 / 2, abs=0.05)
    # Each row is drawn for itself, wherever it stands.
    assert 50 < times.min() and times.max() < 100
    assert {1, 2, 6, 7} <= n_in_rooms
    assert 50 < together < 100


def test_each_row_of_a_batch_has_another_for_its_neighbour():
    b = make_batch('mirror', 'train', 8, gen())
    neighbour = torch.arange(8) + b.to_neighbour
    assert torch.equal(neighbour.sort().values, torch.arange(8))
    assert torch.equal(neighbour[neighbour], torch.arange(8))
    assert b.to_neighbour.all()


# --- what is drawn, and how it is rendered ---

def rendered(task, drawn, n_samples, **more):
    """What is Drawn in a window, with the same noise and room each time"""
    white = torch.randn(len(drawn.asked), 20 * BLOCK, generator=gen(8))[:, :n_samples]
    return render(task, drawn, n_samples, white, gen(9), **more)


@pytest.mark.parametrize('sound', ['clean', 'real'])
@pytest.mark.parametrize('task', ['mod', 'reverse'])
def test_a_part_of_what_is_drawn_sounds_as_in_the_whole(task, sound):
    drawn = draw_examples(task, 'train', 8, gen(), sound=sound)
    n_samples = max_samples(drawn.asked.shape[1])
    white = torch.randn(8, n_samples, generator=gen(8))
    whole = render(task, drawn, n_samples, white, gen(9))
    half = render(task, tree_map(lambda t: t[4:], drawn), n_samples, white[4:], gen(9))
    for mine, all_rows in zip(tree_leaves(half), tree_leaves(whole), strict=True):
        assert torch.equal(mine, all_rows[4:])


@pytest.mark.parametrize('task, sound', [
    ('mirror', 'clean'), ('mod', 'clean'), ('reverse', 'clean'), ('mod', 'real'),
])
def test_a_window_shows_as_much_of_a_sound_as_it_holds(task, sound):
    drawn = draw_examples(task, 'train', 12, gen(6), sound=sound)
    # Clicks fall anywhere in a window.
    quiet = drawn.recording._replace(clicks=0 * drawn.recording.clicks)
    drawn = drawn._replace(recording=quiet)
    n_samples = max_samples(drawn.asked.shape[1])
    whole = rendered(task, drawn, n_samples)
    for other in (n_samples + 3 * BLOCK, n_samples - BLOCK, 2 * BLOCK):
        found, n = rendered(task, drawn, other), min(other, n_samples)
        assert found.question.shape == found.answer.shape == (12, other)
        assert (found.question[:, :n] - whole.question[:, :n]).abs().max() < 1e-5
        assert (found.answer[:, :n] - whole.answer[:, :n]).abs().max() < 1e-5
        assert torch.equal(found.repeats[:, :n // 160], whole.repeats[:, :n // 160])
        for now, then in zip(tree_leaves(found[3:]), tree_leaves(whole[3:]), strict=True):
            assert torch.equal(now, then)


def test_clicks_fall_into_every_window():
    drawn = draw_examples('mirror', 'train', 200, gen(6), sound='real', high=3)
    faint = drawn.recording._replace(octaves=0 * drawn.recording.octaves)
    for n_samples in (BLOCK, 5 * BLOCK):
        heard, quiet = (rendered('mirror', drawn._replace(recording=r), n_samples).question
                        for r in (faint, faint._replace(clicks=0 * faint.clicks)))
        clicks = (heard != quiet).sum(1)
        assert 10 < (clicks > 0).sum() < 60
        assert 4 <= clicks.max() <= 6


@pytest.mark.parametrize('sound', ['clean', 'real'])
def test_a_sound_of_its_own_is_heard_where_it_is_said(sound):
    drawn = draw_examples('mod', 'train', 10, gen(6), aloud=True, sound=sound)
    none = drawn.recording._replace(octaves=0 * drawn.recording.octaves,
                                    clicks=0 * drawn.recording.clicks,
                                    limit=torch.full((10, 1), math.inf))
    drawn = drawn._replace(recording=none)
    n_samples = max_samples(drawn.asked.shape[1])
    own = 0.1 * torch.randn(4, n_samples, generator=gen(1))
    is_own = torch.tensor([True, False, False, True])
    without = rendered('mod', drawn, n_samples)
    found = rendered('mod', drawn, n_samples, own=own, is_own=is_own)
    mine, others = torch.tensor([6, 9]), torch.tensor([0, 1, 2, 3, 4, 5, 7, 8])
    assert torch.equal(found.question[mine], own[is_own])
    for now, then in zip(found[:2], without[:2], strict=True):
        assert torch.equal(now[others], then[others])
    # What is repeated is one's own, too; what is new is played as before.
    repeats = prepare.repeats_at('mod', drawn.asked, drawn.wanted, drawn.rhythm,
                                 n_samples // 160, 0.01).repeat_interleave(160, 1)
    assert (found.answer[mine] - own[is_own]).abs()[repeats[mine]].max() < 1e-6
    assert torch.equal(found.answer[~repeats], without.answer[~repeats])
    assert (found.answer[mine] != 0)[~repeats[mine]].any()


def real_recording(n):
    return prepare.real_recording(prepare.Chance(n, gen(1), 'cpu'))


def test_a_room_has_the_same_delays_for_all_and_dies_away():
    recording = real_recording(100)
    room = prepare.draw_room(recording, gen(2))
    click = torch.zeros(100, 32000)
    click[:, 0] = 1
    heard = prepare.reverberate(click, room)
    direct, tail = heard[:, 0].square(), heard[:, 1:].square().sum(1)
    assert torch.allclose(direct + tail, torch.ones(100), rtol=0.1)  # as loud as the click alone
    in_room = recording.echoes[:, 0] > 0
    assert 35 < in_room.sum() < 65
    assert torch.equal(heard[~in_room], click[~in_room])
    heard, louder = heard[in_room], (tail / direct)[in_room]
    assert louder.min() < 0.1 and 4 < louder.max() <= 17
    early = heard[:, 1:4000].square().sum(1)
    late = heard[:, 16000:20000].square().sum(1)
    assert (late < early).all()


def test_some_examples_are_clipped_and_as_loud_as_before():
    limit = real_recording(700).limit
    assert 60 < torch.isfinite(limit).sum() < 140
    tones = play(torch.tensor([encode('ABCDEF')] * 700), make_rhythm(700, 6, gen()), 16000)
    heard = prepare.overdriven(tones, limit)
    whole = ~torch.isfinite(limit[:, 0])
    assert torch.equal(heard[whole], tones[whole])
    assert heard[~whole].abs().amax(1).allclose(torch.tensor(LOUDNESS))
    at_limit = (heard[~whole].abs() > 0.999 * LOUDNESS).float().mean(1)
    assert at_limit.max() > 0.4 > at_limit.min()


def test_a_tone_that_moves_keeps_its_sound():
    r = make_rhythm(3, 8, gen())
    asked = torch.randint(1, 11, (3, 8), generator=gen())
    there = prepare.answer_rhythm('reverse', asked, r)
    assert torch.equal(there.length, r.length.flip(1))
    assert torch.equal(there.detune, r.detune.flip(1))
    gap = r.end - r.start - r.length
    assert torch.allclose(there.end - there.start - there.length, gap, atol=1e-6)
    assert torch.allclose(there.start[:, 1:], there.end[:, :-1], atol=1e-6)
    assert torch.allclose(there.start[:, 0], r.start[:, 0], atol=1e-6)


def test_what_is_played_backwards_is_heard_backwards():
    b = make_batch('reverse', 'iid', 20, gen())
    assert transcribe(b.answer) == texts_of(b.wanted)


@pytest.mark.parametrize('sound, off', [('off_45', 45), ('off_-45', -45), ('clean', 0)])
def test_how_far_a_recording_is_out_of_tune(sound, off):
    [b] = split_batches('mod', 'iid', 50)
    b = as_heard(b, sound)
    found = hertz_off(b.question)
    assert (found - off).abs().max() < 4
    moved = tuned(b.question, found)
    assert hertz_off(moved).abs().max() < 2
    assert moved.square().mean() == pytest.approx(float(b.question.square().mean()), rel=0.02)
    right = sum(h == t for h, t in zip(transcribe(moved), texts_of(b.asked), strict=True))
    assert right >= 49


def test_what_has_no_pitch_is_not_out_of_tune():
    assert not hertz_off(torch.zeros(2, 16000)).any()
    assert not hertz_off(torch.randn(20, 32000, generator=gen())).any()
    every = torch.tensor([encode('ABCDEFGHIJ')])
    rhythm = make_rhythm(1, 10, gen())
    rhythm = rhythm._replace(detune=50 * (torch.arange(10.)[None] % 2))  # half here, half there
    assert not hertz_off(play(every, rhythm, 32000)).any()


@pytest.mark.parametrize('noise', ['clean', 'white_0'])
def test_the_gaps_of_a_slow_player_are_cut_down(noise):
    [b] = split_batches('mod', 'iid', 50)
    slow = as_heard(as_heard(b, 'gap_0.5'), noise)
    short, lengths = hurried(slow.question, slow.lengths)
    n = torch.tensor([len(text) for text in texts_of(b.asked)])
    assert torch.equal(lengths < slow.lengths - 4000 * (n - 1), n > 1)
    assert transcribe(short) == transcribe(slow.question) == texts_of(b.asked)
    # What lies behind its length counts for nothing.
    ends = torch.full_like(lengths, 8000)
    assert (hurried(slow.question, ends)[1] > 0).all()


def test_a_slow_player_s_short_gaps_stay():
    text = '((()))()'
    rhythm = make_rhythm(1, len(text), gen())
    start = (torch.tensor([0.03, 2, 2, 0.03, 2, 2, 2]) + 0.1).cumsum(0)
    rhythm = rhythm._replace(start=F.pad(start, (1, 0))[None], end=F.pad(start, (0, 1), value=12))
    rhythm = rhythm._replace(length=torch.full_like(rhythm.start, 0.1), end=rhythm.end[None])
    wave = play(torch.tensor([encode(text)]), rhythm, 200000)
    short, lengths = hurried(wave, torch.tensor([200000]))
    assert lengths < 60000 and transcribe(wave) == transcribe(short) == [text]


def test_what_is_prepared_is_in_tune_and_in_time():
    [b] = split_batches('mod', 'iid', 8)
    waves = torch.cat([as_heard(as_heard(b, 'gap_0.5'), sound).question
                       for sound in ('off_45', 'clean')])[:, :160000]
    S = waves.shape[1]
    tuned_only, lengths = prepared(waves, hurry=False)
    assert tuned_only.shape == waves.shape
    assert lengths.tolist() == [S] * 16
    assert hertz_off(tuned_only).abs().max() < 5
    assert torch.equal(tuned_only[8:], waves[8:])
    waves, lengths = prepared(waves)
    assert hertz_off(waves).abs().max() < 5
    assert lengths.max() < S and waves.shape[1] == lengths.max()
    clean, lengths = prepared(b.question, b.lengths)
    assert torch.equal(clean, b.question) and torch.equal(lengths, b.lengths)


def test_who_is_not_slow_is_left_alone():
    for sound in ('clean', 'tempo_0.6', 'uneven_0.25'):
        [b] = split_batches('mod', 'iid', 50)
        b = as_heard(b, sound)
        waves, lengths = hurried(b.question, b.lengths)
        assert torch.equal(waves, b.question) and torch.equal(lengths, b.lengths)
    silence, lengths = torch.zeros(2, 16000), torch.tensor([16000, 8000])
    assert torch.equal(hurried(silence, lengths)[1], lengths)
