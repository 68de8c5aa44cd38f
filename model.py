"""
Mini-JMamba: a waveform goes in, a waveform comes out. The whole model in plain PyTorch; kernels.py
holds a faster way through the middle of a Mamba-2 layer, for GPUs.

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
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from kernels import KERNEL_FROM, ShortMixer, kernel_missing, short_mixer_fits, ssd_kernel

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
    layer: str = 'mamba2'   # of encoder and decoder; in baselines.py: transformer, lstm, attention
    attention: str = 'both'  # or cross, self, none, random, token: see baselines.py
    front: str = 'stft'     # what the encoder hears; or mel, filters, for comparison
    ssd: str = 'auto'       # the scan: torch, mamba_ssm, or auto: whichever is the fastest
    n_symbols: int = 27     # for an auxiliary loss only; answers are never read from the logits
    n_so_far: int = 102     # for another one: what a question comes to so far

    def __post_init__(self):
        self.d_inner = EXPAND * self.d_model
        self.token = self.patch * HOP  # samples
        # The middle of what a token's frames hear, in samples after the token's start
        self.middle = (self.token + HOP - WIN_LENGTH) / 2
        for key, divisor in {'d_model': 2 * self.n_head, 'n_head': 2, 'n_encoder': 1,
                             'n_decoder': 2, 'd_state': 1, 'head_dim': 1, 'patch': 1}.items():
            value = getattr(self, key)
            if value < 1 or value % max(divisor, 1):
                raise ValueError(f"{key} must be a positive multiple of {divisor}, not {value}")
        if self.d_inner % self.head_dim:
            raise ValueError(f"head_dim must divide {self.d_inner}, not be {self.head_dim}")
        if not set(self.points_at.split(',')) <= {'same', 'end', 'again'}:
            raise ValueError(f"points_at are some of same, end, again, not {self.points_at!r}")
        if not 0 <= self.counting <= 1:
            raise ValueError(f"counting must lie between 0 and 1, not {self.counting}")


# --- sound to frames and back ---

class Spectrum(nn.Module):
    """STFT and its inverse as matrix products with hop-sized blocks of sound. Frame t ends with
    sample (t + 1) * HOP, so no frame hears the future. A tone of amplitude a peaks at |S| = a.
    Spectra are (B, frames, 2, F): real parts, imaginary parts."""

    def __init__(self):
        super().__init__()
        n = torch.arange(3 * HOP, dtype=torch.float64) - (3 * HOP - WIN_LENGTH)
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * (n + 0.5) / WIN_LENGTH)
        window = torch.where(n >= 0, hann, 0.0)
        k = torch.arange(N_BINS, dtype=torch.float64)
        angle = 2 * math.pi / N_FFT * n[:, None] * k
        basis = torch.cat([angle.cos(), -angle.sin()], 1) * window[:, None]  # (3 hop, 2F)
        basis = basis * (k >= N_DEAF).repeat(2)
        gain = window.sum() / 2
        # The least-squares inverse (Griffin and Lim, 1984): windowed frames, added up, over the
        # sum of squared windows. Every bin but the outermost has a mirror image.
        overlap = window.square().view(3, HOP).sum(0).repeat(3)[:, None]
        images = torch.where((k == 0) | (k == N_FFT // 2), 1.0, 2.0).repeat(2)
        inverse = basis * gain * images / N_FFT / overlap
        self.register_buffer('analysis', (basis / gain).float(), persistent=False)
        self.register_buffer('synthesis', inverse.T.float(), persistent=False)
        # As many bins on either side, or noise that falls off would pass for low tones.
        near = (k - k[:, None]).abs() <= (k - N_DEAF).clamp(0, N_AROUND)
        self.register_buffer('near', (near / near.sum(0)).float(), persistent=False)

    def stft(self, wave):
        """(B, S), S a multiple of HOP -> (B, S / HOP, 2, F)"""
        blocks = F.pad(wave, (2 * HOP, 0)).unfold(1, 3 * HOP, HOP)
        blocks = blocks.contiguous()  # or a CPU would multiply row by row
        return (blocks @ self.analysis).unflatten(2, (2, -1))

    def istft(self, spectrum):
        """(B, frames, 2, F) -> (B, frames * HOP); no frame is taken to follow the last"""
        blocks = F.pad(spectrum.flatten(2) @ self.synthesis, (0, 0, 0, 2))
        first, second, third = blocks.split(HOP, 2)
        return (first[:, 2:] + second[:, 1:-1] + third[:, :-2]).flatten(1)

    def magnitude(self, spectrum):
        """(..., 2, F) -> (..., F). The small constant keeps the gradient of silence finite."""
        return (spectrum.square().sum(-2) + 1e-12).sqrt()

    def log(self, magnitude):
        return torch.log1p(COMPRESS * magnitude)

    def exp(self, frames):
        return torch.expm1(frames.clamp(0, 12)) / COMPRESS

    def noise(self, frames, over=4):
        """Log magnitudes (..., F) -> what noise reaches in each bin: `over` times what is usual
        around it, in the mean of the logarithms, which one tone changes little"""
        return self.log(over * self.exp(frames.float() @ self.near))

    def sounds(self, frames):
        """Log magnitudes (..., F) -> (..., 1): 0 in silence and noise, 1 from -24 dB of full scale
        on, and in noise from twice what it reaches"""
        over = frames - self.noise(frames).clamp(min=1)
        return over.amax(-1, keepdim=True).clamp(0, 1)

    def squelch(self, frames):
        """Log magnitudes (B, frames, F) without frames and bins that are noise, frames under -35 dB
        and bins under -42 dB: no tones. Over five frames noise varies less than a tone does. Nor
        does an echo count, in which a bin has only fallen for the last 100 ms."""
        by_bin = frames.transpose(1, 2)
        by_bin = F.avg_pool1d(by_bin, 5, 1, 2, count_include_pad=False)
        smooth = by_bin.transpose(1, 2)
        noise = self.noise(smooth, 2.5)
        sounds = (smooth > noise.clamp(min=1)).any(-1, keepdim=True)

        before = F.pad(by_bin, (10, 0))
        high = F.max_pool1d(before, 11, 1)
        low = -F.max_pool1d(-before, 11, 1)
        new = (by_bin > high - 0.25) | (by_bin > low + 0.6)
        new = F.max_pool1d(new.to(frames.dtype), 5, 1, 2).transpose(1, 2)  # with its fades
        return frames * new * (sounds & (smooth > noise.clamp(min=0.6)))

    def with_phase(self, magnitude, spectrum):
        """`magnitude` (..., F) with the phase of `spectrum` (..., 2, F)"""
        return spectrum * (magnitude / self.magnitude(spectrum)).unsqueeze(-2)

    def guess_phase(self, magnitude):
        """Magnitudes (B, frames, F) -> spectrum. Its phase advances from frame to frame by the
        frequency of the frame's highest peak, which is exact for one steady tone (after SPSI:
        Beauregard, Harish and Wyse, 2015)."""
        k = magnitude[..., 1:-1].argmax(-1, keepdim=True) + 1
        log = magnitude.clamp(min=1e-6).log()
        left, peak, right = (log.gather(-1, k + i) for i in (-1, 0, 1))
        curve = (2 * (left - 2 * peak + right)).clamp(max=-1e-6)
        shift = (left - right) / curve  # to the vertex of the parabola through the three
        shift = shift.clamp(-0.5, 0.5)
        # In turns; whole bins are added up as integers, which lose no digits
        whole = (HOP * k).cumsum(1) % N_FFT / N_FFT
        turns = whole + HOP / N_FFT * (shift.cumsum(1) - (k + shift) / 2)  # at the window's middle
        middle = 2 * math.pi * (turns % 1)
        cos, sin = middle.cos(), middle.sin()
        # A bin counts its phase from the window's start, half a window before its middle.
        lag = torch.arange(N_BINS, device=k.device) * (math.pi / N_FFT * (WIN_LENGTH - 1))
        c, s = lag.cos(), lag.sin()
        return magnitude[..., None, :] * torch.stack([cos * c + sin * s, sin * c - cos * s], -2)

    def wave(self, magnitude, heard):
        """Magnitudes (B, frames, F) -> waveforms (B, frames * HOP). The phase is that of the same
        frame of the spectrum heard (B, frames, 2, F), if that sounds alike, or else a guess. After
        12 guesses at its phase a tone would be 10 ms longer."""
        difference = (magnitude - self.magnitude(heard)).abs().amax(-1)
        alike = (difference < 0.5 * magnitude.amax(-1))[..., None, None]
        guess = self.guess_phase(magnitude)
        spectrum = torch.where(alike, self.with_phase(magnitude, heard), guess)
        # One iteration of Griffin and Lim
        spectrum = self.with_phase(magnitude, self.stft(self.istft(spectrum)))
        return self.istft(spectrum)


# --- Mamba-2 ---

def ssd(x, dt, A, B, C, chunk=CHUNK):
    """The scan of Mamba-2 (Dao and Gu, 2024, listing 1), by matrix products within chunks:

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t

    x (B, T, H, P), dt (B, T, H) positive and A (H,) not positive, both fp32 or better, B and C
    (B, T, N), shared by the heads -> y (B, T, H, P)"""
    T, H, P = x.shape[1:]
    n = -(-T // chunk)  # chunks, of equal length
    Q = -(-T // n)
    decay = dt * A
    x = (x * dt[..., None]).to(x.dtype)
    if T % Q:
        rows = (0, n * Q - T)
        x = F.pad(x, (0, 0, 0, 0, *rows))
        decay, B, C = (F.pad(t, (0, 0, *rows)) for t in (decay, B, C))
    x, decay, B, C = (t.unflatten(1, (n, Q)) for t in (x, decay, B, C))  # (B, n, Q, ...)

    # Within a chunk: what came in at token j reaches token i >= j, decayed by the tokens between.
    decay = decay.cumsum(2)  # (B, n, Q, H), from the start of the chunk
    by_head = decay.transpose(2, 3)  # (B, n, H, Q)
    past = torch.ones(Q, Q, dtype=torch.bool, device=x.device).tril()
    between = by_head[..., :, None] - by_head[..., None, :]
    # -inf goes in before exp: what lies in the future would overflow.
    L = between.masked_fill(~past, -math.inf).exp()  # (B, n, H, Q, Q)
    scores = (C @ B.transpose(2, 3))[:, :, None] * L
    y = (scores.to(x.dtype) @ x.transpose(2, 3)).transpose(2, 3)  # (B, n, Q, H, P)

    # Between chunks: the states that earlier chunks leave behind.
    if n > 1:
        to_end = (decay[:, :, -1:] - decay).exp()[..., None].to(x.dtype)
        left = B.transpose(2, 3) @ (x * to_end).flatten(3)  # (B, n, N, HP)
        total = by_head[..., -1].transpose(1, 2).cumsum(2)  # (B, H, n)
        before = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
        between = F.pad(total, (1, -1))[..., :, None] - total[..., None, :]
        reach = between.masked_fill(~before, -math.inf).exp().to(x.dtype)
        state = torch.einsum('bhij,bjnhp->binhp', reach, left.unflatten(3, (H, P)))
        from_start = decay.exp()[..., None].to(x.dtype)
        y = y + (C @ state.flatten(3)).unflatten(3, (H, P)) * from_start
    return y.flatten(1, 2)[:, :T]


def causal_conv(x, weight, bias):
    """SiLU of a depthwise convolution over the last K tokens: x (B, T, C), weight (K, C), bias (C,)
    -> (B, T, C)"""
    K, T = len(weight), x.shape[1]
    padded = F.pad(x, (0, 0, K - 1, 0))
    y = sum(padded[:, k:k + T] * weight[k] for k in range(K))
    return F.silu(y + bias).to(x.dtype)


def gate_and_norm(y, z):
    """The scan's y (..., H, P) and the gate z (..., HP) -> (..., HP). The norm is over each head:
    one that counts far must not drown the others."""
    y = y.float() * F.silu(z).unflatten(-1, y.shape[-2:])
    return F.rms_norm(y, y.shape[-1:], eps=1e-5).flatten(-2)


def mixer(zxBCdt, pace, weight, bias, dt_bias, A, D, P, N, scan=ssd):
    """All of a Mamba-2 layer between its two projections, with any scan(x, dt, A, B, C):
    (B, T, W) -> (B, T, HP). kernels.ShortMixer is the same in Triton."""
    H = len(A)
    z, xBC, dt = zxBCdt.tensor_split((H * P, 2 * (H * P + N)), -1)
    dt = F.softplus(dt[..., :H].float() + dt_bias) * pace
    x, B, C = causal_conv(xBC, weight, bias).split([H * P, N, N], -1)
    x = x.unflatten(-1, (H, P))  # (B, T, H, P)
    return gate_and_norm(scan(x, dt, A, B, C) + D[:, None] * x, z)


class Mamba2(nn.Module):
    """One Mamba-2 block, with its pre-norm and residual: (B, T, D) -> (B, T, D), causal. `pace`
    (B, T, 1) scales the steps of time: where it is 0, the state stays as it is."""

    def __init__(self, c):
        super().__init__()
        self.c = c
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

    def A(self):
        return F.pad(-self.A_log.exp(), (self.forever, 0))  # (H,)

    def forward(self, u, pace):
        c = self.c
        zxBCdt = self.in_proj(self.norm(u))
        inputs = (zxBCdt, pace, self.conv_weight, self.conv_bias, self.dt_bias, self.A(), self.D,
                  c.head_dim, c.d_state)
        if c.ssd == 'auto' and short_mixer_fits(zxBCdt, c.head_dim, c.d_state):
            return u + self.project(ShortMixer.apply(*inputs))
        return u + self.project(mixer(*inputs, self.scan(u)))

    def scan(self, u):
        """The fastest scan for u (B, T, D)"""
        from_tokens = {'auto': KERNEL_FROM, 'torch': math.inf, 'mamba_ssm': 0}[self.c.ssd]
        by_kernel = u.is_cuda and u.shape[1] >= from_tokens and not kernel_missing()
        return ssd_kernel if by_kernel else ssd

    def project(self, y):
        """(..., HP) -> (..., D). The norm's weights go into out_proj: fewer passes over memory."""
        return F.linear(y, self.out_proj.weight * self.gate_norm)


# --- attention ---

def rotary(x):
    """Rotate pairs of (B, h, T, d) by the clock (Su et al., 2021), every 6 to 400 tokens"""
    half = x.shape[-1] // 2
    rate = 64.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.split(half, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def around(x):
    """(B, h, T, d) -> (B, h, T / w, 3w, d): each window with the one before and the one after"""
    w = WINDOW
    return F.pad(x, (0, 0, w, w + -x.shape[2] % w)).unfold(2, 3 * w, w).transpose(-1, -2)


def local_attention(q, k, v, valid, reach, causal=False):
    """Attention within `reach` <= WINDOW tokens, in time linear in T: q and k (B, h, T, d), v
    (B, h, T, any), valid (B or 1, 1, T) bool -> (B, h, T, any)"""
    w, T = WINDOW, q.shape[2]
    q = F.pad(q, (0, 0, 0, -T % w)).unflatten(2, (-1, w))  # (B, h, T / w, w, d)
    score = (q @ around(k).transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    query_at = torch.arange(w, device=q.device)
    offset = torch.arange(-w, 2 * w, device=q.device) - query_at[:, None]  # of the key, (w, 3w)
    near = offset.abs() <= reach
    if causal:
        near = near & (offset <= 0)
    near = near & (around(valid[..., None].to(q.dtype)).transpose(-1, -2) > 0)
    # A large negative number, not -inf: a query may see no key at all, and then gets nothing.
    weights = score.masked_fill(~near, -1e9).softmax(-1).masked_fill(~near, 0)
    return (weights.to(q.dtype) @ around(v)).flatten(2, 3)[:, :, :T]


def split_heads(x, n):
    """(B, T, n * d) -> (B, n, T, d)"""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Causal self-attention over a window, with pre-norm and residual: (B, T, D) -> (B, T, D)"""

    def __init__(self, c):
        super().__init__()
        self.n_head = c.n_head
        self.norm = nn.RMSNorm(c.d_model)
        self.qkv = nn.Linear(c.d_model, 3 * c.d_model, bias=False)
        self.out_proj = nn.Linear(c.d_model, c.d_model, bias=False)

    def forward(self, x, pace=None):
        qkv = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (split_heads(t, self.n_head) for t in qkv)
        # Padding comes last, and is never looked at.
        valid = torch.ones(1, 1, x.shape[1], dtype=torch.bool, device=x.device)
        y = local_attention(rotary(q), rotary(k), v, valid, WINDOW, causal=True)
        return x + self.out_proj(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """From the answer to the question. Question and answer share a clock, and the answer's tokens
    all start out alike, so one query is enough. Clock heads rotate it to each token's time and look
    around that time; content heads see the whole question. One more clock head, the pointer,
    fetches frames as they are. It goes by time alone, as what sounds then may be like nothing that
    the model knows.

    query (1, 1, D), memory (B, T, D), frames (B, T, patch * F), valid (B, T), perhaps a
    losses.Hiding -> (B, T, D), pointed-at frames (B, T, patch * F)"""

    def __init__(self, c):
        super().__init__()
        d = c.d_model // c.n_head
        self.n_head = c.n_head
        self.norm = nn.RMSNorm(c.d_model)
        self.memory_norm = nn.RMSNorm(c.d_model)
        self.q = nn.Linear(c.d_model, c.d_model + d, bias=False)
        self.k = nn.Linear(c.d_model, c.d_model, bias=False)
        self.pointer_key = nn.Parameter(torch.empty(d))  # the same for every token
        self.v = nn.Linear(c.d_model, c.d_model, bias=False)
        self.out_proj = nn.Linear(c.d_model, c.d_model, bias=False)

    def forward(self, query, memory, frames, valid, hiding=None):
        T, half = memory.shape[1], self.n_head // 2
        memory = self.memory_norm(memory)
        found, own, known = memory, memory, valid
        if hiding is not None:
            found, known = memory[hiding.neighbour], valid[hiding.neighbour]
            own = torch.where(hiding.visible[..., None], memory, found + hiding.noise)
        q = split_heads(self.q(self.norm(query)), self.n_head + 1)
        half_of_k, half_of_v = self.k.weight.chunk(2), self.v.weight.chunk(2)

        # Content: the first half of the heads
        k = split_heads(F.linear(found, half_of_k[0]), half)  # (B, h, T, d)
        v = split_heads(F.linear(found, half_of_v[0]), half)
        score = self.content_query(q[:, :half], own) @ k.transpose(-1, -2)  # (B, h, 1, T)
        score = score.float() / math.sqrt(q.shape[-1])
        weights = score.masked_fill(~known[:, None, None], -1e9).softmax(-1)
        content = weights.to(v.dtype) @ v

        # Clock: the second half
        k = split_heads(F.linear(own, half_of_k[1]), half)
        v = split_heads(F.linear(own, half_of_v[1]), half)

        # The pointer is one more clock head, which reaches less far.
        k = rotary(torch.cat([k, self.pointer_key.to(k.dtype).expand(len(k), 1, T, -1)], 1))
        q = rotary(q[:, half:].expand(-1, -1, T, -1))
        valid = valid[:, None]
        clock = local_attention(q[:, :half], k[:, :half], v, valid, WINDOW)
        pointed = local_attention(q[:, half:], k[:, half:], frames[:, None], valid, POINTER_WINDOW)
        y = torch.cat([content.expand(-1, -1, T, -1), clock], 1)
        return self.out_proj(y.transpose(1, 2).flatten(2)), pointed[:, 0]

    def content_query(self, query, memory):
        """(1, h, 1, d): all tokens of the answer ask alike"""
        return query


# --- the model ---

class MiniJMamba(nn.Module):
    def __init__(self, config, layer=Mamba2):
        super().__init__()
        c = self.config = config
        self.tool = None  # what it may call between passes: see think.py
        self.spectrum = Spectrum()
        self.embed = nn.Linear(c.patch * N_BINS, c.d_model)
        self.encoder = nn.ModuleList(layer(c) for _ in range(c.n_encoder))
        self.start = nn.Parameter(torch.empty(c.d_model))  # the decoder's query
        self.cross = CrossAttention(c)
        self.decoder = nn.ModuleList(layer(c) for _ in range(c.n_decoder))
        self.self_attention = SelfAttention(c)
        self.norm = nn.RMSNorm(c.d_model)
        self.frames = nn.Linear(c.d_model, c.patch * N_BINS)
        self.gate = nn.Linear(c.d_model, c.patch * len(c.points_at.split(',')))
        self.logits = nn.Linear(c.d_model, c.n_symbols + 1)  # the last one: no symbol
        self.so_far = nn.Linear(c.d_model, c.n_so_far)
        self.halt = nn.Linear(c.d_model, 1) if c.halting else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """All of it, except the norms (1) and D (1), which keep what they were made with"""
        c = self.config
        for name, p in self.named_parameters():
            if name.endswith('bias') and 'dt_bias' not in name:
                nn.init.zeros_(p)
            elif p.dim() == 2:
                fan_in = D_CONV if 'conv' in name else p.shape[1]
                depth = math.sqrt(c.n_encoder + c.n_decoder + 2) if 'out_proj' in name else 1
                nn.init.normal_(p, std=fan_in ** -0.5 / depth)
        nn.init.zeros_(self.frames.weight)  # silence, until something new is to be played
        nn.init.normal_(self.start)
        # The pointer looks straight across at first.
        query = self.cross.q(self.cross.norm(self.start))
        self.cross.pointer_key.copy_(query[c.d_model:])
        for layer in self.modules():
            if not isinstance(layer, Mamba2):
                continue
            dt = torch.empty_like(layer.dt_bias).uniform_(math.log(1e-2), math.log(1.0)).exp()
            layer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
            layer.A_log.copy_(torch.empty_like(layer.A_log).uniform_(1, 16).log())

    def hear(self, question):
        """(B, S), padded to whole tokens -> log magnitudes (B, T, patch * F)"""
        question = F.pad(question, (0, -question.shape[1] % self.config.token))
        # bfloat16 has too few digits for this; float16 has those of TF32, and half the bytes.
        half = question.is_cuda and torch.is_autocast_enabled('cuda')
        with torch.autocast(question.device.type, torch.float16, half):
            spectrum = self.spectrum.stft(question.float()).float()
        return self.in_tokens(spectrum)

    def in_tokens(self, spectrum):
        """(B, frames, 2, F) -> log magnitudes (B, T, patch * F)"""
        frames = self.spectrum.log(self.spectrum.magnitude(spectrum))
        return frames.unflatten(1, (-1, self.config.patch)).flatten(2)

    def pace(self, frames):
        """(B, T, patch * F) -> (B, T, 1): how fast time passes, not at all in a pause"""
        if not self.config.freeze:
            return torch.ones_like(frames[..., :1])
        return self.spectrum.sounds(frames.unflatten(-1, (self.config.patch, -1))).amax(-2)

    def encode(self, frames):
        """(B, T, patch * F) -> (B, T, D); what stands at t has heard nothing after t"""
        x = self.embed(frames).float()  # the residual stream stays fp32 under autocast
        pace = self.pace(frames)
        for layer in self.encoder:
            x = layer(x, pace)
        return x

    def forward(self, question, lengths, may_generate=None, hiding=None):
        """Waveforms (B, S) at 16 kHz and how many samples of each count, (B,) -> answer frames
        (B, T * patch, F), log magnitudes; symbol logits (B, T, n_symbols + 1); with halting a logit
        that this is the answer (B,), or None; logits on what the question comes to so far
        (B, T, n_so_far). Training may say which frames may_generate, (B, T * patch), as all others
        must be pointed at, and give a losses.Hiding."""
        frames = self.hear(question)
        memory = self.encode(frames)
        return *self.answer(memory, frames, lengths, may_generate, hiding), self.so_far(memory)

    def answer(self, memory, frames, lengths, may_generate=None, hiding=None):
        """The decoder: memory (B, T, D), its frames (B, T, patch * F) -> answer frames, symbol
        logits, whether this is the answer"""
        c, T = self.config, frames.shape[1]
        at = torch.arange(T, device=frames.device)
        n = ((lengths + c.token - 1) // c.token).clamp(1, T)[:, None]  # tokens that count
        valid = at < n
        # The query knows nothing of the question: the encoder's last state after three divisors,
        # say, was never trained. Frames to be copied lose their noise here; otherwise generated
        # frames have the lower loss, and the model learns to generate everything.
        query = self.start[None, None]
        copied = self.spectrum.squelch(frames.unflatten(2, (c.patch, -1)).flatten(1, 2))
        copied = self.elsewhere(copied).unflatten(1, (-1, c.patch)).flatten(2)
        x, copied = self.cross(query, memory, copied, valid, hiding)
        x = query + x

        pace, half = self.pace(frames), len(self.decoder) // 2
        # The first half runs from end to start, padding behind the rest; then all is turned back.
        turned = torch.where(valid, n - 1 - at, at)[..., None]
        x = x.gather(1, turned.expand_as(x))
        for layer in self.decoder[:half]:
            x = layer(x, pace.gather(1, turned))
        x = x.gather(1, turned.expand_as(x))
        x = self.self_attention(x)
        for layer in self.decoder[half:]:
            x = layer(x, pace)
        x = self.norm(x)  # It is the answer unless a token says that it goes on:
        halt = self.halt and -self.halt(x)[..., 0].masked_fill(~valid, -math.inf).amax(1)
        return *self.heads(x, copied, may_generate), halt

    def elsewhere(self, frames):
        """Frames (B, n, F), 0 where nothing sounds -> what stands at each of config.points_at,
        (B, n, places, F): at the same time; at the end, as far before the last tone's end as this
        is behind the first one's start; and again, from a gap after the last tone on"""
        n = frames.shape[1]
        at = torch.arange(n, device=frames.device)
        sounds = frames.amax(2) > 0
        first = torch.where(sounds, at, n).amin(1, keepdim=True)
        last = torch.where(sounds, at, -1).amax(1, keepdim=True)
        gap = self.config.patch
        times = {'end': first + last - at, 'again': at - (last - first) - gap}
        places = []
        for place in self.config.points_at.split(','):
            if place == 'same':
                places.append(frames)
                continue
            time = times[place]
            inside = (time >= 0) & (time < n)
            index = time.clamp(0, n - 1)[..., None].expand_as(frames)
            places.append(frames.gather(1, index) * inside[..., None])
        return torch.stack(places, 2)

    def heads(self, x, copied, may_generate):
        """Tokens (B, T, D), frames pointed at (B, T, patch * places * F) -> answer frames, symbol
        logits"""
        c = self.config
        made = self.frames(x).unflatten(-1, (c.patch, -1))
        if may_generate is not None:
            made = made * may_generate.unflatten(1, (-1, c.patch))[..., None]
        if c.pointer:
            # A share for each place, and the rest for what is generated
            shares = F.pad(self.gate(x).unflatten(-1, (c.patch, -1)), (0, 1)).softmax(-1)
            copied = copied.unflatten(-1, (c.patch, shares.shape[-1] - 1, -1))
            made = shares[..., -1:] * made + (shares[..., :-1, None] * copied).sum(-2)
        return made.flatten(1, 2), self.logits(x)

    @torch.no_grad()
    def pointer_weights(self, question):
        """One question (1, S) -> (T, T): where each token of the answer, a row, is fetched from"""
        memory = self.encode(self.hear(question))
        # What is fetched from each token is the token's own number.
        one_hot = torch.eye(memory.shape[1], device=memory.device)[None]
        valid = torch.ones_like(one_hot[0, :1], dtype=torch.bool)
        return self.cross(self.start[None, None], memory, one_hot, valid)[1][0]
