"""
What training teaches, and from what: an Example is a batch, with what may be generated and what is
hidden; `losses` says how far off an answer is; replay goes on from what the model has played.
"""
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
    only_repeated,
    play_plainly,
    repeats_at,
    slot_at,
    sounding_at,
)
from tasks import REST, SYMBOLS, TASKS, next_line, so_far
from tasks.task import close_gaps
from think import CHANGE, DITHER, sound_of

ASKED_AGAIN = 8  # times, on average, that a line which gets nowhere is asked


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
    replayed: torch.Tensor = None      # (n,) rows that are replayed conversations; None: no row is


def new_frames(task, batch):
    """Which frames of a Batch's answers (B, frames) do not repeat the question"""
    n_frames, seconds = batch.question.shape[1] // HOP, HOP / SAMPLE_RATE
    return ~repeats_at(task, batch.asked, batch.wanted, batch.rhythm, n_frames, seconds)


def hide_from(batch, share, n, part, config, generator):
    """Draw Hiding for a batch that is a part, a slice, of n examples, given the model's config.
    Random numbers are drawn for all n, so that several processes draw alike."""
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
    until = torch.where(chance < share, until, S)
    visible = torch.arange(T, device=device) < until[:, None] // config.token
    oneself = torch.arange(len(visible), device=device)
    neighbour = torch.where(visible.all(1), oneself, oneself + batch.to_neighbour)
    return Hiding(neighbour, visible, noise)


def last_line(task, batch, aloud):
    """Which answers of a Batch are the last line of their working -> (B,), 1 or 0. What is still to
    be changed between passes, as a call of a calculator, is not."""
    after = batch.wanted
    if TASKS[task].between:
        after = batch.asked
    elif aloud:
        after = next_line(task, batch.wanted)
    return (after == batch.wanted).all(1).float()


# --- losses ---

def mean(x, over):
    """(B, n) and which of them count (B, n) -> a mean in which every example counts alike"""
    n = over.sum(1).clamp(min=1)
    return ((x * over).sum(1) / n).mean()


def cross_entropy(logits, label):
    """(B, T, classes) and (B, T) -> (B, T)"""
    return F.cross_entropy(logits.float().transpose(1, 2), label, reduction='none')


def losses(model, answer, example, is_last, task, weights, aloud):
    """A model's Answer to an Example, and the weight of each loss -> losses by the weight's name,
    those of weight 0 left out. aloud: the batch holds lines of working; is_last (B,): 1 where the
    answer is the last of them."""
    c, batch = model.config, example.batch
    T, device = answer.logits.shape[1], answer.logits.device
    valid = torch.arange(T, device=device) * c.token < batch.lengths[:, None]  # (B, T)
    parts = {}
    if weights['w_frames']:
        wanted = model.hear(batch.answer).unflatten(2, (c.patch, -1))
        off = answer.frames.float().unflatten(1, (-1, c.patch)) - wanted  # (B, T, patch, F)
        off = off.abs() + off.square()
        parts['w_frames'] = mean(off.mean((2, 3)), valid)
    with torch.autocast(device.type, enabled=False):
        if weights['w_symbols']:
            known = valid
            if example.hiding is not None:  # what the decoder cannot see it need not name
                known = valid & example.hiding.visible
            parts['w_symbols'] = symbols_loss(c, answer.logits, batch, known)
        if weights['w_ctc']:
            parts['w_ctc'] = ctc_loss(answer.logits, batch.wanted, valid)
        teaches = TASKS[task].so_far and (TASKS[task].so_far_aloud or not aloud)
        if weights['w_so_far'] and teaches:
            parts['w_so_far'] = so_far_loss(c, answer.so_far, batch, valid, task)
        if weights['w_halt'] and answer.halt is not None:
            halt = answer.halt.float()
            parts['w_halt'] = F.binary_cross_entropy_with_logits(halt, is_last)
    return parts


def symbols_loss(c, logits, batch, known):
    """Cross-entropy of what sounds in the middle of each token's frames"""
    interval, middle = c.token / SAMPLE_RATE, c.middle / SAMPLE_RATE
    label = sounding_at(batch.wanted, batch.rhythm, logits.shape[1], interval, middle)
    label = torch.where(label == REST, len(SYMBOLS), label)
    return mean(cross_entropy(logits, label), known)


def ctc_loss(logits, wanted, valid):
    """Of all symbols, of any alignment (Graves et al., 2006)"""
    n_symbols = (wanted != REST).sum(1)
    wanted = close_gaps(wanted, wanted.shape[1]).clamp(min=0)
    blank = len(SYMBOLS)
    scores = logits.float().log_softmax(2).transpose(0, 1)  # (T, B, symbols and the blank)
    return F.ctc_loss(scores, wanted, valid.sum(1), n_symbols, blank, zero_infinity=True)


def so_far_loss(c, logits, batch, valid, task):
    """Cross-entropy of what the question comes to after the last symbol heard for 50 ms"""
    interval = c.token / SAMPLE_RATE
    slot = slot_at(batch.rhythm.start, logits.shape[1], interval, interval - 0.05)
    labels = so_far(task, batch.asked)
    label = labels.gather(1, slot.clamp(min=0).long())
    label = torch.where(slot < 0, -1, label)
    off = cross_entropy(logits, label.clamp(min=0))
    return mean(off, valid & (label >= 0))


# --- replay ---
#
# Once it thinks aloud, the model hears its own sound and makes its own mistakes, and must go on
# from there (DAgger: Ross, Gordon and Bagnell, 2011, arXiv:1011.0686). So some rows of each batch
# are conversations that go on from update to update. If the model's answer was the right line, its
# sound is the next question; if it was wrong, the same sound is asked again, at the next update of
# this task. A conversation that has come to its end makes room for one of the questions that are
# drawn, and so does, now and then, one that gets nowhere.

def begin(batch, n):
    """n drawn examples of a Batch -> conversations, which go_on changes in place"""
    return tree_map(lambda t: t[:n].clone(), batch)


def with_replay(task, example, kept, generator):
    """An Example with the conversations `kept`, a Batch of n rows, n even, in the place of n rows,
    which are drawn anew each time. In these nothing is hidden."""
    batch, device = example.batch, kept.question.device
    noise = torch.randn(kept.question.shape, generator=generator, device=device)
    noisy = kept._replace(question=kept.question + DITHER * noise)
    # With a row goes its neighbour, whose decoy it would be.
    oneself = torch.arange(len(batch.question), device=device)
    drawn = torch.rand(len(oneself), generator=generator, device=device)
    drawn = drawn.minimum(drawn[oneself + batch.to_neighbour])
    rows = drawn.argsort()[:len(kept.question)]

    def replaced(theirs, ours):
        return theirs.index_copy(0, rows, ours)

    may_generate, hiding = example.may_generate, example.hiding
    if may_generate is not None:
        may_generate = replaced(may_generate, new_frames(task, kept))
    if hiding is not None:
        hiding = hiding._replace(
            neighbour=replaced(hiding.neighbour, rows),
            visible=replaced(hiding.visible, torch.ones_like(hiding.visible[rows])),
        )
    batch = tree_map(replaced, batch, noisy._replace(to_neighbour=batch.to_neighbour[rows]))
    return Example(batch, may_generate, hiding, rows)


def plays(wanted, model, spectrum, batch):
    """Do sounds (n, frames, 2, F) play the rows `wanted` (n, N) in the slots of a Batch? -> (n,).
    They do if the loudest pitch in the middle of each slot is that of its symbol, or nothing sounds
    there, as is wanted."""
    r, magnitude = batch.rhythm, model.spectrum.magnitude(spectrum)
    middle = (r.start + r.length / 2) * (SAMPLE_RATE / HOP)
    middle = middle.round().long().clamp(max=magnitude.shape[1] - 1)
    in_slots = middle[..., None].expand(-1, -1, magnitude.shape[2])
    peak, k = magnitude.gather(1, in_slots).max(2)
    # A copied tone may be off pitch, as in the question.
    pitch = LOWEST + SPACING * wanted + r.detune * (wanted == batch.asked)
    hertz = k * (SAMPLE_RATE / N_FFT)
    is_near = (hertz - pitch).abs() < SPACING / 2
    is_right = torch.where(wanted == REST, peak < CHANGE, is_near & (peak > CHANGE))
    return is_right.all(1)


@torch.no_grad()
def go_on(task, model, frames, kept, fresh, generator, play):
    """Let the conversations `kept`, a Batch of n rows, go on with the frames (n, T * patch, F) that
    the model answered, or begin with the `fresh` rows that they took the place of. play is
    prepare.play, or a faster one."""
    s, n = model.spectrum, len(kept.question)
    spectrum = s.stft(kept.question)
    wave = sound_of(model, frames.float(), spectrum, kept.lengths)
    is_right = plays(kept.wanted, model, s.stft(wave), kept)
    is_over = (kept.asked == kept.wanted).all(1)
    is_stuck = torch.rand(n, generator=generator, device=wave.device) < 1 / ASKED_AGAIN

    # What is asked next is what was just played, and what is wanted is the line after it.
    asked, wanted = kept.wanted, next_line(task, kept.wanted)
    new = asked != wanted
    end = (kept.rhythm.end * SAMPLE_RATE).round().long()
    repeated = only_repeated(wave, task, asked, wanted, kept.rhythm)
    made = play_plainly(torch.where(new, wanted, REST), kept.rhythm, wave.shape[1], play)
    following = kept._replace(
        question=wave,
        answer=repeated + made,
        changed=torch.where(new, end, 0).amax(1),
        asked=asked,
        wanted=wanted,
    )

    def choose(now, then, fresh):
        shape = [n] + [1] * (now.dim() - 1)
        goes_on = (is_right & ~is_over).view(shape)
        stays = (~is_right & ~is_stuck).view(shape)
        otherwise = torch.where(stays, now, fresh)
        now.copy_(torch.where(goes_on, then, otherwise))

    tree_map(choose, kept, following, fresh)
