"""
Mini-JMamba: a waveform goes in, a waveform comes out. The whole model in plain PyTorch; fast/ has
quicker ways through some of its parts, for GPUs, and hands them in.

    question (B, S) samples
      | STFT magnitude, log-compressed; 5 frames of 10 ms make one token of 50 ms
      | 6 Mamba-2 layers: the encoder, causal
      | cross-attention: by clock, by content, and a pointer into the question's frames
      | 2 Mamba-2 layers from end to start, windowed self-attention, 2 Mamba-2 layers: the decoder
      | frames = gate * pointed-at frames + (1 - gate) * generated frames
      | phase, inverse STFT
    answer (B, S) samples, in the question's own time

Letters, as in the Mamba-2 paper (Dao and Gu, 2024, arXiv:2405.21060): B batch, S samples, T tokens,
D d_model, H heads, P head_dim, N d_state, Q tokens in a chunk, F bins, W what in_proj gives
"""
import importlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

HOP = 160            # samples in a frame: 10 ms
WIN_LENGTH = 400     # samples that a frame hears: 25 ms, at most 3 hops
N_FFT = 512
N_DEAF = 4           # bins that hear nothing: hum and DC, under 125 Hz
N_AROUND = 16        # bins on either side by which noise is told from a tone
N_BINS = 128         # spectral bins kept, 0 to 4 kHz: room for 36 symbols
COMPRESS = 100.0     # c in log(1 + c |S|)
EXPAND = 2           # width of a Mamba-2 layer inside, as a multiple of d_model
D_CONV = 4           # taps of the short convolution
CHUNK = 64           # tokens that the scan takes at once
WINDOW = 16          # tokens that self-attention and attention by clock reach
POINTER_WINDOW = 4   # tokens that the pointer reaches


@dataclass
class JMambaConfig:
    d_model: int = 128      # width of a token
    n_encoder: int = 6      # Mamba-2 layers that hear the question
    n_decoder: int = 4      # Mamba-2 layers that play the answer, half before the self-attention
    d_state: int = 64       # of a Mamba-2 head: it remembers d_state * head_dim numbers
    head_dim: int = 32      # of a Mamba-2 head
    n_head: int = 4         # attention heads; of cross-attention's, half go by clock
    counting: float = 0.5   # share of the Mamba-2 heads that never forget, so that they can count
    patch: int = 5          # frames in a token: 50 ms, three tokens a symbol
    halting: bool = False   # one more head says whether what is played is the answer
    freeze: bool = True     # the Mamba-2 states stand still while nothing sounds
    pointer: bool = True    # False: every frame is generated
    points_at: str = 'same'  # which time, with commas: same, end (backwards), again (see elsewhere)
    # Parts: a class of this file, or one of another as 'lab.baselines:LSTM'
    layer: str = 'Mamba2'
    cross: str = 'CrossAttention'
    self_attention: str = 'SelfAttention'
    front: str = 'stft'     # what the encoder hears; a class hears frames and waveform
    n_symbols: int = 36     # for an auxiliary loss only; answers are never read from the logits
    n_so_far: int = 112     # for another one: what a question comes to so far

    def __post_init__(self):
        self.d_inner = EXPAND * self.d_model
        self.token = self.patch * HOP  # samples
        # The middle of what a token's frames hear, in samples after the token's start
        self.middle = (self.token + HOP - WIN_LENGTH) / 2
        # Half of the attention heads go by content, half of the decoder runs backwards, and rotary
        # positions turn pairs.
        multiples = {'n_encoder': 1, 'd_state': 1, 'head_dim': 1, 'patch': 1}
        multiples |= {'n_decoder': 2, 'n_head': 2, 'd_model': 2 * self.n_head}
        for key, divisor in multiples.items():
            value = getattr(self, key)
            if value < 1 or value % max(divisor, 1):
                raise ValueError(f"{key} must be a positive multiple of {divisor}, not {value}")
        if self.d_inner % self.head_dim:
            raise ValueError(f"head_dim must divide {self.d_inner}, not be {self.head_dim}")
        if not set(self.points_at.split(',')) <= {'same', 'end', 'again'}:
            raise ValueError(f"points_at are some of same, end, again, not {self.points_at!r}")
        if not 0 <= self.counting <= 1:
            raise ValueError(f"counting must lie between 0 and 1, not {self.counting}")


def part_named(name):
    """'Mamba2', a class of this file, or 'lab.baselines:LSTM', one of another -> the class"""
    module, _, class_name = name.rpartition(':')
    try:
        return getattr(importlib.import_module(module or __name__), class_name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError("a part of the model is a class of model.py, or one of another file, such "
                         f"as lab.baselines:LSTM; there is no {name!r}") from None


# --- sound to frames and back ---

class Spectrum(nn.Module):
    """STFT and its inverse as matrix products with hop-sized blocks of sound. Frame t ends with
    sample (t + 1) * HOP, so no frame hears the future. A tone of amplitude a peaks at |S| = a.
    Spectra are (B, frames, 2, F): real parts, imaginary parts."""

    def __init__(self):
        super().__init__()
        # A frame's window ends with its last hop, and does not reach back over all three.
        n = torch.arange(3 * HOP, dtype=torch.float64)
        n = n - (3 * HOP - WIN_LENGTH)
        turn = 2 * math.pi * (n + 0.5) / WIN_LENGTH
        hann = 0.5 - 0.5 * torch.cos(turn)
        window = torch.where(n >= 0, hann, 0.0)
        k = torch.arange(N_BINS, dtype=torch.float64)
        angle = 2 * math.pi / N_FFT * n[:, None] * k
        basis = torch.cat([angle.cos(), -angle.sin()], 1)  # (3 hop, 2F)
        basis = basis * window[:, None]
        basis = basis * (k >= N_DEAF).repeat(2)
        gain = window.sum() / 2
        # The least-squares inverse (Griffin and Lim, 1984): windowed frames, added up, over the
        # sum of squared windows. Every bin but the lowest has a mirror image.
        squares = window.square().view(3, HOP)
        overlap = squares.sum(0).repeat(3)
        images = torch.where(k == 0, 1.0, 2.0).repeat(2)
        inverse = basis * gain * images / N_FFT
        inverse = inverse / overlap[:, None]
        self.keep('analysis', basis / gain)
        self.keep('synthesis', inverse.T)
        # As many bins on either side, or noise that falls off would pass for low tones.
        reach = (k - N_DEAF).clamp(0, N_AROUND)
        near = (k - k[:, None]).abs() <= reach
        self.keep('near', near / near.sum(0))

    def keep(self, name, numbers):
        """Numbers that go where the model goes, and into no checkpoint"""
        self.register_buffer(name, numbers.float(), persistent=False)

    def stft(self, wave):
        """(B, S), S a multiple of HOP -> (B, S / HOP, 2, F)"""
        padded = F.pad(wave, (2 * HOP, 0))
        blocks = padded.unfold(1, 3 * HOP, HOP)
        # Without a copy a CPU would multiply row by row.
        spectrum = blocks.contiguous() @ self.analysis
        return spectrum.unflatten(2, (2, -1))

    def istft(self, spectrum):
        """(B, frames, 2, F) -> (B, frames * HOP); no frame is taken to follow the last"""
        blocks = spectrum.flatten(2) @ self.synthesis
        blocks = F.pad(blocks, (0, 0, 0, 2))
        # A hop of sound is the end of one frame, the middle of the next and the start of another.
        first, second, third = blocks.split(HOP, 2)
        wave = first[:, 2:] + second[:, 1:-1]
        wave = wave + third[:, :-2]
        return wave.flatten(1)

    def magnitude(self, spectrum):
        """(..., 2, F) -> (..., F)"""
        # Without the small constant the gradient of silence would not be finite.
        return (spectrum.square().sum(-2) + 1e-12).sqrt()

    def log(self, magnitude):
        return torch.log1p(COMPRESS * magnitude)

    def exp(self, frames):
        return torch.expm1(frames.clamp(0, 12)) / COMPRESS

    def noise(self, frames, over=4):
        """Log magnitudes (..., F) -> what noise reaches in each bin: `over` times what is usual
        around it, by the mean of logarithms, which one tone changes little"""
        usual = self.exp(frames.float() @ self.near)
        return self.log(over * usual)

    def sounds(self, frames):
        """Log magnitudes (..., F) -> (..., 1): 0 in silence and noise, 1 from -24 dB of full scale
        on, and in noise from twice what it reaches"""
        over = frames - self.noise(frames).clamp(min=1)
        return over.amax(-1, keepdim=True).clamp(0, 1)

    def squelch(self, frames):
        """Log magnitudes (B, frames, F) without frames and bins that are noise, frames under -35 dB
        and bins under -42 dB: no tones. Nor does an echo count, in which a bin has only fallen for
        the last 100 ms."""
        # Over five frames noise varies less than a tone does.
        by_bin = frames.transpose(1, 2)
        by_bin = F.avg_pool1d(by_bin, 5, 1, 2, count_include_pad=False)
        smooth = by_bin.transpose(1, 2)
        noise = self.noise(smooth, 2.5)
        sounds = (smooth > noise.clamp(min=1)).any(-1)
        is_tone = smooth > noise.clamp(min=0.6)
        is_tone = is_tone & sounds[..., None]
        # What only fell since its highest, and has not risen since its lowest, is no new tone.
        before = F.pad(by_bin, (10, 0))
        high = F.max_pool1d(before, 11, 1)
        low = -F.max_pool1d(-before, 11, 1)
        new = (by_bin > high - 0.25) | (by_bin > low + 0.6)
        # Its fades belong to it.
        new = new.to(frames.dtype)
        new = F.max_pool1d(new, 5, 1, 2)
        return frames * new.transpose(1, 2) * is_tone

    def with_phase(self, magnitude, spectrum):
        """`magnitude` (..., F) with the phase of `spectrum` (..., 2, F)"""
        ratio = magnitude / self.magnitude(spectrum)
        return spectrum * ratio.unsqueeze(-2)

    def guess_phase(self, magnitude):
        """Magnitudes (B, frames, F) -> spectrum. Its phase advances from frame to frame by the
        frequency of the frame's highest peak, which is exact for one steady tone (after SPSI:
        Beauregard, Harish and Wyse, 2015)."""
        inner = magnitude[..., 1:-1]
        k = inner.argmax(-1, keepdim=True) + 1
        # The peak lies at the vertex of the parabola through the three highest bins.
        log = magnitude.clamp(min=1e-6).log()
        left = log.gather(-1, k - 1)
        peak = log.gather(-1, k)
        right = log.gather(-1, k + 1)
        curve = 2 * (left - 2 * peak + right)
        shift = (left - right) / curve.clamp(max=-1e-6)
        shift = shift.clamp(-0.5, 0.5)
        # The phase is counted in turns; whole bins add up as integers, which lose no digits.
        whole = (HOP * k).cumsum(1) % N_FFT / N_FFT
        since_middle = shift.cumsum(1) - (k + shift) / 2  # of the window
        turns = whole + HOP / N_FFT * since_middle
        middle = 2 * math.pi * (turns % 1)
        cos, sin = middle.cos(), middle.sin()
        # A bin counts its phase from the window's start, half a window before its middle.
        bins = torch.arange(N_BINS, device=k.device)
        lag = bins * (math.pi / N_FFT * (WIN_LENGTH - 1))
        c, s = lag.cos(), lag.sin()
        real = cos * c + sin * s
        imaginary = sin * c - cos * s
        phase = torch.stack([real, imaginary], -2)
        return magnitude[..., None, :] * phase

    def wave(self, magnitude, original):
        """Magnitudes (B, frames, F) -> waveforms (B, frames * HOP). The phase is that of the same
        frame of the original (B, frames, 2, F), if that sounds alike, or else a guess. After
        12 guesses at its phase a tone would be 10 ms longer."""
        difference = (magnitude - self.magnitude(original)).abs().amax(-1)
        # What is much louder or fainter than before is a tone that has come or gone.
        alike = difference < 0.5 * magnitude.amax(-1)
        copied = self.with_phase(magnitude, original)
        guessed = self.guess_phase(magnitude)
        spectrum = torch.where(alike[..., None, None], copied, guessed)
        # One iteration of Griffin and Lim makes the phases of neighbouring frames agree.
        again = self.stft(self.istft(spectrum))
        return self.istft(self.with_phase(magnitude, again))


# --- Mamba-2 ---

def in_chunks(x, n):
    """(B, T, ...) -> (B, n, Q, ...), with zeros behind the last token"""
    n_missing = -x.shape[1] % n
    behind = (0, 0) * (x.dim() - 2) + (0, n_missing)
    return F.pad(x, behind).unflatten(1, (n, -1))


def decays(at, since, diagonal=0):
    """Logarithms of decay up to each of n places, (..., n) -> what is kept from place j, since
    then, at place i, (..., n, n): nothing of what lies in the future"""
    between = at[..., :, None] - since[..., None, :]
    every = torch.ones_like(between[0, 0], dtype=torch.bool)
    is_past = every.tril(diagonal)
    # -inf goes in before exp: what lies in the future would overflow.
    between = between.masked_fill(~is_past, -math.inf)
    return between.exp()


def ssd(x, dt, A, B, C, chunk=CHUNK):
    """The scan of Mamba-2 (Dao and Gu, 2024, listing 1), by matrix products within chunks:

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t

    x (B, T, H, P), dt (B, T, H) positive and A (H,) not positive, both fp32 or better, B and C
    (B, T, N), shared by the heads -> y (B, T, H, P)"""
    T = x.shape[1]
    n = -(-T // chunk)  # chunks, of equal length
    decay = in_chunks(dt * A, n)
    x = (x * dt[..., None]).to(x.dtype)
    x = in_chunks(x, n)  # (B, n, Q, H, P)
    B = in_chunks(B, n)  # (B, n, Q, N)
    C = in_chunks(C, n)

    # Within a chunk: what came in at token j reaches token i >= j, decayed by the tokens between.
    decay = decay.cumsum(2)  # (B, n, Q, H), from the start of the chunk
    by_head = decay.transpose(2, 3)
    scores = C @ B.transpose(2, 3)  # (B, n, Q, Q)
    scores = scores[:, :, None] * decays(by_head, by_head)  # (B, n, H, Q, Q)
    y = scores.to(x.dtype) @ x.transpose(2, 3)
    y = y.transpose(2, 3)  # (B, n, Q, H, P)
    # Between chunks: what earlier ones leave behind.
    if n > 1:
        y = y + from_earlier_chunks(x, decay, by_head[..., -1], B, C)
    return y.flatten(1, 2)[:, :T]


def from_earlier_chunks(x, decay, total, B, C):
    """What the states that earlier chunks leave behind give to each token: x (B, n, Q, H, P), decay
    (B, n, Q, H) from the start of the chunk and that of all of it (B, n, H), B and C (B, n, Q, N)
    -> (B, n, Q, H, P)"""
    # Each chunk alone leaves a state at its end.
    to_end = (decay[:, :, -1:] - decay).exp()
    left = x * to_end[..., None].to(x.dtype)
    left = B.transpose(2, 3) @ left.flatten(3)
    left = left.unflatten(3, x.shape[3:])  # (B, n, N, H, P)
    # The states of all earlier chunks, decayed since, add up at a chunk's start.
    total = total.transpose(1, 2).cumsum(2)  # (B, H, n)
    kept = decays(F.pad(total, (1, -1)), total, -1)  # (B, H, n, n)
    state = torch.einsum('bhij,bjnhp->binhp', kept.to(x.dtype), left)
    # Each token reads them, decayed since that start.
    y = C @ state.flatten(3)
    from_start = decay.exp()[..., None].to(x.dtype)
    return y.unflatten(3, x.shape[3:]) * from_start


def causal_conv(x, weight, bias):
    """SiLU of a depthwise convolution over the last K tokens: x (B, T, C), weight (K, C), bias (C,)
    -> (B, T, C)"""
    K, T = len(weight), x.shape[1]
    padded = F.pad(x, (0, 0, K - 1, 0))
    # GPUs are faster at a sum of four shifted copies than at their own convolution.
    shifted = [padded[:, k:k + T] for k in range(K)]
    y = sum(tap * w for tap, w in zip(shifted, weight, strict=True))
    return F.silu(y + bias).to(x.dtype)


def gate_and_norm(y, z):
    """The scan's y (..., H, P) and the gate z (..., HP) -> (..., HP). The norm is over each head:
    one that counts far must not drown the others."""
    gate = F.silu(z).unflatten(-1, y.shape[-2:])
    y = y.float() * gate
    y = F.rms_norm(y, y.shape[-1:], eps=1e-5)
    return y.flatten(-2)


def mixer(zxBCdt, pace, weight, bias, dt_bias, A, D, P, N, scan=ssd):
    """All of a Mamba-2 layer between its two projections, with any scan(x, dt, A, B, C):
    (B, T, W) -> (B, T, HP). fast/kernels.py has the same in Triton."""
    H = len(A)
    # What is left over behind dt only fills the width up.
    HP = H * P
    z, xBC, dt = zxBCdt.tensor_split((HP, 2 * HP + 2 * N), -1)
    dt = dt[..., :H].float() + dt_bias
    dt = F.softplus(dt) * pace
    xBC = causal_conv(xBC, weight, bias)
    x, B, C = xBC.split([HP, N, N], -1)
    x = x.unflatten(-1, (H, P))  # (B, T, H, P)
    y = scan(x, dt, A, B, C)
    y = y + D[:, None] * x
    return gate_and_norm(y, z)


class Mamba2(nn.Module):
    """One Mamba-2 block, with its pre-norm and residual: (B, T, D) -> (B, T, D), causal. `pace`
    (B, T, 1) scales the steps of time: where it is 0, the state stays as it is."""

    def __init__(self, c):
        super().__init__()
        self.sizes = c.head_dim, c.d_state
        self.mixer = mixer  # or a faster one
        n_heads = c.d_inner // c.head_dim
        self.forever = round(c.counting * n_heads)  # heads with A = 0: nothing ever goes out
        d_conv = c.d_inner + 2 * c.d_state
        width = c.d_inner + d_conv + n_heads
        self.norm = nn.RMSNorm(c.d_model)
        # GPUs are slow at widths that are no multiple of 8; what is added is not used.
        self.in_proj = nn.Linear(c.d_model, width + -width % 8, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(D_CONV, d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(d_conv))
        self.dt_bias = nn.Parameter(torch.empty(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads - self.forever))
        self.D = nn.Parameter(torch.ones(n_heads))
        self.gate_norm = nn.Parameter(torch.ones(c.d_inner))
        self.out_proj = nn.Linear(c.d_inner, c.d_model, bias=False)

    def forward(self, u, pace):
        # One projection gives gate z, what the states take in and give out (x, B, C), and steps dt.
        zxBCdt = self.in_proj(self.norm(u))
        A = -self.A_log.exp()
        A = F.pad(A, (self.forever, 0))  # (H,)
        conv = self.conv_weight, self.conv_bias
        scan = self.dt_bias, A, self.D
        y = self.mixer(zxBCdt, pace, *conv, *scan, *self.sizes)
        # The norm's weights go into the projection: fewer passes over memory.
        return u + F.linear(y, self.out_proj.weight * self.gate_norm)


def run_layers(layers, x, pace):
    """One layer after another"""
    for layer in layers:
        x = layer(x, pace)
    return x


# --- attention ---

def rotary(x):
    """Rotate pairs of (B, h, T, d) by the clock (Su et al., 2021), every 6 to 400 tokens"""
    half = x.shape[-1] // 2
    rate = 64.0 ** (-torch.arange(half, device=x.device) / half)
    time = torch.arange(x.shape[2], device=x.device)
    angle = time[:, None] * rate
    cos = angle.cos().to(x.dtype)
    sin = angle.sin().to(x.dtype)
    a, b = x.split(half, -1)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.cat(turned, -1)


def around(x):
    """(B, h, T, d) -> (B, h, T / w, 3w, d): each window with the one before and the one after"""
    behind = WINDOW + -x.shape[2] % WINDOW
    padded = F.pad(x, (0, 0, WINDOW, behind))
    return padded.unfold(2, 3 * WINDOW, WINDOW).transpose(-1, -2)


def local_attention(q, k, v, valid, reach, causal=False):
    """Attention by the clock within `reach` <= WINDOW tokens, in time linear in T: q and k (B or 1,
    h, T or 1, d), which may be the same for all tokens and are not yet rotated, v (B, h, T, any),
    valid (B or 1, 1, T) bool -> (B, h, T, any)"""
    T, d = v.shape[2], q.shape[3]
    # Turned by the clock, a query and a key that are the same for all tokens tell their times.
    q = q.expand(-1, -1, T, -1)
    k = k.expand(-1, -1, T, -1)
    q, k = rotary(q), rotary(k)
    q = F.pad(q, (0, 0, 0, -T % WINDOW))
    q = q.unflatten(2, (-1, WINDOW))  # (B, h, T / w, w, d)
    score = q @ around(k).transpose(-1, -2)  # (B, h, T / w, w, 3w)
    score = score.float() / math.sqrt(d)
    # Each query sees the keys of its own window and of the two beside it.
    query_at = torch.arange(WINDOW, device=q.device)
    key_at = torch.arange(-WINDOW, 2 * WINDOW, device=q.device)
    offset = key_at - query_at[:, None]  # (w, 3w)
    # The pointer reaches less far than a window.
    near = offset.abs() <= reach
    if causal:
        near = near & (offset <= 0)
    counts = around(valid[..., None].to(q.dtype))
    near = near & (counts.transpose(-1, -2) > 0)
    # A large negative number, not -inf: a query may see no key at all, and then gets nothing.
    weights = score.masked_fill(~near, -1e9).softmax(-1)
    weights = weights.masked_fill(~near, 0).to(q.dtype)
    y = weights @ around(v)
    y = y.flatten(2, 3)
    return y[:, :, :T]


def content_attention(q, k, v, known):
    """Attention over everything, by one query for all tokens or one for each: q (B or 1, h, 1 or T,
    d), k and v (B, h, T, d), known (B, T) bool -> (B, h, 1 or T, d)"""
    score = q @ k.transpose(-1, -2)  # (B, h, 1 or T, T)
    score = score.float() / math.sqrt(q.shape[-1])
    is_padding = ~known[:, None, None]
    weights = score.masked_fill(is_padding, -1e9).softmax(-1)
    return weights.to(v.dtype) @ v


def split_heads(x, n):
    """(B, T, n * d) -> (B, n, T, d)"""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def join_heads(x):
    """(B, n, T, d) -> (B, T, n * d)"""
    return x.transpose(1, 2).flatten(2)


def windowed_attention(qkv, n):
    """Causal self-attention over a window by n heads: queries, keys and values (B, T, 3 * D) -> (B,
    T, D)"""
    heads = split_heads(qkv, 3 * n)
    q, k, v = heads.chunk(3, 1)  # (B, h, T, d)
    # Padding comes last, and is never looked at.
    valid = torch.ones_like(qkv[:1, None, :, 0], dtype=torch.bool)
    y = local_attention(q, k, v, valid, WINDOW, causal=True)
    return join_heads(y)


class SelfAttention(nn.Module):
    """Causal self-attention over a window, with pre-norm and residual: (B, T, D) -> (B, T, D)"""

    def __init__(self, c):
        super().__init__()
        self.n_head = c.n_head
        self.windowed_attention = windowed_attention  # or a faster one
        self.norm = nn.RMSNorm(c.d_model)
        self.qkv = nn.Linear(c.d_model, 3 * c.d_model, bias=False)
        self.out_proj = nn.Linear(c.d_model, c.d_model, bias=False)

    def forward(self, x, pace=None):
        qkv = self.qkv(self.norm(x))
        return x + self.out_proj(self.windowed_attention(qkv, self.n_head))


class CrossAttention(nn.Module):
    """From the answer to the question. Question and answer share a clock, and the answer's tokens
    all start out alike, so one query is enough. Clock heads rotate it to each token's time and look
    around that time; content heads see the whole question. One more clock head, the pointer,
    fetches frames as they are. It goes by time alone: what sounds may be like nothing it knows.

    query (1, 1, D), memory (B, T, D), frames (B, T, patch * F), valid (B, T), perhaps a
    lessons.Hiding -> (B, T, D), pointed-at frames (B, T, patch * F)"""

    def __init__(self, c):
        super().__init__()
        d = c.d_model // c.n_head
        self.n_head = c.n_head
        self.local_attention = local_attention  # or faster ones
        self.content_attention = content_attention
        self.norm = nn.RMSNorm(c.d_model)
        self.memory_norm = nn.RMSNorm(c.d_model)
        self.q = nn.Linear(c.d_model, c.d_model + d, bias=False)
        self.k = nn.Linear(c.d_model, c.d_model, bias=False)
        self.pointer_key = nn.Parameter(torch.empty(d))  # the same for every token
        self.v = nn.Linear(c.d_model, c.d_model, bias=False)
        self.out_proj = nn.Linear(c.d_model, c.d_model, bias=False)

    def point_straight(self, start):
        """Let the pointer look straight across, given the decoder's query (D,)"""
        query = self.q(self.norm(start))
        self.pointer_key.copy_(query[len(start):])

    def forward(self, query, memory, frames, valid, hiding=None):
        memory = self.memory_norm(memory)
        found, own, known = memory, memory, valid
        if hiding is not None:
            # Content finds another question's memory, and so does the clock, where it may not see.
            found = memory[hiding.neighbour]
            known = valid[hiding.neighbour]
            decoy = found + hiding.noise
            own = torch.where(hiding.visible[..., None], memory, decoy)
        q = split_heads(self.q(self.norm(query)), self.n_head + 1)
        half = self.n_head // 2
        by_content, by_clock = q.split((half, half + 1), 1)
        content = self.by_content(by_content, found, known, own)
        clock, pointed = self.by_clock(by_clock, own, frames, valid[:, None])
        y = torch.cat([content.expand_as(clock), clock], 1)
        return self.out_proj(join_heads(y)), pointed

    def by_content(self, q, found, known, own):
        """The first half of the heads: q (1, h, 1, d) over all that is found (B, T, D), as far as
        it is known (B, T) -> (B, h, 1 or T, d)"""
        h = q.shape[1]
        k = F.linear(found, self.k.weight.chunk(2)[0])
        v = F.linear(found, self.v.weight.chunk(2)[0])
        k, v = split_heads(k, h), split_heads(v, h)  # (B, h, T, d)
        q = self.content_query(q, own)
        return self.content_attention(q, k, v, known)

    def by_clock(self, q, own, frames, valid):
        """The other half, and the pointer, which is one more such head and reaches less far:
        q (1, h + 1, 1, d) -> (B, h, T, d), pointed-at frames (B, T, patch * F)"""
        h = q.shape[1] - 1
        k = F.linear(own, self.k.weight.chunk(2)[1])
        v = F.linear(own, self.v.weight.chunk(2)[1])
        k, v = split_heads(k, h), split_heads(v, h)
        pointer_key = self.pointer_key.to(k.dtype)
        pointer_key = pointer_key[None, None, None]  # (1, 1, 1, d)
        clock_q, pointer_q = q.split((h, 1), 1)
        clock = self.local_attention(clock_q, k, v, valid, WINDOW)
        frames = frames[:, None]
        pointed = self.local_attention(pointer_q, pointer_key, frames, valid, POINTER_WINDOW)
        return clock, pointed[:, 0]

    def content_query(self, query, memory):
        """(1, h, 1, d): all tokens of the answer ask alike"""
        return query


# --- the model ---

class Answer(NamedTuple):
    frames: torch.Tensor          # (B, T * patch, F) log magnitudes of what is played
    logits: torch.Tensor          # (B, T, n_symbols + 1) which symbol each token plays, or none
    halt: torch.Tensor            # (B,) a logit that this is the answer; None without halting
    so_far: torch.Tensor = None   # (B, T, n_so_far) what the question comes to, in training only


class MiniJMamba(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        layer = part_named(c.layer)
        self.run_layers = run_layers  # or a faster one
        self.spectrum = Spectrum()
        if c.front == 'stft':
            self.embed = nn.Linear(c.patch * N_BINS, c.d_model)
        else:
            self.embed = part_named(c.front)(c)
        self.encoder = nn.ModuleList(layer(c) for _ in range(c.n_encoder))
        self.start = nn.Parameter(torch.empty(c.d_model))  # the decoder's query
        self.cross = part_named(c.cross)(c)
        self.decoder = nn.ModuleList(layer(c) for _ in range(c.n_decoder))
        self.self_attention = part_named(c.self_attention)(c)
        self.norm = nn.RMSNorm(c.d_model)
        self.frames = nn.Linear(c.d_model, c.patch * N_BINS)
        places = c.points_at.split(',')
        self.gate = nn.Linear(c.d_model, c.patch * len(places))
        self.logits = nn.Linear(c.d_model, c.n_symbols + 1)  # the last one: no symbol
        self.so_far = nn.Linear(c.d_model, c.n_so_far)
        self.halt = nn.Linear(c.d_model, 1) if c.halting else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """All of it, except the norms (1) and D (1), which keep what they were made with"""
        c = self.config
        depth = c.n_encoder + c.n_decoder + 2
        for name, p in self.named_parameters():
            if name.endswith('bias') and 'dt_bias' not in name:
                nn.init.zeros_(p)
            elif p.dim() == 2:
                fan_in = D_CONV if 'conv' in name else p.shape[1]
                smaller = math.sqrt(depth) if 'out_proj' in name else 1
                nn.init.normal_(p, std=fan_in ** -0.5 / smaller)
        nn.init.zeros_(self.frames.weight)  # silence, until something new is to be played
        nn.init.normal_(self.start)
        self.cross.point_straight(self.start)
        for layer in self.mamba_layers():
            log_dt = torch.empty_like(layer.dt_bias)
            dt = log_dt.uniform_(math.log(1e-2), 0).exp()
            layer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
            layer.A_log.uniform_(1, 16).log_()

    def mamba_layers(self):
        return [layer for layer in self.modules() if isinstance(layer, Mamba2)]

    def hand_in(self, **faster):
        """Take faster functions in the place of those that the model or a part of it calls by these
        names, such as mixer, local_attention or hear"""
        for part in self.modules():
            for name in faster.keys() & set(dir(part)):
                setattr(part, name, faster[name])

    def whole_tokens(self, question):
        """(B, S) -> the same with silence up to a whole token"""
        n_missing = -question.shape[1] % self.config.token
        return F.pad(question, (0, n_missing))

    def hear(self, question):
        """(B, S) -> log magnitudes (B, T, patch * F)"""
        question = self.whole_tokens(question).float()
        # bfloat16 has too few digits for this; float16 has those of TF32, and half the bytes.
        half = question.is_cuda and torch.is_autocast_enabled('cuda')
        with torch.autocast(question.device.type, torch.float16, half):
            spectrum = self.spectrum.stft(question)
        return self.in_tokens(spectrum.float())

    def in_tokens(self, spectrum):
        """(B, frames, 2, F) -> log magnitudes (B, T, patch * F)"""
        magnitude = self.spectrum.magnitude(spectrum)
        frames = self.spectrum.log(magnitude)
        return frames.unflatten(1, (-1, self.config.patch)).flatten(2)

    def pace(self, frames):
        """(B, T, patch * F) -> (B, T, 1): how fast time passes, not at all in a pause"""
        if not self.config.freeze:
            return torch.ones_like(frames[..., :1])
        by_frame = frames.unflatten(-1, (self.config.patch, -1))
        return self.spectrum.sounds(by_frame).amax(-2)

    def encode(self, frames, question=None):
        """(B, T, patch * F), and for other fronts (B, S) -> (B, T, D); t has heard nothing later"""
        if self.config.front == 'stft':
            x = self.embed(frames)
        else:
            x = self.embed(frames, self.whole_tokens(question))
        # The residual stream stays fp32 under autocast.
        x = x.float()
        return self.run_layers(self.encoder, x, self.pace(frames))

    def forward(self, question, lengths, may_generate=None, hiding=None):
        """Waveforms (B, S) at 16 kHz and how many samples of each count, (B,) -> Answer. Training
        may say which frames may_generate, (B, T * patch), as all others must be pointed at, and
        give a lessons.Hiding."""
        frames = self.hear(question)
        memory = self.encode(frames, question)
        answer = self.answer(memory, frames, lengths, may_generate, hiding)
        return answer._replace(so_far=self.so_far(memory))

    def answer(self, memory, frames, lengths, may_generate=None, hiding=None):
        """The decoder: memory (B, T, D), its frames (B, T, patch * F) -> Answer"""
        c, T = self.config, frames.shape[1]
        at = torch.arange(T, device=frames.device)
        n = (lengths + c.token - 1) // c.token  # tokens that count
        n = n.clamp(1, T)[:, None]
        valid = at < n
        # Frames to be copied lose their noise here; otherwise generated frames have the lower loss,
        # and the model learns to generate everything.
        by_frame = frames.unflatten(2, (c.patch, -1)).flatten(1, 2)
        tones = self.spectrum.squelch(by_frame)
        to_copy = self.elsewhere(tones)  # (B, T * patch, places, F)
        to_copy = to_copy.unflatten(1, (-1, c.patch)).flatten(2)
        # The query knows nothing of the question: the encoder's last state after three divisors,
        # say, was never trained.
        query = self.start[None, None]
        x, copied = self.cross(query, memory, to_copy, valid, hiding)
        x = query + x

        # The decoder's states stand still where the encoder's do.
        pace = self.pace(frames)
        half = len(self.decoder) // 2
        # The first half of the decoder runs from end to start, as a carry does; padding stays
        # behind the rest. Then all is turned back.
        mirrored = torch.where(valid, n - 1 - at, at)[..., None]
        x = x.gather(1, mirrored.expand_as(x))
        x = self.run_layers(self.decoder[:half], x, pace.gather(1, mirrored))
        x = x.gather(1, mirrored.expand_as(x))
        x = self.self_attention(x)
        x = self.run_layers(self.decoder[half:], x, pace)
        x = self.norm(x)
        halt = None
        if c.halting:  # It is the answer unless a token says that it goes on.
            goes_on = self.halt(x)[..., 0]
            goes_on = goes_on.masked_fill(~valid, -math.inf)
            halt = -goes_on.amax(1)
        frames = self.play(x, copied, may_generate)
        return Answer(frames, self.logits(x), halt)

    def elsewhere(self, frames):
        """Frames (B, n, F), 0 where nothing sounds -> what stands at each of config.points_at,
        (B, n, places, F): at the same time; at the end, as far before the last tone's end as this
        is behind the first one's start; and again, from a gap after the last tone on"""
        n = frames.shape[1]
        at = torch.arange(n, device=frames.device)
        # The first and the last frame of all that sounds
        sounds = frames.amax(2) > 0
        first = torch.where(sounds, at, n).amin(1, keepdim=True)
        last = torch.where(sounds, at, -1).amax(1, keepdim=True)
        gap = self.config.patch
        times = {
            'end': first + last - at,
            'again': at - (last - first) - gap,
        }
        places = []
        for place in self.config.points_at.split(','):
            if place == 'same':
                places.append(frames)
                continue
            # Beyond the ends there is silence.
            time = times[place]
            inside = (time >= 0) & (time < n)
            index = time.clamp(0, n - 1)[..., None]
            there = frames.gather(1, index.expand_as(frames))
            places.append(there * inside[..., None])
        return torch.stack(places, 2)

    def play(self, x, copied, may_generate):
        """Tokens (B, T, D), frames pointed at (B, T, patch * places * F) -> answer frames
        (B, T * patch, F)"""
        c = self.config
        made = self.frames(x)
        made = made.unflatten(-1, (c.patch, -1))  # (B, T, patch, F)
        if may_generate is not None:
            may = may_generate.unflatten(1, (-1, c.patch))
            made = made * may[..., None]
        if c.pointer:
            # A share for each place, and the rest for what is generated
            shares = self.gate(x)
            shares = shares.unflatten(-1, (c.patch, -1))
            shares = F.pad(shares, (0, 1)).softmax(-1)
            places = shares.shape[-1] - 1
            to_places, to_made = shares[..., None].split((places, 1), -2)
            copied = copied.unflatten(-1, (c.patch, places, -1))
            copied = (to_places * copied).sum(-2)
            made = to_made[..., 0, :] * made + copied
        return made.flatten(1, 2)
