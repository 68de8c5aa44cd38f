"""
Replay: training on what the model itself has played, not only on what is drawn. Once it thinks
aloud, it hears its own sound and makes its own mistakes, and must go on from there (DAgger: Ross,
Gordon and Bagnell, 2011, arXiv:1011.0686).

The first rows of each batch are conversations that go on from update to update. If the model's
answer was the right line, its sound is the next question; if it was wrong, the same sound is asked
again, at the next update of this task. A conversation that has come to its end makes room for one
of the questions that are drawn, and so does, now and then, one that gets nowhere.
"""
import torch
from torch.utils._pytree import tree_map

from losses import Hiding
from model import HOP, N_FFT
from prepare import LOWEST, SAMPLE_RATE, SPACING, Batch, only_repeated, play_plainly, repeats_at
from tasks import REST, next_line
from think import DITHER, TONE, played

PATIENCE = 8  # times, on average, that a line which gets nowhere is asked


def new_frames(task, batch):
    """Which frames of a Batch's answers (B, frames) do not repeat the question"""
    n_frames, seconds = batch.question.shape[1] // HOP, HOP / SAMPLE_RATE
    return ~repeats_at(task, batch.asked, batch.wanted, batch.rhythm, n_frames, seconds)


def begin(batch, n):
    """The first n of drawn examples -> conversations, which go_on changes in place"""
    return tree_map(lambda t: t[:n].clone(), batch)


def with_replay(task, batch, may_generate, hidden, kept, generator):
    """What train.py's examples gives, with the conversations `kept`, a Batch, in the place of the
    first rows. In these nothing is hidden."""
    n = len(kept.question)
    noise = torch.randn(kept.question.shape, generator=generator, device=kept.question.device)
    heard = kept._replace(question=kept.question + DITHER * noise)
    batch = tree_map(lambda ours, drawn: torch.cat([ours, drawn[n:]]), heard, batch)
    if may_generate is not None:
        may_generate = torch.cat([new_frames(task, kept), may_generate[n:]])
    if hidden is not None:
        oneself = torch.arange(n, device=hidden.neighbour.device)
        hidden = Hiding(
            neighbour=torch.cat([oneself, hidden.neighbour[n:]]),
            visible=torch.cat([torch.ones_like(hidden.visible[:n]), hidden.visible[n:]]),
            noise=hidden.noise,
        )
    return batch, may_generate, hidden


def plays(wanted, model, spectrum, batch):
    """Do sounds (n, frames, 2, F) play the rows `wanted` (n, N) in the slots of a Batch? -> (n,).
    They do if the loudest pitch in the middle of each slot is that of its symbol, or nothing sounds
    there, as is wanted."""
    r, magnitude = batch.rhythm, model.spectrum.magnitude(spectrum)
    middle = ((r.start + r.length / 2) * (SAMPLE_RATE / HOP)).round().long()
    middle = middle.clamp(max=magnitude.shape[1] - 1)[..., None]
    peak, k = magnitude.gather(1, middle.expand(-1, -1, magnitude.shape[2])).max(2)
    pitch = LOWEST + SPACING * wanted + r.detune * (wanted == batch.asked)
    is_near = (k * (SAMPLE_RATE / N_FFT) - pitch).abs() < SPACING / 2
    is_right = torch.where(wanted == REST, peak < TONE, is_near & (peak > TONE))
    return is_right.all(1)


@torch.no_grad()
def go_on(task, model, frames, kept, drawn, generator):
    """Let the conversations `kept` go on with the frames (n, T * patch, F) that the model answered,
    or begin with those drawn that they took the place of"""
    s, n = model.spectrum, len(kept.question)
    heard = s.stft(kept.question)
    wave = played(model, frames[:n].float(), heard, kept.lengths)
    right = plays(kept.wanted, model, s.stft(wave), kept)
    over = (kept.asked == kept.wanted).all(1)
    stuck = torch.rand(n, generator=generator, device=wave.device) < 1 / PATIENCE

    asked, wanted = kept.wanted, next_line(task, kept.wanted)
    new = asked != wanted
    end = (kept.rhythm.end * SAMPLE_RATE).round().long()
    repeated = only_repeated(wave, task, asked, wanted, kept.rhythm)
    made = play_plainly(torch.where(new, wanted, REST), kept.rhythm, wave.shape[1])
    following = Batch(
        question=wave,
        answer=repeated + made,
        lengths=kept.lengths,
        changed=torch.where(new, end, 0).amax(1),
        asked=asked,
        wanted=wanted,
        rhythm=kept.rhythm,
    )

    def choose(now, then, fresh):
        shape = [n] + [1] * (now.dim() - 1)
        goes_on, stays = (right & ~over).view(shape), (~right & ~stuck).view(shape)
        now.copy_(torch.where(goes_on, then, torch.where(stays, now, fresh[:n])))

    tree_map(choose, kept, following, drawn)
