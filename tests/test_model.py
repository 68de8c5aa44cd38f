"""
The model: its scan, its sound, what each part can and cannot see, and how a checkpoint is read.

$ python -m pytest tests/test_model.py
"""
import math
import re
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

import model as model_module
from audio.files import read_wav, write_wav
from checkpoint import load_checkpoint
from lab.inside import pointer_weights
from lessons import Hiding
from model import (
    N_BINS,
    POINTER_WINDOW,
    WINDOW,
    JMambaConfig,
    MiniJMamba,
    local_attention,
    mixer,
    rotary,
    ssd,
)
from prepare import make_batch, play_text
from tasks import encode
from tests.helpers import TINY, gen, texts_of, tiny_model
from think import converse
from transcribe import transcribe

TOKEN = 800  # samples


# --- the scan ---

def recurrence(x, dt, A, B, C):
    """The scan as it is defined, one token after another"""
    h = x.new_zeros(len(x), *x.shape[2:], B.shape[2])
    y = []
    for t in range(x.shape[1]):
        decay = (dt[:, t] * A).exp()[..., None, None]
        h = h * decay + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        y.append((h * C[:, t, None, None]).sum(-1))
    return torch.stack(y, 1)


def in_chunks(*inputs):
    return ssd(*inputs, chunk=16)


@pytest.mark.parametrize('T', [1, 7, 16, 17, 48, 75])
def test_ssd_equals_the_recurrence(T):
    g = gen(T)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    dt = torch.rand(2, T, 4, generator=g, dtype=torch.float64)
    A = -torch.tensor([0, 0, 1.0, 30]).double()
    inputs = [normal(2, T, 4, 3), dt, A, normal(2, T, 5), normal(2, T, 5)]
    weight = normal(2, T, 4, 3)
    results = []
    for scan in (recurrence, in_chunks):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = scan(*leaves)
        results.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
    for wanted, found in zip(*results, strict=True):
        # The decays are fp32 on purpose.
        assert (wanted - found).norm() <= 2e-6 * wanted.norm() + 1e-9


# --- attention ---

@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('reach', [4, 9, WINDOW])
def test_windowed_attention_equals_masked_attention(reach, causal):
    q, k, v = torch.randn(3, 2, 3, 45, 4, generator=gen())
    valid = torch.arange(45) < torch.tensor([45, 19])[:, None]
    offset = torch.arange(45) - torch.arange(45)[:, None]
    mask = (offset.abs() <= reach) & valid[:, None, None]
    if causal:
        mask = mask & (offset <= 0)
    score = (rotary(q) @ rotary(k).transpose(-1, -2) / 2).masked_fill(~mask, -math.inf)
    wanted = score.softmax(-1).nan_to_num(0) @ v  # nothing where no key can be seen
    found = local_attention(q, k, v, valid[:, None], reach, causal)
    assert (found - wanted).abs().max() < 1e-5
    assert (found[1, :, 19 + reach:] == 0).all()


def test_the_pointer_looks_straight_across_at_first():
    model = tiny_model()
    weights = pointer_weights(model, play_text('ABCD' * 3)[None])
    assert (weights >= 0).all()
    assert (weights.sum(1) - 1).abs().max() < 1e-5
    at = torch.arange(len(weights))
    assert (weights[(at - at[:, None]).abs() > POINTER_WINDOW] == 0).all()
    assert torch.equal(weights.argmax(1), at)


def test_the_pointer_has_other_places():
    model = tiny_model(points_at='same,end,again')
    frames = torch.zeros(1, 40, 3)
    frames[0, 4:16] = 1 + torch.arange(36.0).view(12, 3)  # sounds from 4 to 15
    same, end, again = model.elsewhere(frames)[0].unbind(1)
    assert torch.equal(same, frames[0])
    assert torch.equal(end[4:16], frames[0, 4:16].flip(0))
    assert torch.equal(again[20:32], frames[0, 4:16])  # from a gap of 5 frames on
    for there in (end[:4], end[16:], again[:20], again[32:]):
        assert (there == 0).all()
    assert (model.elsewhere(torch.zeros(1, 40, 3)) == 0).all()


def test_an_echo_is_not_copied():
    s = tiny_model().spectrum
    wave = play_text('CAB')
    n = len(wave)
    decay = 10 ** (-3 * torch.arange(n) / (0.8 * 16000))  # 60 dB down after 0.8 s
    tails = decay * torch.randn(40, n, generator=gen())
    tails[:, 0] = 2 * tails.norm(dim=1)
    wet = torch.fft.irfft(torch.fft.rfft(wave, 2 * n) * torch.fft.rfft(tails, 2 * n))[:, :n]
    wet = F.pad(wet / wet.abs().amax(1, keepdim=True), (0, -n % 160))
    frames = s.log(s.magnitude(s.stft(wet)))
    copied = s.squelch(frames)
    third = slice(36, 40)  # frames in the middle of the third tone
    before, own = (round((400 + 100 * x) / 31.25) for x in encode('AB'))
    assert (frames[:, third, before] > 1).float().mean() > 0.9
    assert (copied[:, third, before] > 0).float().mean() < 0.2
    assert (copied[:, third, own] > 1).float().mean() > 0.98


# --- time ---

def test_the_encoder_does_not_hear_the_future_and_padding_does_not_matter():
    model = tiny_model()
    x = torch.randn(2, 80 * TOKEN, generator=gen())
    y = x.clone()
    y[:, 33 * TOKEN:] = torch.randn(2, 47 * TOKEN, generator=gen(1))
    a, b = model.encode(model.hear(x)), model.encode(model.hear(y))
    assert (a[:, :33] - b[:, :33]).abs().max() < 1e-6
    assert (a[:, 33] - b[:, 33]).abs().max() > 1e-3
    lengths = torch.tensor([33 * TOKEN, 20 * TOKEN - 5])
    long, short = model(x, lengths).frames, model(y[:, :40 * TOKEN], lengths).frames
    for i, n in enumerate(lengths // TOKEN):
        assert (long[i, :5 * n] - short[i, :5 * n]).abs().max() < 1e-4
    answers, _ = converse(model, x, lengths)
    assert answers[0][1, 20 * TOKEN - 5:].abs().max() == 0


# --- the spectrum ---

def test_spectrum_there_and_back():
    s = tiny_model().spectrum
    wave = make_batch('mirror', 'train', 4, gen()).answer
    spectrum = s.stft(wave)
    magnitude = s.magnitude(spectrum)
    assert (s.istft(spectrum) - wave).abs()[:, :-480].max() < 1e-3
    assert magnitude.max() == pytest.approx(float(wave.abs().max()), abs=0.02)
    assert (s.exp(s.log(magnitude)) - magnitude).abs().max() < 1e-5


def first_half(spectrum):
    n = spectrum.shape[1]
    return spectrum * (torch.arange(n) < n // 2)[:, None, None]


@pytest.mark.parametrize('heard_of, gap', [
    (torch.zeros_like, 0.1),  # where nothing like it was heard, the phase is guessed
    (first_half, 0.1),
    (torch.clone, 1e-3),
])
def test_a_phase_that_was_heard_is_played(heard_of, gap):
    s = tiny_model().spectrum
    wave = make_batch('mirror', 'train', 4, gen()).answer
    spectrum = s.stft(wave)
    magnitude = s.magnitude(spectrum)
    played = s.wave(magnitude, heard_of(spectrum))
    assert (s.magnitude(s.stft(played)) - magnitude).norm() < gap * magnitude.norm()
    assert transcribe(played) == transcribe(wave)
    if heard_of is first_half:
        cut = wave.shape[1] // 2 - 1000
        assert (played - wave)[:, :cut].abs().max() < 0.02


def test_a_faint_remainder_is_played_as_silence():
    model = tiny_model()
    torch.nn.init.zeros_(model.frames.weight)
    torch.nn.init.constant_(model.gate.bias, -20)
    for level, silent in ((0.9, True), (1.5, False)):  # log magnitudes, as all over the model
        bias = torch.zeros(model.config.patch, N_BINS)
        bias[:, 20] = level
        model.frames.bias.data = bias.flatten()
        answers, _ = converse(model, torch.rand(1, 8000, generator=gen()))
        assert bool((answers[0] == 0).all()) == silent


def test_what_is_played_again_does_not_wear_out():
    s = tiny_model().spectrum
    b = make_batch('mirror', 'val', 16, gen())
    wave, clean = b.question, b.answer
    noisy = s.log(s.magnitude(s.stft(wave)))
    kept, tone = s.squelch(noisy), noisy.amax(2) > 2
    assert (noisy > 0.01).float().mean() > 0.5
    assert (kept > 0).float().mean() < 0.15
    assert torch.equal(kept.amax(2)[tone], noisy.amax(2)[tone])
    for _ in range(20):  # as if all of it were pointed at
        heard = s.stft(wave)
        wave = s.wave(s.exp(s.squelch(s.log(s.magnitude(heard)))), heard)
        off = ((wave - clean).square().mean() / clean.square().mean()).sqrt()
        assert off < 0.14
    assert transcribe(wave) == texts_of(b.asked)


def test_noise_is_not_pointed_at():
    model = tiny_model()
    torch.nn.init.constant_(model.gate.bias, 20)  # all of it is
    b = make_batch('mirror', 'val', 16, gen())
    noise = 0.03 * torch.randn(b.question.shape, generator=gen())
    assert model(b.question, b.lengths).frames.amax() > 1
    assert (model(noise, b.lengths).frames == 0).all()


# --- what can only be pointed at ---

def other_end(x, border, generator):
    """Tokens (2, T, D) -> two copies, with other tokens behind the border, and before it"""
    other = torch.randn(x.shape, generator=generator)
    at = torch.arange(x.shape[1])[:, None]
    return torch.where(at < border, x, other), torch.where(at < border, other, x)


def test_what_is_out_of_sight_can_only_be_pointed_at():
    model, g = tiny_model(), gen()
    memory = torch.randn(2, 40, 32, generator=g)
    frames = torch.rand(2, 40, 640, generator=g)
    lengths = torch.tensor([40 * TOKEN] * 2)
    behind, before = other_end(memory, 20, g)
    quiet = torch.zeros(2, 40, 32)

    def first_answer(tokens, seen, noise=quiet):
        """Logits of the first example, which finds `seen` of its tokens; the second finds all"""
        visible = torch.arange(40) < torch.tensor([seen, 40])[:, None]
        neighbour = torch.tensor([0 if seen == 40 else 1, 1])
        hiding = Hiding(neighbour, visible, noise)
        return model.answer(tokens, frames, lengths, hiding=hiding).logits[0]

    def change(first, second, seen):
        tokens = torch.stack([first[0], second[1]])
        return (first_answer(memory, seen) - first_answer(tokens, seen)).abs().max()

    # All is in sight.
    assert change(behind, memory, 40) > 1e-3
    assert change(before, memory, 40) > 1e-3
    assert change(memory, behind, 40) < 1e-4
    assert change(memory, before, 40) < 1e-4
    # Half is: what lies behind that is the neighbour's, who is found as a whole by content.
    assert change(before, memory, 20) > 1e-3
    assert change(behind, memory, 20) < 1e-4
    assert change(memory, behind, 20) > 1e-3
    assert change(memory, before, 20) > 1e-3

    loud = torch.randn(2, 40, 32, generator=g)
    assert (first_answer(memory, 20) - first_answer(memory, 20, loud)).abs().max() > 1e-3
    assert torch.equal(first_answer(memory, 40), first_answer(memory, 40, loud))


def test_what_is_repeated_can_only_be_pointed_at():
    model, g = tiny_model(), gen()
    memory = torch.randn(2, 40, 32, generator=g)
    frames = torch.rand(2, 40, 640, generator=g)
    lengths = torch.tensor([40 * TOKEN] * 2)
    new = (torch.arange(200) < 100).expand(2, -1)

    def plays(may_generate):
        return model.answer(memory, frames, lengths, may_generate).frames[0]

    before = plays(new)
    torch.nn.init.ones_(model.frames.bias)
    moved = (plays(new) - before).abs().amax(1)
    assert (moved[:100] > 1e-3).all()
    assert (moved[100:] == 0).all()
    assert (plays(None)[100:] != plays(new)[100:]).any(1).all()


# --- the conversation ---

def test_a_tiny_model_learns_a_batch_and_its_wavs_score_the_same(tmp_path):
    model = tiny_model().train()
    b = make_batch('mirror', 'train', 4, gen())
    wanted = texts_of(b.wanted)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    s = model.spectrum
    target = s.log(s.magnitude(s.stft(b.answer)))
    right = []
    for n in (70, 0):
        played = converse(model, b.question, b.lengths)[0][0]
        heard = transcribe(played)
        right.append(sum(h == w for h, w in zip(heard, wanted, strict=True)))
        for _ in range(n):
            loss = (model(b.question, b.lengths).frames - target).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert right == [0, 4]
    for i, wave in enumerate(played):
        path = str(tmp_path / f'{i}.wav')
        write_wav(path, wave)
        assert transcribe(read_wav(path)[None]) == [wanted[i]]


@pytest.mark.parametrize('halting', [False, True])
def test_an_answer_is_what_it_says(halting):
    model = tiny_model(halting=halting, n_symbols=7, n_so_far=9)
    question, lengths = torch.rand(2, 4 * TOKEN - 300, generator=gen()), torch.tensor([2900, 800])
    answer = model(question, lengths)
    assert answer.frames.shape == (2, 20, N_BINS)
    assert answer.logits.shape == (2, 4, 8)  # of no symbol, too
    assert answer.so_far.shape == (2, 4, 9)
    assert answer.halt.shape == (2,) if halting else answer.halt is None
    # Asked in two steps, as in a conversation, it answers alike.
    frames = model.hear(question)
    memory = model.encode(frames, question)
    again = model.answer(memory, frames, lengths)
    assert torch.equal(again.frames, answer.frames)
    assert torch.equal(again.logits, answer.logits)
    assert again.so_far is None


# --- faster functions ---

def test_a_mixer_that_is_handed_in_is_asked_by_every_layer_and_answers_alike():
    """Here it is a slower one: the scan as it is defined."""
    model, asked = tiny_model(), []

    def step_by_step(*inputs):
        asked.append(inputs)
        return mixer(*inputs, scan=recurrence)

    b = make_batch('mirror', 'train', 2, gen())
    before = model(b.question, b.lengths)
    model.hand_in(mixer=step_by_step)
    after = model(b.question, b.lengths)
    assert len(asked) == model.config.n_encoder + model.config.n_decoder
    torch.testing.assert_close(after.frames, before.frames, atol=1e-4, rtol=0)
    torch.testing.assert_close(after.so_far, before.so_far, atol=1e-4, rtol=0)


@pytest.mark.parametrize('name, times', [
    ('hear', 1), ('pace', 2), ('squelch', 1), ('run_layers', 3), ('content_attention', 1),
    ('local_attention', 2), ('windowed_attention', 1),
])
def test_a_faster_function_takes_the_place_of_each_of_that_name(name, times):
    model, called = tiny_model(), []
    plain = {'hear': model.hear, 'pace': model.pace, 'squelch': model.spectrum.squelch}

    def faster(*inputs, **more):
        called.append(name)
        return (plain.get(name) or getattr(model_module, name))(*inputs, **more)

    b = make_batch('mirror', 'train', 2, gen())
    before = model(b.question, b.lengths)
    model.hand_in(**{name: faster})
    after = model(b.question, b.lengths)
    assert torch.equal(after.frames, before.frames)
    assert called == [name] * times
    # Each model has its own.
    tiny_model()(b.question, b.lengths)
    assert len(called) == times


# --- settings and checkpoints ---

@pytest.mark.parametrize('bad, says', [
    ({'head_dim': 48}, 'head_dim must divide 256, not be 48'),
    ({'n_head': 3}, 'n_head must be a positive multiple of 2, not 3'),
    ({'d_model': 36}, 'd_model must be a positive multiple of 8, not 36'),
    ({'n_decoder': 3}, 'n_decoder must be a positive multiple of 2, not 3'),
    ({'patch': 0}, 'patch must be a positive multiple of 1, not 0'),
    ({'counting': 2}, 'counting must lie between 0 and 1, not 2'),
])
def test_impossible_shapes_are_named(bad, says):
    with pytest.raises(ValueError, match='^' + says + '$'):
        JMambaConfig(**bad)


@pytest.mark.parametrize('key', ['layer', 'cross', 'self_attention', 'front'])
@pytest.mark.parametrize('name', ['nothing:Here', 'lab.baselines:Nobody', 'Nobody', 'lab:'])
def test_a_part_that_is_not_there_is_named(key, name):
    with pytest.raises(ValueError, match=f'^.*there is no {name!r}$') as e:
        MiniJMamba(JMambaConfig(**TINY, **{key: name}))
    assert '\n' not in str(e.value)


def checkpoint_of(model):
    return {'model_args': asdict(model.config), 'model': model.state_dict(), 'iter_num': 0,
            'config': {'tasks': 'mirror', 'aloud': ''}}


def missing(checkpoint):
    del checkpoint['model']['gate.bias'], checkpoint['model']['start']


def too_many(checkpoint):
    checkpoint['model']['tail.weight'] = torch.zeros(3)


def of_another_shape(checkpoint):
    checkpoint['model_args']['n_symbols'] = 28


def unknown_setting(checkpoint):
    checkpoint['model_args']['depth'] = 3


def both(checkpoint):
    missing(checkpoint)
    too_many(checkpoint)


@pytest.mark.parametrize('spoil, says', [
    (missing, '(missing: gate.bias, start)'),
    (too_many, '(too many: tail.weight)'),
    (of_another_shape, '(of another shape: logits.bias, logits.weight)'),
    (unknown_setting, '(settings that it does not know: depth)'),
    (both, '(missing: gate.bias, start; too many: tail.weight)'),
])
def test_a_checkpoint_of_another_model_says_what_differs(spoil, says, tmp_path):
    checkpoint = checkpoint_of(tiny_model())
    spoil(checkpoint)
    torch.save(checkpoint, tmp_path / 'best.pt')
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as e:
        load_checkpoint(str(tmp_path))
    message = str(e.value)
    assert says in message
    assert 'undo the change, or train into another folder' in message
    # Nobody who follows the sentence may lose a checkpoint.
    assert 'remove' not in message and 'delete' not in message
    assert '\n' not in message


def test_a_checkpoint_that_fits_is_read(tmp_path):
    model = tiny_model(patch=10)
    torch.save(checkpoint_of(model), tmp_path / 'ckpt.pt')
    found, checkpoint = load_checkpoint(str(tmp_path))
    assert found.config == JMambaConfig(**TINY, patch=10)
    assert not found.training
    for key, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], weight)
    assert checkpoint['iter_num'] == 0
