"""
What a recording may be, and training has not heard: out of tune, or played by someone slow. Every
door through which recordings come in calls prepared() before the model hears them.
"""
import math

import torch
import torch.nn.functional as F

from prepare import LOWEST, SAMPLE_RATE, SPACING
from transcribe import beside_bin, find_tones, power_of

OUT_OF_TUNE = 25  # Hz by which a recording may be off pitch before it is tuned
SLOW_GAP = 0.25   # seconds from which on most gaps of a recording are too long
SHORT_GAP = 0.1   # seconds between tones: what a slow player's gaps are cut down to


def hertz_off(waves, n=1024):
    """Waveforms (B, S) -> by how many hertz all of their tones are off the nearest symbols (B,):
    the mean, on a circle, of the highest peaks of windows of n samples; 0 where they disagree"""
    windows = F.pad(waves, (0, n)).unfold(1, n, n // 2)
    power = power_of(windows * torch.hann_window(n, device=waves.device))  # (B, windows, bins)
    lowest = int((LOWEST - SPACING) * n / SAMPLE_RATE)
    power[..., :lowest] = 0
    peak, k = power[..., :-1].max(-1)
    k = k.clamp(min=lowest)[..., None]
    shift = beside_bin(power.clamp(min=1e-20).log(), k).clamp(-0.5, 0.5)
    hertz = (k + shift)[..., 0] * (SAMPLE_RATE / n)
    angle = 2 * math.pi / SPACING * (hertz - LOWEST)
    weight = peak / peak.sum(1, keepdim=True).clamp(min=1e-20)
    x, y = (angle.cos() * weight).sum(1), (angle.sin() * weight).sum(1)
    off = SPACING / (2 * math.pi) * torch.atan2(y, x)
    agree = x.square() + y.square() > 0.5
    return torch.where(agree, off, 0)


def tuned(waves, hertz):
    """Waveforms (B, S), all of whose frequencies are lowered by so many hertz (B,)"""
    S = waves.shape[1]
    spectrum = torch.fft.fft(waves)
    # Without its negative frequencies a sound is a sum of phasors, and one more phasor shifts all.
    spectrum[:, S // 2 + 1:] = 0
    spectrum[:, 1:S // 2] *= 2
    seconds = torch.arange(S, device=waves.device) / SAMPLE_RATE
    phasor = torch.polar(torch.ones_like(waves), -2 * math.pi * hertz[:, None] * seconds)
    return (torch.fft.ifft(spectrum) * phasor).real


def samples_to_keep(gaps, middles, seconds):
    """A slow player's gaps and their middles in seconds, and the times of samples (S,) -> which of
    these to keep, (S,)"""
    short = gaps * (SHORT_GAP / gaps.median())
    short = short.maximum(gaps.clamp(max=SHORT_GAP))
    half = (gaps - short) / 2
    # A sample is left out if more cuts have begun before it than are over.
    begun = torch.searchsorted(middles - half, seconds)
    over = torch.searchsorted(middles + half, seconds)
    return begun == over


def hurried(waves, lengths):
    """Waveforms (B, S) and their lengths in samples (B,) -> the same; but where most gaps between
    tones are too long, all that are long are cut down alike, each in its middle. If all waveforms
    have become shorter, so is S."""
    tones = find_tones(waves)
    begin = tones.start[1:]
    end = (tones.start + tones.length)[:-1]
    clip = tones.clip[1:].where(tones.clip.diff() == 0, -1)  # of each gap
    S = waves.shape[1]
    seconds = torch.arange(S, device=end.device) / SAMPLE_RATE
    waves, lengths = waves.clone(), lengths.clone()
    slow = 0
    for i in range(len(waves)):
        gaps = (begin - end)[clip == i]
        if not len(gaps) or gaps.median() <= SLOW_GAP:
            continue
        middles = (begin + end)[clip == i] / 2
        kept = samples_to_keep(gaps, middles, seconds)
        wave = waves[i, kept]
        waves[i] = F.pad(wave, (0, S - len(wave)))
        lengths[i] = kept[:lengths[i]].sum()
        slow += 1
    if slow == len(waves):
        waves = waves[:, :int(lengths.max())]
    return waves, lengths


def prepared(waves, lengths=None, hurry=True):
    """Recordings (B, S) and how many samples of each count (B,), or all -> the same in tune and,
    with hurry, without a slow player's gaps; then S may be less"""
    if lengths is None:
        lengths = torch.full((len(waves),), waves.shape[1], device=waves.device)
    off = hertz_off(waves)
    far = off.abs() > OUT_OF_TUNE
    if far.any():
        waves = torch.where(far[:, None], tuned(waves, off), waves)
    return hurried(waves, lengths) if hurry else (waves, lengths)
