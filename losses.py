"""
What the model is taught: the sound of the answer, and with less weight its symbols, whether it is
the last line of the working and, from the encoder alone, what the question comes to so far. And
what is hidden from it meanwhile.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from prepare import SAMPLE_RATE, slot_at, sounding_at
from tasks import REST, SYMBOLS, TASKS, next_line, so_far


def last_line(task, batch, aloud):
    """Which answers of a Batch are the last line of their working -> (B,), 1 or 0. A call, which a
    tool answers, is not."""
    after = next_line(task, batch.wanted) if aloud else batch.wanted
    if TASKS[task].tool:
        after = batch.asked
    return (after == batch.wanted).all(1).float()


def losses(model, frames, logits, halt, so_far_logits, batch, hidden, is_last, task, weights,
           aloud):
    """What a model answered to a batch (see model.py), perhaps with Hiding, and the weight of each
    loss -> losses by the weight's name, those of weight 0 left out. aloud: the batch holds lines of
    working; is_last (B,): 1 where the answer is the last of them."""
    c, T, device = model.config, logits.shape[1], logits.device
    interval, middle = c.token / SAMPLE_RATE, c.middle / SAMPLE_RATE  # seconds
    valid = torch.arange(T, device=device) * c.token < batch.lengths[:, None]  # (B, T)
    out = {}

    def mean(x, over):
        """Every example counts alike."""
        return ((x * over).sum(1) / over.sum(1).clamp(min=1)).mean()

    def cross_entropy(scores, label):
        return F.cross_entropy(scores.float().transpose(1, 2), label, reduction='none')

    if weights['w_frames']:
        wanted = model.hear(batch.answer).unflatten(2, (c.patch, -1))
        off = frames.float().unflatten(1, (-1, c.patch)) - wanted
        out['w_frames'] = mean((off.abs() + off.square()).mean((2, 3)), valid)
    with torch.autocast(device.type, enabled=False):
        if weights['w_symbols']:
            # What sounds in the middle of each token's frames, where the decoder can see it
            label = sounding_at(batch.wanted, batch.rhythm, T, interval, middle)
            label = torch.where(label == REST, len(SYMBOLS), label)
            known = valid if hidden is None else valid & hidden.visible
            out['w_symbols'] = mean(cross_entropy(logits, label), known)
        if weights['w_ctc']:
            silent = batch.wanted == REST
            wanted = batch.wanted.gather(1, silent.long().argsort(dim=1, stable=True))
            scores = logits.float().log_softmax(2).transpose(0, 1)  # (T, B, symbols and the blank)
            out['w_ctc'] = F.ctc_loss(scores, wanted.clamp(min=0), valid.sum(1),
                                      (~silent).sum(1), len(SYMBOLS), zero_infinity=True)
        if weights['w_so_far'] and TASKS[task].so_far and (TASKS[task].so_far_aloud or not aloud):
            # After the last symbol that has been heard for 50 ms
            slot = slot_at(batch.rhythm.start, T, interval, interval - 0.05)
            label = so_far(task, batch.asked).gather(1, slot.clamp(min=0).long())
            label = torch.where(slot < 0, -1, label)
            off = cross_entropy(so_far_logits, label.clamp(min=0))
            out['w_so_far'] = mean(off, valid & (label >= 0))
        if weights['w_halt'] and halt is not None:
            out['w_halt'] = F.binary_cross_entropy_with_logits(halt.float(), is_last)
    return out


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


def hide_from(batch, share, n, part, config, generator):
    """Draw Hiding for a batch that is a part, a slice, of n examples, given the model's config.
    Random numbers are drawn for all n, so that several processes draw alike."""
    device, T = generator.device, batch.question.shape[1] // config.token
    hidden, spared, strength = torch.rand(3, n, generator=generator, device=device)[:, part]
    # Each noise vector covers two tokens, about as long as a tone.
    size = n, -(-T // 2), config.d_model
    noise = torch.randn(size, generator=generator, device=device)[part]
    noise = (2 * strength[:, None, None] * noise).repeat_interleave(2, 1)[:, :T]
    # Some of what follows the change is spared, or the border would tell where the change ends.
    until = batch.changed + (spared.square() * (batch.lengths - batch.changed)).long()
    until = torch.where(hidden < share, until, batch.question.shape[1])
    visible = torch.arange(T, device=device) < until[:, None] // config.token
    example = torch.arange(len(visible), device=device)
    return Hiding(torch.where(visible.all(1), example, example ^ 1), visible, noise)
