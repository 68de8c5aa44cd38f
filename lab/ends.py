"""
Of a long line the ends alone are heard: what is done with it at its beginning, and what it is done
with at its end. This is code around the model: it decides what the model hears, and keeps the rest
of the line as it was. Without it every line is heard whole.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import HOP
from think import CHANGE, difference, one_pass, sounding, with_silence

AGREE = 0.3  # a difference of magnitude between two hearings that is none of tones
# How the ends are heard, until two hearings agree: tones of the beginning, tones of the end (two
# divisors, or three), and blocks by which they begin earlier, so that tones lie elsewhere in their
# tokens
HEARINGS = (
    (6, 8, 0), (9, 12, 0), (6, 8, 2), (9, 12, 2),
    (10, 8, 0), (13, 12, 0), (10, 8, 3), (13, 12, 3),
)


class Ends(NamedTuple):
    """In blocks, where the beginning of what sounds starts, where it is cut, and where its end is
    cut, (B,) each; the cuts meet or cross if all is to be heard."""
    start: torch.Tensor
    cut: torch.Tensor
    end: torch.Tensor


def ends_of(sounds, front, back, earlier=0):
    """Which blocks sound (B, blocks) -> Ends. The cuts are made in silence, behind the first
    `front` tones and before the last `back`; the start lies `earlier` blocks before its time."""
    n = sounds.shape[1]
    at = torch.arange(n, device=sounds.device)
    # How many tones have begun up to each block, and how many are still to begin?
    before = F.pad(sounds, (1, 0))[:, :n]
    begun = (sounds & ~before).cumsum(1)
    to_begin = begun[:, -1:] - begun
    first = torch.where(sounds, at, n).amin(1)
    start = (first - 2).clamp(min=0)
    is_behind = ~sounds & (begun >= front)
    is_ahead = ~sounds & (to_begin >= back)
    return Ends(
        start=(start - earlier).clamp(min=0),
        cut=torch.where(is_behind, at, n).amin(1) + 1,
        end=torch.where(is_ahead, at, -1).amax(1),
    )


def ends_joined(waves, lengths, ends):
    """Waveforms (B, S) -> beginning and end, one behind the other, (B, any), and their lengths"""
    blocks = waves.unflatten(1, (-1, HOP))
    front = (ends.cut - ends.start)[:, None]
    back = -(-lengths // HOP) - ends.end
    size = front + back[:, None]
    at = torch.arange(int(size.max()), device=waves.device)
    from_front = ends.start[:, None]
    from_back = ends.end[:, None] - front
    block = at + torch.where(at < front, from_front, from_back)
    # Shorter rows than the longest end in silence.
    block = block.clamp(max=blocks.shape[1] - 1)[..., None]
    parts = blocks.gather(1, block.expand(-1, -1, HOP))
    parts = parts * (at < size)[..., None]
    return parts.flatten(1), size[:, 0] * HOP


def hear_ends(model, waves, lengths, ends):
    """One pass of the ends of waveforms -> what is played (B, any), how much of it, in samples, may
    change (B, 1), and whether it changes there, and nowhere else (B,)"""
    parts, lengths = ends_joined(waves, lengths, ends)
    parts = with_silence(model, parts)
    spectrum = model.spectrum.stft(parts)
    wave, _ = one_pass(model, parts, spectrum, lengths)
    changes = difference(model, spectrum, model.spectrum.stft(wave)) >= CHANGE
    # A change near the cut may come of the cut itself: three quarters of the beginning may change.
    may_change = 3 * (ends.cut - ends.start) // 4
    may_change = HOP * may_change[:, None]
    is_near = torch.arange(wave.shape[1], device=wave.device) < may_change
    only_far = torch.where(is_near, parts, wave)
    changes_far = difference(model, spectrum, model.spectrum.stft(only_far)) >= CHANGE
    return wave, may_change, changes & ~changes_far


class Hearing(NamedTuple):
    """What one hearing of the ends gave"""
    front: int               # after how many tones it cut
    back: int
    counts: torch.Tensor     # (B,) for which rows it counts
    beginning: torch.Tensor  # (B, any) the sound of their beginnings then
    spectrum: torch.Tensor


def brief_pass(model, waves, lengths, may):
    """One pass of waveforms (B, S), those that `may` (B,) and are long enough -> what is played,
    (B, S), for which of them (B,) that counts, and which are long enough (B,).

    The ends are heard again and again, with other cuts, until two hearings agree on a change near
    the beginning, and on no other change. All else stays as it was."""
    sure = torch.zeros_like(may)
    sounds = sounding(waves, lengths)
    front, back, earlier = HEARINGS[-1]
    widest = ends_of(sounds, front, back)
    # Two different hearings, at least, must leave something out.
    shortest = ends_of(sounds, *HEARINGS[1])
    may = may & (shortest.end > shortest.cut)
    if not may.any():
        return waves, sure, may
    # Where do the beginnings lie that may change, (B, any), and what are they now?
    size = HOP * int((widest.cut - widest.start)[may].max() + earlier)
    size += -size % model.config.token
    begins = HOP * (widest.start - earlier).clamp(min=0)
    place = begins[:, None] + torch.arange(size, device=waves.device)
    place = place.clamp(max=waves.shape[1] - 1)
    old = waves.gather(1, place)

    answer, hearings = waves.clone(), []
    for front, back, earlier in HEARINGS:
        ends = ends_of(sounds, front, back, earlier)
        leaves_out = ends.end > ends.cut
        rows = (may & ~sure & leaves_out).nonzero()[:, 0]
        if not len(rows):
            continue
        ends = Ends(*[t[rows] for t in ends])
        wave, may_change, counts = hear_ends(model, waves[rows], lengths[rows], ends)
        # What would the beginnings be after this hearing, at their places in what was played?
        at = place[rows] - HOP * ends.start[:, None]
        is_new = (at >= 0) & (at < may_change) & counts[:, None]
        new = wave.gather(1, at.clamp(0, wave.shape[1] - 1))
        begun = old.index_copy(0, rows, torch.where(is_new, new, old[rows]))
        counts = torch.zeros_like(may).index_copy(0, rows, counts)
        now = Hearing(front, back, counts, begun, model.spectrum.stft(begun))
        # The sound of the first of two that agree is kept.
        for earlier_one in hearings:
            k = (agree(model, now, earlier_one) & ~sure).nonzero()[:, 0]
            answer[k] = answer[k].scatter(1, place[k], earlier_one.beginning[k])
            sure[k] = True
        hearings.append(now)
    return answer, sure, may


def agree(model, one, other):
    """For which rows (B,) do two Hearings agree? A divisor that is cut off by one digit is a tenth
    of what it was, and looks alike: so the cuts must lie three tones apart, and at the end, too."""
    if abs(one.front - other.front) < 3 or one.back == other.back:
        return torch.zeros_like(one.counts)
    alike = difference(model, one.spectrum, other.spectrum) < AGREE
    return one.counts & other.counts & alike
