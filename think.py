"""
Thinking aloud: the model hears a question, plays an answer, hears its own answer, and goes on until
the sound no longer changes, or until it says that this is the answer. Nothing but sound is handed
on. Of a long line its ends alone are heard, which is this file's doing, not the model's; and
between passes a function may change the sound, as a calculator does.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import HOP
from prepare import LOUDNESS, SAMPLE_RATE

CHANGE = 0.08     # a difference of magnitude by which a tone, 0.1 at least, has come or gone
AGREE = 0.3       # a difference between two hearings that is none of tones
DITHER = 0.01     # noise behind what the encoder hears: it was not trained on digital silence
FAINT = 0.05      # effective amplitude (RMS) under which there is silence between tones
SILENT_LEAD = 1.0  # seconds of silence in front of the first tone that are heard, at most
TRIES = 2         # how often in a row ends are heard in vain, until a line is always heard whole
# How the ends of a long line are heard, until two hearings agree: tones of the beginning, tones of
# the end (two divisors, or three), and blocks by which they begin earlier, so that tones lie
# elsewhere in their tokens
HEARINGS = (
    (6, 8, 0), (9, 12, 0), (6, 8, 2), (9, 12, 2),
    (10, 8, 0), (13, 12, 0), (10, 8, 3), (13, 12, 3),
)


# --- one pass ---

def with_silence(model, question):
    """Waveforms (B, S) -> (B, T * token): whole tokens, and a silent one more. In training there
    was always some silence behind the last tone, and a recording may end with it."""
    return F.pad(model.whole_tokens(question), (0, model.config.token))


def reply(model, question, heard, lengths, noise=None):
    """One pass: waveforms with_silence (B, T * token), their spectrum (B, frames, 2, F) and lengths
    (B,) -> the model's Answer. noise (T * token,) of deviation 1 is always the same, unless it is
    given."""
    if noise is None:
        generator = torch.Generator(question.device).manual_seed(0)
        noise = torch.randn(question.shape[1], generator=generator, device=question.device)
    noisy = question + DITHER * noise
    memory = model.encode(model.hear(noisy), noisy)
    frames = model.in_tokens(heard)
    answer = model.answer(memory, frames, lengths + model.config.token)
    return answer._replace(frames=answer.frames.float())


def one_pass(model, question, heard, lengths, noise=None):
    """As in reply -> the answer's waveform (B, T * token), silent beyond each length, and the logit
    that this is the answer (B,), or None"""
    answer = reply(model, question, heard, lengths, noise)
    return sound_of(model, answer.frames, heard, lengths), answer.halt


def sound_of(model, frames, heard, lengths):
    """Answer frames (B, frames, F), the spectrum heard and lengths (B,) -> the waveform, silent
    beyond each length"""
    s = model.spectrum
    # Faint remains of a tone that went would be heard again.
    frames = s.squelch(frames)
    # Without a limit a tone grows louder with each pass.
    magnitude = s.exp(frames).clamp(max=LOUDNESS)
    wave = s.wave(magnitude, heard)
    at = torch.arange(wave.shape[1], device=wave.device)
    return wave * (at < lengths[:, None])


def difference(model, one, other):
    """Two spectra (B, frames, 2, F) -> the largest difference between the mean magnitudes in any
    token, (B,)"""
    def loudness(spectrum):
        """(B, frames, 2, F) -> (B, T, F)"""
        by_frame = model.spectrum.magnitude(spectrum)
        return by_frame.unflatten(1, (-1, model.config.patch)).mean(2)

    return (loudness(one) - loudness(other)).abs().amax((1, 2))


# --- long lines: their ends alone are heard ---

def sounding(waves, lengths):
    """Waveforms (B, S) and their lengths in samples (B,) -> does a tone sound in each block of HOP
    samples? (B, blocks)"""
    power = waves.unflatten(1, (-1, HOP)).square().mean(2)
    sounds = power.sqrt() > FAINT
    begins = HOP * torch.arange(sounds.shape[1], device=waves.device)
    return sounds & (begins < lengths[:, None])


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
    heard = model.spectrum.stft(parts)
    wave, _ = one_pass(model, parts, heard, lengths)
    changes = difference(model, heard, model.spectrum.stft(wave)) >= CHANGE
    # A change near the cut may come of the cut itself: three quarters of the beginning may change.
    may_change = 3 * (ends.cut - ends.start) // 4
    may_change = HOP * may_change[:, None]
    is_near = torch.arange(wave.shape[1], device=wave.device) < may_change
    only_far = torch.where(is_near, parts, wave)
    changes_far = difference(model, heard, model.spectrum.stft(only_far)) >= CHANGE
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
    widest = ends_of(sounds, *HEARINGS[-1])
    # Two different hearings, at least, must leave something out.
    shortest = ends_of(sounds, *HEARINGS[1])
    may = may & (shortest.end > shortest.cut)
    if not may.any():
        return waves, sure, may
    # Where do the beginnings lie that may change, (B, any), and what are they now?
    earlier = HEARINGS[-1][2]
    unshifted = ends_of(sounds, *HEARINGS[-1][:2])
    size = HOP * int((widest.cut - unshifted.start)[may].max() + earlier)
    size += -size % model.config.token
    place = HOP * widest.start[:, None] + torch.arange(size, device=waves.device)
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


# --- whole lines ---

def silence_before(waves, lengths, token):
    """Waveforms (B, S) and their lengths -> how many samples, whole tokens, in front of the first
    tone need not be heard, (B,): what is left of a long question lies behind much silence"""
    sounds = sounding(waves, lengths)
    first = HOP * sounds.int().argmax(1)
    silent = first - int(SILENT_LEAD * SAMPLE_RATE)
    return silent.clamp(min=0) // token * token


def moved_up(waves, samples):
    """Waveforms (B, S) in which all sounds so many samples (B,) earlier, or later if negative"""
    S = waves.shape[1]
    at = torch.arange(S, device=waves.device) + samples[:, None]
    inside = (at >= 0) & (at < S)
    return waves.gather(1, at.clamp(0, S - 1)) * inside


def whole_pass(model, waves, heard, lengths, between):
    """One pass of waveforms (B, S), whose spectrum `heard` may be None -> what is played (B, S),
    its spectrum, or None if it was heard elsewhere in time, whether it changed anything (B,), and
    the logit that this is the answer"""
    # Some models lose digits behind a silence longer than any of training, so it is left out.
    skip = silence_before(waves, lengths, model.config.token)
    skips = bool(skip.any())
    if skips:
        waves, heard = moved_up(waves, skip), None
    if heard is None:
        heard = model.spectrum.stft(waves)
    wave, halt = one_pass(model, waves, heard, lengths - skip)
    if between:
        wave = between(wave)
    spectrum = model.spectrum.stft(wave)
    changed = difference(model, heard, spectrum) >= CHANGE
    if skips:
        wave, spectrum = moved_up(wave, -skip), None
    return wave, spectrum, changed, halt


# --- the conversation ---

@torch.inference_mode()
def conversation(model, question, lengths=None, think=1, between=None, halting=True, brief=True):
    """Waveforms (B, S) and their lengths in samples -> after each pass, the answers (B, S), silent
    beyond each length, and how many passes have changed each example, (B,).

    The model hears its own answer as the next question, up to `think` passes in all; an example is
    done when the sound that it plays is the sound that it heard, or with halting, if the model can
    tell, when it says so. between: waveforms -> waveforms, called on what was played whole. brief:
    of long lines the ends are heard, see brief_pass. A recording should be `prepared` before, see
    audio/tune.py."""
    n_samples = question.shape[1]
    if lengths is None:
        lengths = torch.full_like(question[:, 0], n_samples, dtype=torch.long)
    passes = torch.zeros_like(lengths)
    answer = torch.zeros_like(question)
    sound = with_silence(model, question)
    spectrum = model.spectrum.stft(sound)
    # A recording may be faint.
    loudest = model.spectrum.magnitude(spectrum).amax((1, 2)).clamp(min=5e-4)
    gain = LOUDNESS / loudest
    sound = sound * gain[:, None]
    spectrum = spectrum * gain[:, None, None, None]

    going = torch.arange(len(question), device=question.device)  # whose sound still changes
    tries = torch.full_like(lengths, TRIES * (brief and think > 1))
    for _ in range(think):
        before, n = sound, lengths[going]
        # First the ends of long lines are heard, where that has not been in vain too often.
        sure = tries[going] > 0
        if sure.any():
            sound, sure, tried = brief_pass(model, sound, n, sure)
            tries[going] = torch.where(sure, TRIES, tries[going] - tried.long())
        changed, goes_on = sure, sure.clone()
        # All other lines are heard whole.
        rows = (~sure).nonzero()[:, 0]
        if len(rows):
            heard = None if spectrum is None else spectrum[rows]
            wave, spectrum, changed[rows], halt = whole_pass(
                model, before[rows], heard, n[rows], between)
            goes_on[rows] = changed[rows]
            if halting and halt is not None:
                goes_on[rows] &= halt < 0
            sound = wave if len(rows) == len(going) else sound.index_copy(0, rows, wave)
        # Examples that are done keep the answer that they had.
        passes[going[changed]] += 1
        played = F.pad(sound, (0, n_samples - sound.shape[1]))
        answer = answer.index_copy(0, going, played)
        yield answer, passes
        # What was just played need not be analysed again.
        all_whole = spectrum is not None and len(rows) == len(going)
        spectrum = spectrum[goes_on] if all_whole else None
        sound, going = sound[goes_on], going[goes_on]
        if think == 1 or not len(going):
            break


def converse(*question, **settings):
    """As conversation -> the answers of every pass, a list, and how many passes changed each"""
    answers, passes = zip(*conversation(*question, **settings), strict=True)
    return list(answers), passes[-1]
