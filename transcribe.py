"""
The scorer: waveforms in, symbols out, by FFT. It knows nothing of any model.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from prepare import LOWEST, SAMPLE_RATE, SPACING
from tasks import SYMBOLS, decode

WINDOW, HOP = 400, 160   # samples: 25 ms frames, 10 ms apart
N_FFT = 512              # of a frame
DEAF = 4                 # bins of a frame that are not listened to: hum and DC, under 125 Hz
AROUND = 20              # bins on either side by which noise is told from a tone
OVER_NOISE = 7.0         # dB of a tone over the noise around it, at least
QUIET = 22.0             # dB under the loudest that a tone may be
DIP = 7.0                # dB between two equal tones that follow each other
STEADY = 20.0            # dB over the noise under which three frames are needed to hear a dip
LONGEST = 2048           # samples of a tone that its pitch is measured in
TOLERANCE = 49.0         # Hz off a tone that still count as it; tones are 100 Hz apart
HIGHEST_OTHER = 0.3      # power of another peak over that of the tone
LEAST_INSIDE = 0.05      # share of the power that lies in the tone and its overtones
VOICE = -12.0            # dB of another partial beside the tone from which on it may be a voice,
OVER_FLOOR = 28.0        # if it stands out of what lies between by so much
VOICE_BAND = 4000        # Hz up to which such partials are looked for
UNKNOWN = len(SYMBOLS)   # a sound that is no symbol, '*' in text


class Tones(NamedTuple):
    """Every tone of a batch of waveforms, in order: which waveform, the symbol or UNKNOWN, start
    and length in seconds, measured hertz, level in dB below a full-scale sine; whether another
    partial that is no overtone stands beside it, as in a voice or a chord; (M,) each"""
    clip: torch.Tensor
    symbol: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    hertz: torch.Tensor
    level: torch.Tensor
    voiced: torch.Tensor


def power_of(waves):
    """(..., n) -> |FFT|^2, without the square root that abs() takes"""
    return torch.view_as_real(torch.fft.rfft(waves)).square().sum(-1)


def decibels(power):
    return 10 * torch.log10(power.clamp(min=1e-30))


def noise_around(power):
    """Power (..., F) -> the geometric mean of the bins around, which one tone changes little; of
    fewer at low pitches, as many on either side, as noise may fall off"""
    bins = torch.arange(power.shape[-1], device=power.device)
    reach = (bins - DEAF).clamp(0, AROUND)
    near = (bins - bins[:, None]).abs() <= reach
    weights = near / near.sum(0)
    return (power.clamp(min=1e-10).log() @ weights).exp()


def starts_of(on, moved):
    """Frames (B, T) where sound starts, or where another tone follows without a gap"""
    return on & (~F.pad(on[:, :-1], (1, 0)) | moved)


def find_runs(waves, shortest):
    """Padded waveforms (B, S) -> runs of frames that hold one tone: waveform, first and last frame,
    (M,) each"""
    window = torch.hann_window(WINDOW, device=waves.device)
    window = 2 * window / window.sum()  # a tone peaks at the square of its amplitude
    frames = waves.unfold(1, WINDOW, HOP) * window
    power = power_of(F.pad(frames, (0, N_FFT - WINDOW)))  # (B, T, 257)
    power[..., :DEAF] = 0
    # Over three frames noise varies less than a tone does.
    by_bin = power.transpose(1, 2)
    smooth = F.avg_pool1d(by_bin, 3, 1, 1, count_include_pad=False).transpose(1, 2)
    peak, at = smooth.max(-1)

    def at_peak(x):
        """(B, T, 257) -> (B, T)"""
        return x.gather(-1, at[..., None])[..., 0]

    level = decibels(peak)
    noise = decibels(at_peak(noise_around(smooth)))
    loudest = level.amax(1, keepdim=True)
    on = (level > -80) & (level > loudest - QUIET) & (level > noise + OVER_NOISE)
    moved = F.pad((at[:, 1:] - at[:, :-1]).abs() > 1, (1, 0))

    # The same tone again: the level dips, and rises as high as before, or is as high again.
    briefly = decibels(at_peak(power))
    steady = loudest - noise.median(1, keepdim=True).values < STEADY
    level = torch.where(steady, level, level.minimum(briefly))
    level = torch.where(on, level, -300.0)
    run = 1000 * starts_of(on, moved).cumsum(1).double()  # keeps the maxima of each run apart
    before = (level + run).cummax(1).values - run
    after = (level - run).flip(1).cummax(1).values.flip(1) + run
    on = on & (before.minimum(after) - level < DIP)

    moves = F.pad(moved[:, 1:], (0, 1))  # after this frame
    ends = starts_of(on.flip(1), moves.flip(1)).flip(1)
    clip, first = starts_of(on, moved).nonzero(as_tuple=True)
    last = ends.nonzero(as_tuple=True)[1]
    keep = last - first >= shortest - 1
    return clip[keep], first[keep], last[keep]


def beside_bin(log, k):
    """Log power (..., F) and its peaks' bins k (..., 1) -> by how many bins each peak lies beside
    its bin, (..., 1): where the parabola through the three highest bins has its vertex"""
    left, top, right = (log.gather(-1, k + i) for i in (-1, 0, 1))
    return (left - right) / (2 * (left - 2 * top + right)).clamp(max=-1e-6)


def find_tones(waves, shortest=6):
    """Waveforms (B, S) at 16 kHz -> Tones.

    A tone is a run of at least `shortest` frames, 2 or more, with a peak over the noise around it,
    not 22 dB under the clip's loudest, that stays where it is. Its pitch is the FFT peak of the
    whole run, with a parabola through the three highest bins. It is UNKNOWN if no symbol is near,
    if a second peak, other than an overtone, is nearly as high, if the peak is lost in noise,
    or if most of the clip's tones are UNKNOWN."""
    waves = waves.cpu() if waves.is_mps else waves  # Apple's GPUs have no doubles
    waves = F.pad(waves.float(), (WINDOW // 2, WINDOW // 2 + -waves.shape[1] % HOP))
    clip, first, last = find_runs(waves, shortest)
    if not len(clip):
        nothing = clip.float()
        return Tones(clip, clip, nothing, nothing, nothing, nothing, clip > 0)

    # One FFT for each tone, over at most LONGEST samples about its middle
    begin = first * HOP + WINDOW // 4  # in the padded waveform
    length = (last - first) * HOP + WINDOW // 2
    n = length.clamp(max=LONGEST)[:, None]
    i = torch.arange(LONGEST, device=waves.device)
    middle = clip * waves.shape[1] + begin + (length - n[:, 0]) // 2
    sound = waves.flatten()[middle[:, None] + i.minimum(n - 1)]
    taper = torch.sin(math.pi * (i + 0.5) / n).square() * (i < n)
    power = power_of(sound * taper)
    power[:, :DEAF * LONGEST // N_FFT] = 0
    k = power[:, 1:-1].argmax(1) + 1
    log = power.clamp(min=1e-20).log()
    k = k[:, None]
    hertz = (k + beside_bin(log, k))[:, 0] * (SAMPLE_RATE / LONGEST)

    # Is it one steady tone? Its own peak is wider if it is short; its overtones are lower.
    bins = torch.arange(power.shape[1], device=k.device)
    wide = (2 * LONGEST // n).clamp(min=6)
    own = (bins - k).abs() <= wide
    overtone = (bins % k).minimum(-bins % k) <= wide
    highest = power.amax(1).clamp(min=1e-20)
    weight = torch.where(overtone, 0.5, 1)
    second = (power * weight * ~own).amax(1)
    inside = (power * (own | overtone)).sum(1)
    clear = second < HIGHEST_OTHER * highest
    clear = clear & (inside > LEAST_INSIDE * power.sum(1))
    between = ~(own | overtone) & (bins < VOICE_BAND * LONGEST / SAMPLE_RATE) & (power > 0)
    other = decibels((power * between).amax(1))
    floor = ((log * between).sum(1) / between.sum(1)).exp()
    voiced = (other > decibels(highest) + VOICE) & (other > decibels(floor) + OVER_FLOOR)

    # Which symbol? The whole recording may be off pitch: by the mean, on a circle, of all tones.
    def of_clip(x):
        """(M,) -> sums over each waveform's tones, (M,)"""
        return torch.zeros(len(waves), device=k.device).index_add(0, clip, x)[clip]

    angle = 2 * math.pi / SPACING * (hertz - LOWEST)
    mean = torch.atan2(of_clip(angle.sin()), of_clip(angle.cos()))
    off = SPACING / (2 * math.pi) * mean
    tuned = hertz - LOWEST - off
    symbol = (tuned / SPACING).round().clamp(0, UNKNOWN - 1).long()
    error = (tuned - SPACING * symbol).abs()
    clear = clear & (error <= TOLERANCE) & (off.abs() <= TOLERANCE)
    # Where most are none it is speech or music.
    n_clear = of_clip(clear.float())
    n_tones = of_clip(torch.ones_like(hertz))
    clear = clear & (n_clear >= n_tones / 2)
    return Tones(
        clip=clip,
        symbol=torch.where(clear, symbol, UNKNOWN),
        # Three frames find a tone one frame early, and one late.
        start=(begin + HOP - WINDOW // 2).clamp(min=0) / SAMPLE_RATE,
        length=(length - 2 * HOP).clamp(min=HOP) / SAMPLE_RATE,
        hertz=hertz,
        level=decibels(highest) + 20 * torch.log10(2 / taper.sum(1)),
        voiced=voiced,
    )


def transcribe(waves, shortest=6):
    """Waveforms (B, S) -> a list of B texts; '*' stands for a sound that is no symbol. Tones as in
    find_tones."""
    tones = find_tones(waves, shortest)
    rows = [[] for _ in waves]
    for clip, symbol in zip(tones.clip.tolist(), tones.symbol.tolist(), strict=True):
        rows[clip].append(symbol)
    return [decode(row) for row in rows]
