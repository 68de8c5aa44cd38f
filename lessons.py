"""
What training teaches, and from what: an Example is a batch, with what may be generated and what is
hidden; `losses` says how far off an answer is; replay goes on from what the model has played.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from model import HOP, N_FFT
from prepare import (
    LOWEST,
    SAMPLE_RATE,
    SPACING,
    Batch,
    Drawn,
    last_change,
    slot_at,
    sounding_at,
)
from tasks import REST, SYMBOLS, TASKS, next_line
from think import CHANGE, DITHER, sound_of, to_play

ASKED_AGAIN = 8   # times, on average, that a line which gets nowhere is asked


# --- examples ---

class Hiding(NamedTuple):
    """What must be copied can only be pointed at, and training makes sure of it: in a share of its
    examples the decoder finds another question, that of its neighbour in the batch, instead of its
    own. By content it finds all of the other; by clock only from somewhere behind the last change
    on, and under noise. The pointer alone always has its own. So what is repeated cannot depend on
    what it is or on what usually follows, and what is worked out cannot come from a place where
    all of the number is known. (In mod, neighbours go on with the same divisors: its `pairs`.)"""
    neighbour: torch.Tensor  # (B,) whose question is found by content; oneself if nothing is hidden
    visible: torch.Tensor    # (B, T) where the clock finds one's own
    noise: torch.Tensor      # (B, T, D) over the neighbour's tokens


class Example(NamedTuple):
    batch: Batch
    may_generate: torch.Tensor = None  # (B, frames) bool; None: all of them
    hiding: Hiding = None              # None: nothing is hidden
    so_far: torch.Tensor = None        # (B, N) labels of what comes out so far; None: not taught
    is_last: torch.Tensor = None       # (B,) 1.0 where the answer is the last line; None: not asked
    talk: torch.Tensor = ()            # (m,) which of the Talks the last rows are


def hide_from(batch, share, n, part, config, generator, n_own=0):
    """Draw Hiding for a batch that is a part, a slice, of n examples, given the model's config. Of
    its last n_own rows nothing is hidden. Random numbers are drawn for all n, so that several
    processes draw alike."""
    device = generator.device
    S = batch.question.shape[1]
    T = S // config.token
    drawn = torch.rand(3, n, generator=generator, device=device)
    chance, spared, strength = drawn[:, part]
    # Each noise vector covers two tokens, about as long as a tone.
    size = n, -(-T // 2), config.d_model
    noise = torch.randn(size, generator=generator, device=device)[part]
    noise = 2 * strength[:, None, None] * noise
    noise = noise.repeat_interleave(2, 1)[:, :T]
    # Some of what follows the change is spared, or the border would tell where the change ends.
    behind = batch.lengths - batch.changed
    until = batch.changed + (spared.square() * behind).long()
    oneself = torch.arange(len(chance), device=device)
    hides = (chance < share) & (oneself < len(chance) - n_own)
    until = torch.where(hides, until, S)
    visible = torch.arange(T, device=device) < until[:, None] // config.token
    neighbour = torch.where(visible.all(1), oneself, oneself + batch.to_neighbour)
    return Hiding(neighbour, visible, noise)


def last_line(task, drawn, aloud):
    """Which answers are the last line of their working -> (B,), 1 or 0. What is still to be changed
    between passes, as a call of a calculator, is not."""
    after = drawn.wanted
    if TASKS[task].between:
        after = drawn.asked
    elif aloud:
        after = next_line(task, drawn.wanted)
    return (after == drawn.wanted).all(1).float()


# --- losses ---

def mean(x, over):
    """(B, n) and which of them count (B, n) -> a mean in which every example counts alike"""
    n = over.sum(1).clamp(min=1)
    return ((x * over).sum(1) / n).mean()


def cross_entropy(logits, label):
    """(B, T, classes) and (B, T) -> (B, T)"""
    return F.cross_entropy(logits.float().transpose(1, 2), label, reduction='none')


def distance(frames, wanted):
    """(B, T, F) each -> how far off each token is, L1 + L2, (B, T)"""
    off = frames - wanted
    return (off.abs() + off.square()).mean(2)


def losses(model, answer, example, weights, distance=distance):
    """A model's Answer to an Example, and the weight of each loss -> losses by the weight's name,
    those of weight 0, or of what is not taught, left out. distance may be a faster one."""
    c, batch = model.config, example.batch
    T, device = answer.logits.shape[1], answer.logits.device
    valid = torch.arange(T, device=device) * c.token < batch.lengths[:, None]  # (B, T)
    parts = {}
    if weights['w_frames']:
        frames = answer.frames.float().unflatten(1, (T, -1)).flatten(2)  # (B, T, patch * F)
        parts['w_frames'] = mean(distance(frames, model.hear(batch.answer)), valid)
    with torch.autocast(device.type, enabled=False):
        if weights['w_symbols']:
            known = valid
            if example.hiding is not None:  # what the decoder cannot see it need not name
                known = valid & example.hiding.visible
            parts['w_symbols'] = symbols_loss(c, answer.logits, batch, known)
        if weights['w_so_far'] and example.so_far is not None:
            parts['w_so_far'] = so_far_loss(c, answer.so_far, example, valid)
        if weights['w_halt'] and answer.halt is not None:
            halt = answer.halt.float()
            parts['w_halt'] = F.binary_cross_entropy_with_logits(halt, example.is_last)
    return parts


def symbols_loss(c, logits, batch, known):
    """Cross-entropy of what sounds in the middle of each token's frames"""
    interval, middle = c.token / SAMPLE_RATE, c.middle / SAMPLE_RATE
    label = sounding_at(batch.wanted, batch.rhythm, logits.shape[1], interval, middle)
    label = torch.where(label == REST, len(SYMBOLS), label)
    return mean(cross_entropy(logits, label), known)


def so_far_loss(c, logits, example, valid):
    """Cross-entropy of what the question comes to after the last symbol heard for 50 ms"""
    interval = c.token / SAMPLE_RATE
    slot = slot_at(example.batch.rhythm.start, logits.shape[1], interval, interval - 0.05)
    label = example.so_far.gather(1, slot.clamp(min=0).long())
    label = torch.where(slot < 0, -1, label)
    off = cross_entropy(logits, label.clamp(min=0))
    return mean(off, valid & (label >= 0))


# --- replay ---
#
# Once it thinks aloud, the model hears its own sound and makes its own mistakes, and must go on
# from there (DAgger: Ross, Gordon and Bagnell, 2011, arXiv:1011.0686). So some rows of each batch
# are conversations that go on from lot to lot. If the model's answer was the right line, its sound
# is the next question; if it was wrong, the same sound is asked again. A conversation that has come
# to its end makes room for one of the questions that are drawn, and so does, now and then, one that
# gets nowhere.

class Talks(NamedTuple):
    """n conversations, with sound in half precision, as it takes much room"""
    drawn: Drawn
    own: torch.Tensor       # (n, S) what the model played, and is asked next
    is_own: torch.Tensor    # (n,) whether it is; not yet, where a conversation has just begun
    played: torch.Tensor    # (n, S) what the model answered last
    is_right: torch.Tensor  # (n,) whether that was the line that is wanted


def begin(drawn, n_samples):
    """Questions that are Drawn -> Talks about them"""
    n, device = len(drawn.asked), drawn.asked.device
    silence = torch.zeros(n, n_samples, dtype=torch.half, device=device)
    none = torch.zeros(n, dtype=torch.bool, device=device)
    return Talks(drawn, silence, none, silence.clone(), none.clone())


@torch.no_grad()
def reply(model, frames, batch):
    """What the model answered in the last rows of a Batch, frames (m, T * patch, F) -> how that
    sounds (m, S), and whether it is right (m,)"""
    m = len(frames)
    rows = batch.question, batch.lengths, batch.asked, batch.wanted, batch.rhythm
    question, lengths, *rows = tree_map(lambda t: t[-m:], rows)
    magnitude = to_play(model, frames.float())
    wave = sound_of(model, magnitude, model.spectrum.stft(question), lengths)
    return wave, plays(*rows, magnitude)


def go_on(task, talks, drawn, generator):
    """Talks after all have been replied to -> the same a line later, and where one has come to its
    end, or gets nowhere, one about what is Drawn anew"""
    kept, device = talks.drawn, talks.own.device
    n, n_samples = talks.own.shape
    is_over = (kept.asked == kept.wanted).all(1)
    random = torch.rand(n, generator=generator, device=device)
    is_stuck = random < 1 / ASKED_AGAIN
    goes_on = talks.is_right & ~is_over
    stays = ~talks.is_right & ~is_stuck

    # What is asked next is what was just played, and what is wanted is the line after it.
    asked, wanted = kept.wanted, next_line(task, kept.wanted)
    changed = last_change(asked, wanted, kept.rhythm)
    # What is heard again is not recorded again, but has a little noise behind it.
    quiet = torch.zeros_like(kept.recording.octaves)
    recording = kept.recording._replace(
        octaves=torch.cat([quiet[:, :1] + DITHER, quiet[:, 1:]], 1),
        clicks=torch.zeros_like(kept.recording.clicks),
        limit=torch.full_like(kept.recording.limit, math.inf),
    )
    following = kept._replace(asked=asked, wanted=wanted, changed=changed, recording=recording)

    def choose(now, then, new):
        shape = [n] + [1] * (now.dim() - 1)
        otherwise = torch.where(stays.view(shape), now, new)
        return torch.where(goes_on.view(shape), then, otherwise)

    # A shorter window than this one left what an earlier conversation played behind it.
    at = torch.arange(n_samples, device=device)
    inside = at < kept.lengths[:, None]
    played = talks.played * inside
    own = torch.where(goes_on[:, None], played, talks.own)
    is_own = goes_on | stays & talks.is_own
    return talks._replace(drawn=tree_map(choose, kept, following, drawn), own=own, is_own=is_own)


def plays(asked, wanted, rhythm, magnitude):
    """Do magnitudes (n, frames, F) play the rows `wanted` (n, N), in a Rhythm, after those that
    were asked? -> (n,). They do if the loudest pitch in the middle of each slot is that of its
    symbol, or nothing sounds there, as is wanted."""
    middle = (rhythm.start + rhythm.length / 2) * (SAMPLE_RATE / HOP)
    middle = middle.round().long().clamp(max=magnitude.shape[1] - 1)
    in_slots = middle[..., None].expand(-1, -1, magnitude.shape[2])
    peak, k = magnitude.gather(1, in_slots).max(2)
    # A copied tone may be off pitch, as in the question.
    pitch = LOWEST + SPACING * wanted + rhythm.detune * (wanted == asked)
    hertz = k * (SAMPLE_RATE / N_FFT)
    is_near = (hertz - pitch).abs() < SPACING / 2
    is_right = torch.where(wanted == REST, peak < CHANGE, is_near & (peak > CHANGE))
    return is_right.all(1)
