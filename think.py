"""
Thinking aloud: the model hears a question, plays an answer, hears its own answer, and goes on until
the sound no longer changes, or until it says that this is the answer. Nothing but sound is handed
on. Of a long line its ends alone are heard; and between passes a tool may be called.
"""
import math

import torch
import torch.nn.functional as F

from model import HOP
from prepare import LOUDNESS, LOWEST, SAMPLE_RATE, SPACING, make_rhythm, play_plainly
from tasks import REST, decode
from transcribe import beside_bin, find_tones, power_of

AGREE = 0.3       # a difference of magnitude between two hearings that is none of tones
DITHER = 0.01     # noise behind what the encoder hears: it was not trained on digital silence
FAINT = 0.05      # effective amplitude (RMS) under which there is silence between tones
MARGIN = 0.015    # seconds by which a tone may be longer, at either end, than the scorer finds it
# How the ends of a long line are heard, until two hearings agree: tones of the beginning, tones of
# the end (two divisors, or three), and blocks by which they begin earlier, so that tones lie
# elsewhere in their tokens
HEARINGS = (
    (6, 8, 0), (9, 12, 0), (6, 8, 2), (9, 12, 2),
    (10, 8, 0), (13, 12, 0), (10, 8, 3), (13, 12, 3),
)
LEAD = 1.0        # seconds of silence in front of the first tone that are heard, at most
OUT_OF_TUNE = 25  # Hz by which a recording may be off pitch before it is tuned
SHORT_GAP = 0.1   # seconds between tones: what a slow player's gaps are cut down to
SLOW = 0.25       # seconds from which on most gaps of a recording are too long
TONE = 0.08       # a change of magnitude by which a tone, 0.1 at least, has come or gone
TRIES = 2         # how often in a row ends are heard in vain, until a line is always heard whole


# --- what a recording may be: out of tune, or slow ---

def hertz_off(waves, n=1024):
    """Waveforms (B, S) -> by how many hertz all of their tones are off the nearest symbols (B,):
    the mean, on a circle, of the highest peaks of windows; 0 where these do not agree"""
    windows = F.pad(waves, (0, n)).unfold(1, n, n // 2) * torch.hann_window(n, device=waves.device)
    power = power_of(windows)  # (B, windows, bins)
    lowest = int((LOWEST - SPACING) * n / SAMPLE_RATE)
    power[..., :lowest] = 0
    peak, k = power[..., :-1].max(-1)
    k = k.clamp(min=lowest)[..., None]
    shift = beside_bin(power.clamp(min=1e-20).log(), k).clamp(-0.5, 0.5)
    hertz = (k + shift)[..., 0] * (SAMPLE_RATE / n)
    angle = 2 * math.pi / SPACING * (hertz - LOWEST)
    weight = peak / peak.sum(1, keepdim=True).clamp(min=1e-20)
    x, y = (angle.cos() * weight).sum(1), (angle.sin() * weight).sum(1)
    agree = x.square() + y.square() > 0.5
    return torch.where(agree, SPACING / (2 * math.pi) * torch.atan2(y, x), 0)


def tuned(waves, hertz):
    """Waveforms (B, S), all of whose frequencies are lowered by so many hertz (B,)"""
    S = waves.shape[1]
    spectrum = torch.fft.fft(waves)
    spectrum[:, S // 2 + 1:] = 0  # what is left turns one way only
    spectrum[:, 1:S // 2] *= 2
    seconds = torch.arange(S, device=waves.device) / SAMPLE_RATE
    turn = torch.polar(torch.ones_like(waves), -2 * math.pi * hertz[:, None] * seconds)
    return (torch.fft.ifft(spectrum) * turn).real


def hurried(waves, lengths):
    """Waveforms (B, S) and their lengths in samples (B,) -> the same; but where most gaps between
    tones are too long, all that are long are cut down alike, each in its middle"""
    tones = find_tones(waves)
    end = tones.start + tones.length
    gap = tones.start[1:] - end[:-1]
    clip = torch.where(tones.clip[1:] == tones.clip[:-1], tones.clip[1:], -1)
    slow = [i for i in clip.unique().tolist() if i >= 0 and gap[clip == i].median() > SLOW]
    if not slow:
        return waves, lengths
    seconds = torch.arange(waves.shape[1], device=end.device) / SAMPLE_RATE
    waves, lengths = waves.clone(), lengths.clone()
    for i in slow:
        mine = clip == i
        left = gap[mine] * (SHORT_GAP / gap[mine].median())
        cut = gap[mine] - left.maximum(gap[mine].clamp(max=SHORT_GAP))
        middle = (tones.start[1:] + end[:-1])[mine] / 2
        begun, over = (torch.searchsorted(middle + x, seconds) for x in (-cut / 2, cut / 2))
        wave = waves[i, begun == over]
        waves[i] = F.pad(wave, (0, waves.shape[1] - len(wave)))
        lengths[i] = (begun == over)[:lengths[i]].sum()
    return waves[:, :int(lengths.max())] if len(slow) == len(waves) else waves, lengths


# --- one pass ---

def with_silence(model, question):
    """Waveforms (B, S) -> (B, T * token): whole tokens, and a silent one more. In training there
    was always some silence behind the last tone, and a recording may end with it."""
    token = model.config.token
    return F.pad(question, (0, -question.shape[1] % token + token))


def reply(model, question, heard, lengths, noise=None):
    """One pass: waveforms with_silence (B, T * token), their spectrum (B, frames, 2, F) and lengths
    (B,) -> answer frames (B, frames, F), symbol logits (B, T, n_symbols + 1) and, from a model that
    can tell, a logit that this is the answer (B,). noise (T * token,) of deviation 1 is always the
    same, unless it is given."""
    if noise is None:
        generator = torch.Generator(question.device).manual_seed(0)
        noise = torch.randn(question.shape[1], generator=generator, device=question.device)
    memory = model.encode(model.hear(question + DITHER * noise))
    lengths = lengths + model.config.token
    frames, logits, halt = model.answer(memory, model.in_tokens(heard), lengths)
    return frames.float(), logits, halt


def one_pass(model, question, heard, lengths, noise=None):
    """As in reply -> the answer's waveform (B, T * token), silent beyond each length, and the logit
    that this is the answer"""
    frames, _, halt = reply(model, question, heard, lengths, noise)
    return played(model, frames, heard, lengths), halt


def played(model, frames, heard, lengths):
    """Answer frames (B, frames, F), the spectrum heard and lengths (B,) -> the waveform, silent
    beyond each length"""
    s = model.spectrum
    frames = s.squelch(frames)  # faint remains of a tone that went would be heard again
    magnitude = s.exp(frames).clamp(max=LOUDNESS)  # or a tone grows louder with each pass
    wave = s.wave(magnitude, heard)
    at = torch.arange(wave.shape[1], device=wave.device)
    return wave * (at < lengths[:, None])


def change(model, heard, played):
    """Two spectra (B, frames, 2, F) -> the largest difference between the mean magnitudes in any
    token, (B,)"""
    def loudness(spectrum):
        """(B, frames, 2, F) -> (B, T, F)"""
        by_frame = model.spectrum.magnitude(spectrum)
        return by_frame.unflatten(1, (-1, model.config.patch)).mean(2)

    return (loudness(heard) - loudness(played)).abs().amax((1, 2))


# --- a tool between passes ---

def called(tool, waves):
    """Waveforms (B, S) that a model has played -> what it hears next: where a tool, text -> a row
    of symbols, is called, that is played in the place of the tones that it changes"""
    tones = find_tones(waves)
    waves = waves.clone()
    for i in range(len(waves)):
        mine = tones.clip == i
        symbol, start, length = tones.symbol[mine], tones.start[mine], tones.length[mine]
        try:
            row = torch.tensor(tool(decode(symbol)), device=waves.device)
        except ValueError:
            continue
        new = row != symbol
        begin = ((start - MARGIN).clamp(min=0) * SAMPLE_RATE).long()
        end = ((start + length + MARGIN) * SAMPLE_RATE).long()
        for k in new.nonzero()[:, 0]:
            waves[i, begin[k]:end[k]] = 0
        rhythm = make_rhythm(1, len(row), device=waves.device)
        rhythm = rhythm._replace(start=start[None].float(), length=length[None].float())
        row = torch.where(new, row, REST)
        waves[i] += play_plainly(row[None], rhythm, waves.shape[1])[0]
    return waves


# --- long lines: their ends alone are heard ---

def sounding(tape, lengths):
    """Waveforms (B, S) and their lengths in samples (B,) -> does a tone sound in each block of HOP
    samples? (B, blocks)"""
    sounds = tape.unflatten(1, (-1, HOP)).square().mean(2).sqrt() > FAINT
    at = torch.arange(sounds.shape[1], device=tape.device)
    return sounds & (HOP * at < lengths[:, None])


def ends_of(sounds, front, back):
    """Which blocks sound (B, blocks) -> in blocks, where the beginning of what sounds starts, where
    it is cut, and where its end is cut, (B,) each; the cuts meet or cross if all is to be heard.
    They are made in silence, behind the first `front` tones and before the last `back`."""
    n = sounds.shape[1]
    at = torch.arange(n, device=sounds.device)
    begun = (sounds & ~F.pad(sounds, (1, 0))[:, :n]).cumsum(1)  # tones, up to each block
    to_begin = begun[:, -1:] - begun
    first = torch.where(sounds, at, n).amin(1)
    cut = torch.where(~sounds & (begun >= front), at, n).amin(1) + 1
    end = torch.where(~sounds & (to_begin >= back), at, -1).amax(1)
    return (first - 2).clamp(min=0), cut, end


def joined(tape, lengths, start, cut, end):
    """As in ends_of -> beginning and end, one behind the other, (B, any), and their lengths"""
    front = (cut - start)[:, None]
    size = front + -(-lengths[:, None] // HOP) - end[:, None]
    at = torch.arange(int(size.max()), device=tape.device)
    block = at + torch.where(at < front, start[:, None], end[:, None] - front)
    blocks = tape.unflatten(1, (-1, HOP))
    block = block.clamp(max=blocks.shape[1] - 1)[..., None].expand(-1, -1, HOP)
    parts = blocks.gather(1, block) * (at < size)[..., None]
    return parts.flatten(1), size[:, 0] * HOP


def silent_lead(tape, lengths, token):
    """Waveforms (B, S) and their lengths -> how many samples, whole tokens, in front of the first
    tone need not be heard, (B,): what is left of a long question lies behind much silence"""
    sounds = sounding(tape, lengths)
    first = sounds.int().argmax(1) * HOP - int(LEAD * SAMPLE_RATE)
    return first.clamp(min=0) // token * token


def moved_up(waves, samples):
    """Waveforms (B, S) in which all sounds so many samples (B,) earlier, or later if negative"""
    S = waves.shape[1]
    at = torch.arange(S, device=waves.device) + samples[:, None]
    return waves.gather(1, at.clamp(0, S - 1)) * ((at >= 0) & (at < S))


def hear_ends(model, tape, lengths, start, cut, end):
    """One pass of the ends of waveforms, as in ends_of -> what is played (B, any), how much of it,
    in samples, may change (B, 1), and whether it changes there, and nowhere else (B,)"""
    parts, n = joined(tape, lengths, start, cut, end)
    parts = with_silence(model, parts)
    heard = model.spectrum.stft(parts)
    wave, _ = one_pass(model, parts, heard, n)
    may_change = HOP * (3 * (cut - start) // 4)[:, None]
    near = torch.arange(wave.shape[1], device=wave.device) < may_change
    elsewhere = model.spectrum.stft(torch.where(near, parts, wave))
    changes = change(model, heard, model.spectrum.stft(wave)) >= TONE
    return wave, may_change, changes & (change(model, heard, elsewhere) < TONE)


def brief_pass(model, tape, lengths, may):
    """One pass of waveforms (B, S), those that `may` (B,) and are long enough -> what is played,
    (B, S), for which of them (B,) that counts, and which are long enough (B,).

    The ends are heard again and again, until two hearings, whose cuts at the beginning lie three
    tones apart, and those at the end too, change the same, near the beginning, and nothing else.
    All else stays as it was."""
    sure, sounds = torch.zeros_like(may), sounding(tape, lengths)
    front, back, earlier = HEARINGS[-1]
    start, cut, _ = ends_of(sounds, front, back)
    _, least, end = ends_of(sounds, *HEARINGS[1][:2])
    may = may & (end > least)
    if not may.any():
        return tape, sure, may
    # The beginnings of the tapes, as far as they may change: where they lie (B, any)
    size = HOP * int((cut - start)[may].max() + earlier)
    size += -size % model.config.token
    at = HOP * (start - earlier).clamp(min=0)[:, None]
    beginning = at + torch.arange(size, device=tape.device)
    beginning = beginning.clamp(max=tape.shape[1] - 1)
    old = tape.gather(1, beginning)

    played, hearings = tape.clone(), []
    for front, back, earlier in HEARINGS:
        start, cut, end = ends_of(sounds, front, back)
        rows = (may & ~sure & (end > cut)).nonzero()[:, 0]
        if not len(rows):
            continue
        start, cut, end = (start[rows] - earlier).clamp(min=0), cut[rows], end[rows]
        wave, may_change, counts = hear_ends(model, tape[rows], lengths[rows], start, cut, end)
        # The beginnings as they would be
        place = beginning[rows] - HOP * start[:, None]  # in what was played
        is_new = (place >= 0) & (place < may_change) & counts[:, None]
        new = wave.gather(1, place.clamp(0, wave.shape[1] - 1))
        begun = old.index_copy(0, rows, torch.where(is_new, new, old[rows]))
        counts = torch.zeros_like(may).index_copy(0, rows, counts)
        spectrum = model.spectrum.stft(begun)
        for cuts, also, before, theirs in hearings:
            # A divisor that is cut off by one digit is a tenth of what it was, and looks alike.
            if abs(cuts[0] - front) >= 3 and cuts[1] != back:
                agree = change(model, spectrum, theirs) < AGREE
                k = (counts & also & ~sure & agree).nonzero()[:, 0]
                played[k] = played[k].scatter(1, beginning[k], before[k])
                sure[k] = True
        hearings.append(((front, back), counts, begun, spectrum))
    return played, sure, may


# --- the conversation ---

@torch.inference_mode()
def conversation(model, question, lengths=None, think=1, halting=True, brief=True, hurry=True):
    """Waveforms (B, S) and their lengths in samples -> after each pass, the answers (B, S), silent
    beyond each length, and how many passes have changed each example, (B,).

    The model hears its own answer as the next question, up to `think` passes in all; an example is
    done when the sound that it plays is the sound that it heard, or with halting, if the model can
    tell, when it says so. brief: of long lines the ends are heard, see brief_pass. hurry: a slow
    player's gaps are cut down, see hurried.
    """
    n_samples = question.shape[1]
    if lengths is None:
        lengths = torch.full((len(question),), n_samples, device=question.device)
    off = hertz_off(question)
    far = off.abs() > OUT_OF_TUNE
    if far.any():  # training has heard less
        question = torch.where(far[:, None], tuned(question, off), question)
    if hurry:
        question, lengths = hurried(question, lengths)
    passes = torch.zeros_like(lengths)
    answer = question.new_zeros(len(question), n_samples)
    question = with_silence(model, question)
    heard = model.spectrum.stft(question)
    # A recording may be faint.
    loudest = model.spectrum.magnitude(heard).amax((1, 2)).clamp(min=5e-4)
    gain = LOUDNESS / loudest
    question = question * gain[:, None]
    heard = heard * gain[:, None, None, None]

    going = torch.arange(len(question), device=question.device)  # whose sound still changes
    tries = torch.full_like(lengths, TRIES * (brief and think > 1))
    for _ in range(think):
        before, n, sure = question, lengths[going], tries[going] > 0
        if sure.any():
            question, sure, tried = brief_pass(model, question, n, sure)
            tries[going] = torch.where(sure, TRIES, tries[going] - tried.long())
        changed, goes_on = sure, sure.clone()
        rows = (~sure).nonzero()[:, 0]
        if len(rows):
            whole, n = before[rows], n[rows]
            skip = silent_lead(whole, n, model.config.token)
            skips = bool(skip.any())
            if skips:
                whole, heard = moved_up(whole, skip), None
            heard = model.spectrum.stft(whole) if heard is None else heard[rows]
            wave, halt = one_pass(model, whole, heard, n - skip)
            if model.tool:
                wave = called(model.tool, wave)
            spectrum = model.spectrum.stft(wave)
            changed[rows] = change(model, heard, spectrum) >= TONE
            goes_on[rows] = changed[rows]
            if halting and halt is not None:
                goes_on[rows] &= halt < 0
            if skips:
                wave = moved_up(wave, -skip)
            question = wave if len(rows) == len(going) else question.index_copy(0, rows, wave)
        passes[going[changed]] += 1
        played = F.pad(question, (0, n_samples - question.shape[1]))
        answer = answer.index_copy(0, going, played)
        yield answer, passes
        # What was just played need not be analysed again.
        heard = spectrum[goes_on] if len(rows) == len(going) and not skips else None
        question, going = question[goes_on], going[goes_on]
        if think == 1 or not len(going):
            break


def converse(*question, **settings):
    """As conversation -> the answers of every pass, a list, and how many passes changed each"""
    answers, passes = zip(*conversation(*question, **settings), strict=True)
    return list(answers), passes[-1]
