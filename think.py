"""
Thinking aloud: the model hears a question, plays an answer, hears its own answer, and goes on until
the sound no longer changes. Nothing but sound is handed on.
"""
import torch
import torch.nn.functional as F

from model import HOP
from prepare import LOUDNESS

DITHER = 0.01  # noise behind what the encoder hears: it was not trained on digital silence
TONE = 0.08    # a change of magnitude by which a tone, of amplitude 0.1 at least, has come or gone


def reply(model, question, lengths, noise=None):
    """One pass: waveforms (B, S), their lengths (B,) -> the spectrum heard (B, frames, 2, F),
    answer frames (B, frames, F) and symbol logits (B, T, n_symbols + 1), T being whole tokens and
    one more. noise (T * token,) of deviation 1 is always the same, unless it is given."""
    token = model.config.token
    # The token more is silent: in training there was always some silence behind the last tone, and
    # a recording may end with it.
    question = F.pad(question, (0, -question.shape[1] % token + token))
    heard = model.spectrum.stft(question)
    if noise is None:
        generator = torch.Generator(question.device).manual_seed(0)
        noise = torch.randn(question.shape[1], generator=generator, device=question.device)
    memory = model.encode(model.hear(question + DITHER * noise))
    frames, logits = model.answer(memory, model.in_tokens(heard), lengths + token)
    return heard, frames.float(), logits


def one_pass(model, question, lengths, noise=None):
    """As in reply -> the spectrum heard (B, frames, 2, F) and the answer's waveform (B, T * token),
    silent beyond each length"""
    s = model.spectrum
    heard, frames, _ = reply(model, question, lengths, noise)
    frames = s.squelch(frames)  # faint remains of a tone that went would be heard again
    wave = s.wave(s.exp(frames), heard)
    at = torch.arange(wave.shape[1], device=wave.device)
    return heard, wave * (at < lengths[:, None])


def change(model, heard, wave):
    """The spectrum heard (B, frames, 2, F), the waveform played (B, S) -> the largest difference
    between the mean magnitudes in any token, (B,)"""
    s = model.spectrum

    def loudness(spectrum):
        """(B, frames, 2, F) -> (B, T, F)"""
        return s.magnitude(spectrum).unflatten(1, (-1, model.config.patch)).mean(2)

    return (loudness(heard) - loudness(s.stft(wave))).abs().amax((1, 2))


@torch.inference_mode()
def converse(model, question, lengths=None, think=1):
    """Waveforms (B, S) and their lengths in samples -> the answers of every pass, a list of
    waveforms (B, S), silent beyond each length, and how many passes changed each example, (B,).

    The model hears its own answer as the next question, up to `think` passes in all; an example is
    done when the sound that it plays is the sound that it heard."""
    s, n_samples = model.spectrum, question.shape[1]
    if lengths is None:
        lengths = torch.full((len(question),), n_samples, device=question.device)
    going = torch.arange(len(question), device=question.device)  # whose sound still changes
    passes = torch.zeros_like(lengths)
    answers = []
    # A recording may be faint.
    heard = s.stft(F.pad(question, (0, -n_samples % HOP)))
    loudest = s.magnitude(heard).amax((1, 2)).clamp(min=5e-4)
    question = question * (LOUDNESS / loudest)[:, None]

    for _ in range(think):
        heard, wave = one_pass(model, question[going], lengths[going])
        question = question.index_copy(0, going, wave[:, :n_samples])
        answers.append(question)
        if think > 1:
            going = going[change(model, heard, wave) >= TONE]
            passes[going] += 1
            if not len(going):
                break
    return answers, passes
