"""
The scorer: waveforms in, symbols out, by FFT. It knows nothing of any model. Letters: B waveforms,
S samples, T frames, K bins, M tones
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from prepare import LOWEST, SAMPLE_RATE, SPACING
from tasks import SYMBOLS, decode

FRAME, STEP = 400, 160   # samples: 25 ms frames, 10 ms apart
FRAME_FFT = 512          # samples of a frame's FFT
TONE_FFT = 2048          # samples of a tone, at most, that its pitch is measured in
DEAF = 4                 # bins of a frame that are not listened to: hum and DC, under 125 Hz
AROUND = 20              # bins on either side by which noise is told from a tone
OVER_NOISE = 7.0         # dB of a tone over the noise around it, at least
QUIET = 22.0             # dB under the loudest that a tone may be
FAINTEST = -80.0         # dB below a full-scale sine under which nothing is heard
DIP = 7.0                # dB between two equal tones that follow each other
NOISY = 20.0             # dB over the noise under which three frames are needed to hear a dip
TOLERANCE = 49.0         # Hz off a tone that still count as it; tones are 100 Hz apart
HIGHEST_OTHER = 0.3      # power of another peak over that of the tone
LEAST_INSIDE = 0.05      # share of the power that lies in the tone and its overtones
VOICE = -12.0            # dB of another partial beside the tone from which on it may be a voice,
OVER_FLOOR = 28.0        # if it stands out of what lies between by so much
VOICE_BAND = 4000        # Hz up to which such partials are looked for
UNKNOWN = len(SYMBOLS)   # a sound that is no symbol, '*' in text


class Tones(NamedTuple):
    """Every tone of a batch of waveforms, in order, (M,) each"""
    clip: torch.Tensor    # which waveform
    symbol: torch.Tensor  # or UNKNOWN
    start: torch.Tensor   # seconds
    length: torch.Tensor  # seconds
    hertz: torch.Tensor   # measured
    level: torch.Tensor   # dB below a full-scale sine
    voiced: torch.Tensor  # a partial that is no overtone stands beside it: a voice or a chord


def power_of(waves):
    """(..., n) -> |FFT|^2, (..., n / 2 + 1), without the square root that abs() takes"""
    return torch.view_as_real(torch.fft.rfft(waves)).square().sum(-1)


def decibels(power):
    return 10 * torch.log10(power.clamp(min=1e-30))


def beside_bin(log, k):
    """Log power (..., K) and its peaks' bins k (..., 1) -> by how many bins each peak lies beside
    its bin, (..., 1): where the parabola through the three highest bins has its vertex"""
    left, top, right = (log.gather(-1, k + i) for i in (-1, 0, 1))
    curve = 2 * (left - 2 * top + right)
    return (left - right) / curve.clamp(max=-1e-6)


# --- where the tones are ---

def noise_around(power):
    """Power (..., K) -> the geometric mean of the bins around, which one tone changes little; of
    fewer at low pitches, as many on either side, as noise may fall off"""
    bins = torch.arange(power.shape[-1], device=power.device)
    near = (bins - bins[:, None]).abs() <= (bins - DEAF).clamp(0, AROUND)
    log = power.clamp(min=1e-10).log()
    return (log @ (near / near.sum(0))).exp()


def depth_of_dips(level, starts):
    """Levels (B, T) in dB and the frames where runs start (B, T) -> how far each frame lies under
    what its run reaches before it and will reach again, (B, T)"""
    # All runs are gone through at once. A thousand decibels are added for each run before, and a
    # real level is never so large, so the running maximum begins anew with every run.
    lift = 1000 * starts.cumsum(1).double()
    before = (level + lift).cummax(1).values - lift
    after = (level - lift).flip(1).cummax(1).values.flip(1) + lift
    return before.minimum(after) - level


def going_on(on, moved):
    """Frames (B, T) that go on with the tone of the frame before: something sounds in both, and the
    pitch has not moved"""
    return on & F.pad(on[:, :-1], (1, 0)) & ~moved


def find_runs(waves, shortest):
    """Padded waveforms (B, S) -> runs of frames that hold one tone: waveform, first and last frame,
    (M,) each"""
    window = torch.hann_window(FRAME, device=waves.device)
    window = 2 * window / window.sum()  # a tone peaks at the square of its amplitude
    frames = waves.unfold(1, FRAME, STEP) * window  # (B, T, FRAME)
    power = power_of(F.pad(frames, (0, FRAME_FFT - FRAME)))
    power[..., :DEAF] = 0
    # Over three frames noise varies less than a tone does.
    smooth = F.avg_pool1d(power.transpose(1, 2), 3, 1, 1, count_include_pad=False)
    smooth = smooth.transpose(1, 2)  # (B, T, K)
    k = smooth.argmax(-1, keepdim=True)  # (B, T, 1)

    def at_peak(power):
        """(B, T, K) -> dB (B, T)"""
        return decibels(power.gather(-1, k)[..., 0])

    level = at_peak(smooth)
    noise = at_peak(noise_around(smooth))
    loudest = level.amax(1, keepdim=True)
    faintest = (loudest - QUIET).clamp(min=FAINTEST)
    on = (level > faintest) & (level > noise + OVER_NOISE)
    moved = F.pad(k[..., 0].diff().abs() > 1, (1, 0))

    # The same tone may sound again without a gap: then the level dips between. One frame shows it
    # best, but in much noise one frame is not to be trusted.
    noisy = loudest - noise.median(1, keepdim=True).values < NOISY
    level = torch.where(noisy, level, level.minimum(at_peak(power)))
    level = torch.where(on, level, -300.0)
    starts = on & ~going_on(on, moved)
    on = on & (depth_of_dips(level, starts) < DIP)

    goes_on = going_on(on, moved)
    clip, first = (on & ~goes_on).nonzero(as_tuple=True)
    _, last = (on & ~F.pad(goes_on[:, 1:], (0, 1))).nonzero(as_tuple=True)
    keep = last - first >= shortest - 1
    return clip[keep], first[keep], last[keep]


# --- what each of them is ---

def is_one_tone(power, k, wide):
    """Spectra (M, K), the bins of their peaks k (M, 1) and how many bins a peak covers on either
    side, (M, 1) -> is it one steady tone, and does a partial stand beside it that is none of its
    own? (M,) each"""
    bins = torch.arange(power.shape[1], device=k.device)
    own = (bins - k).abs() <= wide
    overtone = (bins % k).minimum(-bins % k) <= wide
    known = own | overtone
    highest = power.amax(1).clamp(min=1e-20)
    # Overtones are lower than the tone.
    other = torch.where(overtone, 0.5 * power, power)
    second = other.masked_fill(own, 0).amax(1)
    inside = (power * known).sum(1)
    steady = (second < HIGHEST_OTHER * highest) & (inside > LEAST_INSIDE * power.sum(1))
    # A voice has partials that stand out of what lies between its own.
    between = (bins < VOICE_BAND * TONE_FFT / SAMPLE_RATE) & ~known & (power > 0)
    log = power.clamp(min=1e-20).log()
    floor = (log * between).sum(1) / between.sum(1)
    partial = decibels((power * between).amax(1))
    stands_out = partial > decibels(floor.exp()) + OVER_FLOOR
    return steady, stands_out & (partial > decibels(highest) + VOICE)


def total(x, clip):
    """(M,) -> its sums over all tones of the same waveform, (M,)"""
    by_clip = x.new_zeros(clip[-1] + 1).index_add(0, clip, x)
    return by_clip[clip]


def nearest_symbols(hertz, clip):
    """Pitches (M,) -> symbols (M,), and whether they are near enough. The whole recording may be
    off pitch: by the mean, on a circle, of all its tones."""
    angle = 2 * math.pi / SPACING * (hertz - LOWEST)
    mean = torch.atan2(total(angle.sin(), clip), total(angle.cos(), clip))
    off = SPACING / (2 * math.pi) * mean
    above = hertz - LOWEST - off
    symbol = (above / SPACING).round().clamp(0, UNKNOWN - 1).long()
    error = (above - SPACING * symbol).abs()
    return symbol, (error <= TOLERANCE) & (off.abs() <= TOLERANCE)


def find_tones(waves, shortest=6):
    """Waveforms (B, S) at 16 kHz -> Tones.

    A tone is a run of at least `shortest` frames, 2 or more, with a peak over the noise around it,
    not 22 dB under the clip's loudest, that stays where it is. Its pitch is the FFT peak of the
    whole run, with a parabola through the three highest bins. It is UNKNOWN if no symbol is near,
    if a second peak, other than an overtone, is nearly as high, if the peak is lost in noise,
    or if most of the clip's tones are UNKNOWN."""
    waves = waves.cpu() if waves.is_mps else waves  # Apple's GPUs have no doubles
    pad = FRAME // 2
    waves = F.pad(waves.float(), (pad, pad + -waves.shape[1] % STEP))
    clip, first, last = find_runs(waves, shortest)
    if not len(clip):
        none = clip.float()
        return Tones(clip, clip, none, none, none, none, voiced=clip > 0)
    begin = first * STEP + pad // 2  # in the padded waveform
    length = (last - first) * STEP + pad

    # One FFT for each tone, over at most TONE_FFT samples about its middle
    n = length.clamp(max=TONE_FFT)
    middle = begin + (length - n) // 2
    n = n[:, None]
    i = torch.arange(TONE_FFT, device=waves.device)
    sound = waves[clip[:, None], middle[:, None] + i.minimum(n - 1)]  # (M, TONE_FFT)
    taper = torch.sin(math.pi * (i + 0.5) / n).square() * (i < n)
    power = power_of(sound * taper)  # (M, K)
    power[:, :DEAF * TONE_FFT // FRAME_FFT] = 0
    k = power[:, 1:-1].argmax(1, keepdim=True) + 1
    shift = beside_bin(power.clamp(min=1e-20).log(), k)
    hertz = (k + shift)[:, 0] * (SAMPLE_RATE / TONE_FFT)
    level = decibels(power.amax(1).clamp(min=1e-20))
    level = level + 20 * torch.log10(2 / taper.sum(1))

    # A peak is wider if the tone is short.
    wide = (2 * TONE_FFT // n).clamp(min=6)
    steady, voiced = is_one_tone(power, k, wide)
    symbol, is_near = nearest_symbols(hertz, clip)
    is_symbol = steady & is_near
    # Where fewer than half are symbols it is speech or music.
    votes = is_symbol.float() - 0.5
    is_symbol = is_symbol & (total(votes, clip) >= 0)
    return Tones(
        clip=clip,
        symbol=torch.where(is_symbol, symbol, UNKNOWN),
        # Three frames find a tone one frame early, and one late.
        start=(begin + STEP - pad).clamp(min=0) / SAMPLE_RATE,
        length=(length - 2 * STEP).clamp(min=STEP) / SAMPLE_RATE,
        hertz=hertz,
        level=level,
        voiced=voiced,
    )


def transcribe(waves, shortest=6):
    """Waveforms (B, S) -> a list of B texts; '*' stands for a sound that is no symbol. Tones as in
    find_tones."""
    tones = find_tones(waves, shortest)
    counts = tones.clip.bincount(minlength=len(waves))
    rows = tones.symbol.cpu().split(counts.tolist())
    return [decode(row) for row in rows]
