"""
Thinking aloud: the model hears a question, plays an answer, hears its own answer, and goes on until
the sound no longer changes, or until it says that this is the answer. Nothing but sound is handed
on. Functions from outside may let it hear less of a long line, or change the sound between passes.
"""
import torch
import torch.nn.functional as F

from model import HOP
from prepare import LOUDNESS, SAMPLE_RATE

CHANGE = 0.08     # a difference of magnitude by which a tone, 0.1 at least, has come or gone
DITHER = 0.01     # noise behind what the encoder hears: it was not trained on digital silence
FAINT = 0.05      # effective amplitude (RMS) under which there is silence between tones
SILENT_LEAD = 1.0  # seconds of silence in front of the first tone that are heard, at most
TRIES = 2         # how often in a row less is heard in vain, until a line is always heard whole


# --- one pass ---

def with_silence(model, question):
    """Waveforms (B, S) -> (B, T * token): whole tokens, and a silent one more, as in training there
    was always some silence behind the last tone"""
    return F.pad(model.whole_tokens(question), (0, model.config.token))


def reply(model, question, spectrum, lengths, noise=None):
    """One pass: waveforms with_silence (B, T * token), their spectrum (B, frames, 2, F) and lengths
    (B,) -> the model's Answer. noise (T * token,) of deviation 1 is always the same, unless it is
    given."""
    if noise is None:
        generator = torch.Generator(question.device).manual_seed(0)
        noise = torch.randn(question.shape[1], generator=generator, device=question.device)
    noisy = question + DITHER * noise
    memory = model.encode(model.hear(noisy), noisy)
    frames = model.in_tokens(spectrum)
    answer = model.answer(memory, frames, lengths + model.config.token)
    return answer._replace(frames=answer.frames.float())


def one_pass(model, question, spectrum, lengths, noise=None):
    """As in reply -> the answer's waveform (B, T * token), silent beyond each length, and the logit
    that this is the answer (B,), or None"""
    answer = reply(model, question, spectrum, lengths, noise)
    magnitude = to_play(model, answer.frames)
    return sound_of(model, magnitude, spectrum, lengths), answer.halt


def to_play(model, frames):
    """Answer frames (B, frames, F) -> the magnitudes that are played"""
    # Faint remains of a tone that went would be heard again.
    frames = model.spectrum.squelch(frames)
    # Without a limit a tone grows louder with each pass.
    return model.spectrum.exp(frames).clamp(max=LOUDNESS)


def sound_of(model, magnitude, spectrum, lengths):
    """Magnitudes to_play (B, frames, F), the question's spectrum, lengths (B,) -> waveforms (B, S),
    silent beyond these"""
    wave = model.spectrum.wave(magnitude, spectrum)
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


# --- silence in front ---

def sounding(waves, lengths):
    """Waveforms (B, S) and their lengths in samples (B,) -> does a tone sound in each block of HOP
    samples? (B, blocks)"""
    power = waves.unflatten(1, (-1, HOP)).square().mean(2)
    sounds = power.sqrt() > FAINT
    begins = HOP * torch.arange(sounds.shape[1], device=waves.device)
    return sounds & (begins < lengths[:, None])


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


def whole_pass(model, waves, spectrum, lengths, between):
    """One pass of waveforms (B, S), whose spectrum may be None -> what is played (B, S),
    its spectrum, or None if it was heard elsewhere in time, whether it changed anything (B,), and
    the logit that this is the answer"""
    # Some models lose digits behind a silence longer than any of training, so it is left out.
    skip = silence_before(waves, lengths, model.config.token)
    skips = bool(skip.any())
    if skips:
        waves, spectrum = moved_up(waves, skip), None
    if spectrum is None:
        spectrum = model.spectrum.stft(waves)
    wave, halt = one_pass(model, waves, spectrum, lengths - skip)
    if between:
        wave = between(wave)
    after = model.spectrum.stft(wave)
    changed = difference(model, spectrum, after) >= CHANGE
    if skips:
        wave, after = moved_up(wave, -skip), None
    return wave, after, changed, halt


# --- the conversation ---

@torch.inference_mode()
def conversation(model, question, lengths=None, think=1, between=None, halting=True, brief=None):
    """Waveforms (B, S) and their lengths in samples -> after each pass, the answers (B, S), silent
    beyond each length, and how many passes have changed each example, (B,).

    The model hears its own answer as the next question, up to `think` passes; an example is done
    when it plays the sound that it heard, or with halting, if the model can tell, when it says so.
    between: waveforms -> waveforms, called on what was played whole. brief: a pass in which less is
    heard, such as lab.ends.brief_pass. Recordings should be `prepared` first (audio/tune.py)."""
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
    tries = torch.full_like(lengths, TRIES if brief and think > 1 else 0)
    for _ in range(think):
        before, n = sound, lengths[going]
        # First less of the long lines is heard, where that has not been in vain too often.
        sure = tries[going] > 0
        if sure.any():
            sound, sure, tried = brief(model, sound, n, sure)
            tries[going] = torch.where(sure, TRIES, tries[going] - tried.long())
        changed, goes_on = sure, sure.clone()
        # All other lines are heard whole.
        rows = (~sure).nonzero()[:, 0]
        if len(rows):
            known = None if spectrum is None else spectrum[rows]
            wave, spectrum, changed[rows], halt = whole_pass(
                model, before[rows], known, n[rows], between)
            goes_on[rows] = changed[rows]
            if halting and halt is not None:
                goes_on[rows] &= halt < 0
            sound = wave if len(rows) == len(going) else sound.index_copy(0, rows, wave)
        # Examples that are done keep the answer that they had.
        passes[going[changed]] += 1
        whole = F.pad(sound, (0, n_samples - sound.shape[1]))
        answer = answer.index_copy(0, going, whole)
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
