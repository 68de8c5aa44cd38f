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

AGREE = 0.25      # a difference of magnitude between two hearings that is none of tones
BACK = 8          # tones of the end of a long line that are heard: two divisors
DITHER = 0.01     # noise behind what the encoder hears: it was not trained on digital silence
FAINT = 0.05      # effective amplitude (RMS) under which there is silence between tones
FRONT = 6         # tones of the beginning of a long line that are heard, at first
MARGIN = 0.015    # seconds by which a tone may be longer, at either end, than the scorer finds it
MORE = 1.5        # times as many tones are heard the second time
# How its ends are heard, until two hearings agree: tones of the beginning, and blocks by which they
# begin earlier, so that tones lie elsewhere in their tokens
HEARINGS = (FRONT, 0), (FRONT, 2), (FRONT + 4, 0), (FRONT + 4, 3)
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
    tones are too long, all are cut down alike, each in its middle"""
    tones = find_tones(waves)
    end = tones.start + tones.length
    gap = tones.start[1:] - end[:-1]
    clip = torch.where(tones.clip[1:] == tones.clip[:-1], tones.clip[1:], -1)
    slow = [i for i in clip.unique().tolist() if i >= 0 and gap[clip == i].median() > SLOW]
    seconds = torch.arange(waves.shape[1], device=end.device) / SAMPLE_RATE
    waves, lengths = waves.clone(), lengths.clone()
    for i in slow:
        mine = clip == i
        half = gap[mine] * (1 - SHORT_GAP / gap[mine].median()) / 2
        middle = (tones.start[1:] + end[:-1])[mine] / 2
        stays = ((seconds - middle[:, None]).abs() > half[:, None]).all(0)
        wave = waves[i, stays]
        waves[i] = F.pad(wave, (0, waves.shape[1] - len(wave)))
        lengths[i] -= (~stays).sum()
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


def shifted_pass(model, question, lengths, shift):
    """one_pass of the sound begun `shift` samples later, so that its tones lie elsewhere in their
    tokens -> the answer's waveform, begun where the question begins"""
    later = F.pad(question, (shift, model.config.token - shift))
    wave, _ = one_pass(model, later, model.spectrum.stft(later), lengths + shift)
    return wave[:, shift:shift + question.shape[1]]


def vote(model, question, heard, lengths, votes):
    """As one_pass; but where two passes, one of them shifted, do not play the same, as many pass as
    `votes` says, and the sound counts that most of them play"""
    shifts = [model.config.token * k // votes for k in range(1, votes)]
    wave, halt = one_pass(model, question, heard, lengths)
    if not shifts:
        return wave, halt
    waves = [wave]
    middle = shifts.pop(len(shifts) // 2)
    waves.append(shifted_pass(model, question, lengths, middle))
    spectra = [model.spectrum.stft(wave) for wave in waves]
    rows = (change(model, *spectra) >= TONE).nonzero()[:, 0]
    if not len(rows):
        return wave, halt
    some = [wave[rows] for wave in waves]
    some += [shifted_pass(model, question[rows], lengths[rows], shift) for shift in shifts]
    spectra = [spectrum[rows] for spectrum in spectra]
    spectra += [model.spectrum.stft(wave) for wave in some[2:]]
    agree = [sum((change(model, a, b) < TONE).long() for b in spectra) for a in spectra]
    best = torch.stack(agree).argmax(0)
    chosen = torch.stack(some)[best, torch.arange(len(rows), device=rows.device)]
    return wave.index_copy(0, rows, chosen), halt


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

def ends_of(tape, lengths, front, scale):
    """Waveforms (B, S) and their lengths in samples (B,) -> in blocks of HOP samples, where the
    beginning of what sounds starts and where it is cut, where its end is cut, and how much lies
    between the cuts, (B,) each: not over 0, if it is all heard. Cuts are made in silence, behind
    the first `front` tones and before the last BACK, or `scale` times as many."""
    sounds = tape.unflatten(1, (-1, HOP)).square().mean(2).sqrt() > FAINT
    n = sounds.shape[1]
    at = torch.arange(n, device=tape.device)
    sounds = sounds & (HOP * at < lengths[:, None])
    begun = (sounds & ~F.pad(sounds, (1, 0))[:, :n]).cumsum(1)  # tones, up to each block
    to_begin = begun[:, -1:] - begun
    first = torch.where(sounds, at, n).amin(1)
    is_behind = ~sounds & (begun >= scale * front)
    is_before = ~sounds & (to_begin >= scale * BACK)
    cut = torch.where(is_behind, at, n).amin(1) + 1
    end = torch.where(is_before, at, -1).amax(1)
    return (first - 2).clamp(min=0), cut, end, end - cut


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


def brief_pass(model, tape, lengths, votes, may, front, earlier):
    """One pass of waveforms (B, S), those that `may` (B,) and are long enough -> what is played,
    (B, S), and for which of them (B,) that counts. front, earlier: one of HEARINGS.

    The ends are heard twice, the second time more of them. What is played counts if it changes the
    same both times, near the beginning, and nothing else. All else stays as it was."""
    s, sure = model.spectrum, torch.zeros_like(may)
    if not may.any():
        return tape, sure
    ends = [ends_of(tape, lengths, front, scale) for scale in (1, MORE)]
    rows = (may & (ends[1][3] > 0)).nonzero()[:, 0]
    if not len(rows):
        return tape, sure
    ends = [((start - earlier).clamp(min=0), *rest) for start, *rest in ends]
    start, cut = (x[rows] for x in ends[0][:2])
    may_change = HOP * (3 * (cut - start) // 4)  # samples
    longest = int(may_change.max())
    longest += -longest % model.config.token
    counts, played = True, []
    for *where, _ in ends:
        parts, n = joined(tape[rows], lengths[rows], *[x[rows] for x in where])
        parts = with_silence(model, parts)
        heard = s.stft(parts)
        wave, _ = vote(model, parts, heard, n, votes)
        first = torch.arange(wave.shape[1], device=wave.device) < may_change[:, None]
        elsewhere = s.stft(torch.where(first, parts, wave))
        counts &= change(model, heard, s.stft(wave)) >= TONE
        counts &= change(model, heard, elsewhere) < TONE
        played.append(F.pad(wave * first, (0, longest))[:, :longest])
    counts &= change(model, *[s.stft(x) for x in played]) < AGREE
    tape = tape.clone()
    sure[rows] = counts
    for k in counts.nonzero()[:, 0].tolist():
        at, n = HOP * int(start[k]), int(may_change[k])
        tape[rows[k], at:at + n] = played[0][k, :n]
    return tape, sure


# --- the conversation ---

@torch.inference_mode()
def conversation(model, question, lengths=None, think=1, votes=1, halting=True, brief=True):
    """Waveforms (B, S) and their lengths in samples -> after each pass, the answers (B, S), silent
    beyond each length, and how many passes have changed each example, (B,).

    The model hears its own answer as the next question, up to `think` passes in all; an example is
    done when the sound that it plays is the sound that it heard, or with halting, if the model can
    tell, when it says so. votes: see vote. brief: of long lines the ends are heard, see brief_pass.
    """
    n_samples = question.shape[1]
    if lengths is None:
        lengths = torch.full((len(question),), n_samples, device=question.device)
    off = hertz_off(question)
    far = off.abs() > OUT_OF_TUNE
    if far.any():  # training has heard less
        question = torch.where(far[:, None], tuned(question, off), question)
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
        before, n = question, lengths[going]
        in_vain = tries[going] > 0
        if in_vain.any():
            in_vain &= ends_of(question, n, FRONT, MORE)[3] > 0
        sure = torch.zeros_like(in_vain)
        for hearing in HEARINGS:
            question, now = brief_pass(model, question, n, votes, in_vain, *hearing)
            sure, in_vain = sure | now, in_vain & ~now
        tries[going[in_vain]] -= 1
        tries[going[sure]] = TRIES
        changed, goes_on = sure, sure.clone()
        rows = (~sure).nonzero()[:, 0]
        if len(rows):
            heard = model.spectrum.stft(before[rows]) if heard is None else heard[rows]
            wave, halt = vote(model, before[rows], heard, n[rows], votes)
            if model.tool:
                wave = called(model.tool, wave)
            spectrum = model.spectrum.stft(wave)
            changed[rows] = change(model, heard, spectrum) >= TONE
            goes_on[rows] = changed[rows]
            if halting and halt is not None:
                goes_on[rows] &= halt < 0
            question = wave if len(rows) == len(going) else question.index_copy(0, rows, wave)
        passes[going[changed]] += 1
        played = F.pad(question, (0, n_samples - question.shape[1]))
        answer = answer.index_copy(0, going, played)
        yield answer, passes
        # What was just played need not be analysed again.
        heard = spectrum[goes_on] if len(rows) == len(going) else None
        question, going = question[goes_on], going[goes_on]
        if think == 1 or not len(going):
            break


def converse(*question, **settings):
    """As conversation -> the answers of every pass, a list, and how many passes changed each"""
    answers, passes = zip(*conversation(*question, **settings), strict=True)
    return list(answers), passes[-1]
