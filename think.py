"""
Thinking aloud: the model hears a question, plays an answer, hears its own answer, and goes on until
the sound no longer changes. Nothing but sound is handed on.
"""
import math

import torch
import torch.nn.functional as F

from prepare import LOUDNESS, LOWEST, SAMPLE_RATE, SPACING
from transcribe import power_of

DITHER = 0.01  # noise behind what the encoder hears: it was not trained on digital silence
OUT_OF_TUNE = 25  # Hz by which a recording may be off pitch before it is tuned
TONE = 0.08    # a change of magnitude by which a tone, of amplitude 0.1 at least, has come or gone


# --- what a recording may be: out of tune ---

def hertz_off(waves, n=1024):
    """Waveforms (B, S) -> by how many hertz all of their tones are off the nearest symbols (B,):
    the mean, on a circle, of the highest peaks of windows; 0 where these do not agree"""
    windows = F.pad(waves, (0, n)).unfold(1, n, n // 2) * torch.hann_window(n, device=waves.device)
    power = power_of(windows)  # (B, windows, bins)
    lowest = int((LOWEST - SPACING) * n / SAMPLE_RATE)
    power[..., :lowest] = 0
    peak, k = power[..., :-1].max(-1)
    k = k.clamp(min=lowest)[..., None]
    left, top, right = (power.gather(-1, k + i).clamp(min=1e-20).log() for i in (-1, 0, 1))
    shift = (left - right) / (2 * (left - 2 * top + right)).clamp(max=-1e-6)
    hertz = (k + shift.clamp(-0.5, 0.5))[..., 0] * (SAMPLE_RATE / n)
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


# --- one pass ---

def with_silence(model, question):
    """Waveforms (B, S) -> (B, T * token): whole tokens, and a silent one more. In training there
    was always some silence behind the last tone, and a recording may end with it."""
    token = model.config.token
    return F.pad(question, (0, -question.shape[1] % token + token))


def reply(model, question, heard, lengths, noise=None):
    """One pass: waveforms with_silence (B, T * token), their spectrum (B, frames, 2, F) and lengths
    (B,) -> answer frames (B, frames, F) and symbol logits (B, T, n_symbols + 1). noise (T * token,)
    of deviation 1 is always the same, unless it is given."""
    if noise is None:
        generator = torch.Generator(question.device).manual_seed(0)
        noise = torch.randn(question.shape[1], generator=generator, device=question.device)
    memory = model.encode(model.hear(question + DITHER * noise))
    frames, logits = model.answer(memory, model.in_tokens(heard), lengths + model.config.token)
    return frames.float(), logits


def one_pass(model, question, heard, lengths, noise=None):
    """As in reply -> the answer's waveform (B, T * token), silent beyond each length"""
    frames, _ = reply(model, question, heard, lengths, noise)
    return played(model, frames, heard, lengths)


def played(model, frames, heard, lengths):
    """Answer frames (B, frames, F), the spectrum heard and lengths (B,) -> the waveform, silent
    beyond each length"""
    s = model.spectrum
    frames = s.squelch(frames)  # faint remains of a tone that went would be heard again
    wave = s.wave(s.exp(frames), heard)
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
    wave = one_pass(model, later, model.spectrum.stft(later), lengths + shift)
    return wave[:, shift:shift + question.shape[1]]


def vote(model, question, heard, lengths, votes):
    """As one_pass; but where two passes, one of them shifted, do not play the same, as many pass as
    `votes` says, and the sound counts that most of them play"""
    shifts = [model.config.token * k // votes for k in range(1, votes)]
    waves = [one_pass(model, question, heard, lengths)]
    if not shifts:
        return waves[0]
    middle = shifts.pop(len(shifts) // 2)
    waves.append(shifted_pass(model, question, lengths, middle))
    spectra = [model.spectrum.stft(wave) for wave in waves]
    rows = (change(model, *spectra) >= TONE).nonzero()[:, 0]
    if not len(rows):
        return waves[0]
    some = [wave[rows] for wave in waves]
    some += [shifted_pass(model, question[rows], lengths[rows], shift) for shift in shifts]
    spectra = [spectrum[rows] for spectrum in spectra]
    spectra += [model.spectrum.stft(wave) for wave in some[2:]]
    agree = [sum((change(model, a, b) < TONE).long() for b in spectra) for a in spectra]
    best = torch.stack(agree).argmax(0)
    chosen = torch.stack(some)[best, torch.arange(len(rows), device=rows.device)]
    return waves[0].index_copy(0, rows, chosen)


# --- the conversation ---

@torch.inference_mode()
def converse(model, question, lengths=None, think=1, votes=1):
    """Waveforms (B, S) and their lengths in samples -> the answers of every pass, a list of
    waveforms (B, S), silent beyond each length, and how many passes changed each example, (B,).

    The model hears its own answer as the next question, up to `think` passes in all; an example is
    done when the sound that it plays is the sound that it heard. votes: see vote."""
    n_samples = question.shape[1]
    if lengths is None:
        lengths = torch.full((len(question),), n_samples, device=question.device)
    off = hertz_off(question)
    far = off.abs() > OUT_OF_TUNE
    if far.any():  # training has heard less
        question = torch.where(far[:, None], tuned(question, off), question)
    passes = torch.zeros_like(lengths)
    answer, answers = torch.zeros_like(question), []
    question = with_silence(model, question)
    heard = model.spectrum.stft(question)
    # A recording may be faint.
    loudest = model.spectrum.magnitude(heard).amax((1, 2)).clamp(min=5e-4)
    gain = LOUDNESS / loudest
    question = question * gain[:, None]
    heard = heard * gain[:, None, None, None]

    going = torch.arange(len(question), device=question.device)  # whose sound still changes
    for _ in range(think):
        question = vote(model, question, heard, lengths[going], votes)
        answer = answer.index_copy(0, going, question[:, :n_samples])
        answers.append(answer)
        if think > 1:
            spectrum = model.spectrum.stft(question)
            changed = change(model, heard, spectrum) >= TONE
            question, heard, going = question[changed], spectrum[changed], going[changed]
            passes[going] += 1
            if not len(going):
                break
    return answers, passes
