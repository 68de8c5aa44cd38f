"""
Conversations that go on from update to update in training.

$ python -m pytest tests/test_replay.py
"""
import pytest
import torch
from torch.utils._pytree import tree_leaves

from prepare import make_batch
from replay import begin, go_on, plays, with_replay
from tasks import REST, TASKS, decode, draw, next_line
from tests.helpers import TRAIN, gen, run_here, texts_of, tiny_model
from tests.test_train import checkpoint_in
from transcribe import transcribe


@pytest.mark.parametrize('task', ['mod', 'bracket', 'logic', 'dyna', 'filtro'])
def test_lines_follow_each_other_whatever_the_pauses(task):
    q, a = draw(task, 'train', 300, gen(1), aloud=True, pauses=6)
    assert torch.equal(next_line(task, q), a)


@pytest.mark.parametrize('task, sound', [('mod', 'clean'), ('mod', 'real'), ('bracket', 'clean'),
                                         ('logic', 'real'), ('dyna', 'clean')])
def test_who_answers_right_hears_it_and_is_asked_the_next_line(task, sound):
    model, generator = tiny_model(), gen(2)

    def drawn(seed):
        return make_batch(task, 'train', 16, gen(seed), aloud=True, pauses=3, sound=sound)

    kept = begin(drawn(0), 8)
    was = texts_of(kept.asked)
    goes_on, ends = 0, 0
    for seed in range(1, 6):
        wanted = texts_of(kept.wanted)
        fresh = drawn(seed)
        frames = model.hear(kept.answer).unflatten(2, (5, -1)).flatten(1, 2)
        go_on(task, model, frames, kept, fresh, generator)
        now, new = texts_of(kept.asked), texts_of(fresh.asked)
        for i in range(8):
            if was[i] == wanted[i]:
                assert now[i] == new[i]
                ends += 1
            elif now[i] == wanted[i]:
                if sound == 'clean':
                    assert transcribe(kept.question[i:i + 1]) == [now[i]]
                    assert transcribe(kept.answer[i:i + 1]) == [decode(kept.wanted[i])]
                goes_on += 1
        was = now
    assert goes_on > 5 and ends > 2


@pytest.mark.parametrize('sound, least', [('clean', 1.0), ('real', 0.85)])
def test_an_answer_is_right_if_every_slot_plays_its_symbol(sound, least):
    model = tiny_model()
    b = make_batch('mod', 'train', 100, gen(4), aloud=True, pauses=3, sound=sound)
    heard = model.spectrum.stft(b.answer)
    assert plays(b.wanted, model, heard, b).float().mean() >= least
    sounds = (b.wanted != REST).long()
    slot = torch.arange(b.wanted.shape[1])
    some = slot == (sounds * slot).argmax(1, keepdim=True)  # the last tone
    for other in (torch.where(some, REST, b.wanted), torch.where(some, b.wanted ^ 1, b.wanted)):
        assert not plays(other, model, heard, b).any()
    first_silent = slot == (sounds == 0).long().argmax(1, keepdim=True)
    more = torch.where(first_silent & (sounds == 0), 3, b.wanted)
    has_silence = (sounds == 0).any(1)
    assert not plays(more, model, heard, b)[has_silence].any()


def test_who_answers_wrong_is_asked_the_same_sound_again():
    model, generator = tiny_model(), gen(2)
    kept = begin(make_batch('mod', 'train', 64, gen(0), aloud=True), 64)
    before = [t.clone() for t in tree_leaves(kept)]
    silence = torch.zeros(64, kept.question.shape[1] // 160, 128)
    fresh = make_batch('mod', 'train', 64, gen(1), aloud=True)
    go_on('mod', model, silence, kept, fresh, generator)
    same = torch.ones(64, dtype=torch.bool)
    for now, then in zip(tree_leaves(kept), before, strict=True):
        same &= (now == then).view(64, -1).all(1) if now.numel() else True
    assert 64 / 2 < int(same.sum()) < 64  # but for those that got nowhere


def test_they_take_the_first_places_and_hide_nothing():
    b = make_batch('mod', 'train', 8, gen(0), aloud=True)
    kept = begin(make_batch('mod', 'train', 8, gen(1), aloud=True), 4)
    frames = torch.zeros(8, b.question.shape[1] // 160, dtype=torch.bool)
    mixed, may_generate, hidden = with_replay('mod', b, frames, None, kept, gen(2))
    assert texts_of(mixed.asked) == texts_of(kept.asked) + texts_of(b.asked[4:])
    assert hidden is None
    assert may_generate[:4].any() and not may_generate[4:].any()
    assert TASKS['mod'].next_line


def test_training_with_replay(tmp_path):
    flags = [*TRAIN, '--tasks=mirror,mod,bracket', '--aloud=mod,bracket', '--hide=0.5', '--think=2',
             '--replay=0.5', '--pauses=2', '--test_samples=0', f'--out_dir={tmp_path}']
    assert run_here('train.py', *flags)[0] == 0
    assert checkpoint_in(tmp_path)['iter_num'] == 6
