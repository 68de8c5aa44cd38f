"""
Mini-JMamba: a waveform goes in, a waveform comes out. The whole model, in one file that imports none of its siblings.

    question (B, S) samples
      | STFT magnitude, log-compressed; 5 frames of 10 ms make one token of 50 ms
      | 6 Mamba-2 layers: the encoder, causal
      | cross-attention: by clock, by content, and a pointer into the question's frames
      | 2 Mamba-2 layers, windowed self-attention, 2 Mamba-2 layers: the decoder
      | frames = gate * pointed-at frames + (1 - gate) * generated frames
      | phase, inverse STFT
    answer (B, S) samples, in the question's own time

Letters, as in the Mamba-2 paper (Dao and Gu, 2024, arXiv:2405.21060):
    B batch   S samples   T tokens   D d_model   H heads   P head_dim   N d_state   Q tokens in a chunk   F N_BINS
"""
import errno
import functools
import importlib.util
import math
import os
import sys
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

# Triton 3.6 and later let products of Hopper's own kind read beyond a tile that is 32 wide (triton-lang/triton issues 10486 and 11366).
# Those of the generation before are made in their place, in every Triton kernel of this process, mamba_ssm's too.
os.environ.setdefault('DISABLE_MMA_V3', '1')
try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU, no need
    triton = None

N_FFT = 512
WIN_LENGTH = 400    # samples: 25 ms
HOP = 160           # samples: 10 ms
N_BINS = 128        # spectral bins kept, 0-4 kHz: no tone is higher than 3.1 kHz
COMPRESS = 100.0    # c in log(1 + c |S|)
DITHER = 0.01       # standard deviation of the white noise behind what the encoder hears: it was not trained on digital silence
EXPAND = 2          # d_inner = EXPAND * d_model
D_CONV = 4          # taps of the short convolution; the Triton kernels know no other number
CHUNK = 64          # tokens that the scan takes at once
WINDOW = 16         # tokens that self-attention and attention by clock reach
POINTER_WINDOW = 4  # tokens that the pointer reaches


@dataclass
class JMambaConfig:
    d_model: int = 128
    n_encoder: int = 6        # Mamba-2 layers that hear the question
    n_decoder: int = 4        # Mamba-2 layers that play the answer, half of them after the self-attention
    d_state: int = 64
    head_dim: int = 32        # of a Mamba-2 head
    ssd: str = 'auto'         # the scan: torch, mamba_ssm (its kernel, on an NVIDIA GPU), or auto: whichever is the fastest
    freeze: bool = True       # the Mamba-2 states stand still while nothing sounds
    mamba: bool = True        # False: self-attention in the place of every Mamba-2 layer
    pointer: bool = True      # False: every frame is generated
    counting: float = 0.5     # share of the heads that never forget (decay exactly 1), so that they can count
    n_head: int = 4           # attention heads; of cross-attention's, half go by clock and half by content
    patch: int = 5            # frames in a token: 50 ms, three tokens a symbol
    n_symbols: int = 27       # for an auxiliary loss only; answers are never read from the logits
    n_so_far: int = 102       # for another one: remainders 0 to 98, and what brackets can be so far

    def __post_init__(self):
        for key, value in vars(self).items():
            if type(value) in (int, float) and value <= 0 and key != 'counting':
                raise ValueError(f"{key} must be positive, not {value}")
        for what, n, by, m in ((f'{EXPAND} * d_model', self.d_inner, 'head_dim', self.head_dim),
                               ('d_model', self.d_model, '2 * n_head', 2 * self.n_head),
                               ('n_head', self.n_head, '2', 2), ('n_decoder', self.n_decoder, '2', 2)):
            if n % m:
                raise ValueError(f"{what} = {n} must be a multiple of {by} = {m}")
        if not 0 <= self.counting <= 1:
            raise ValueError(f"counting = {self.counting} is a share and must lie between 0 and 1")
        if self.ssd not in ('auto', 'torch', 'mamba_ssm'):
            raise ValueError(f"ssd is auto, torch or mamba_ssm, not {self.ssd!r}")

    @property
    def d_inner(self):
        return EXPAND * self.d_model

    @property
    def token(self):
        """samples in a token"""
        return self.patch * HOP

    @property
    def middle(self):
        """the middle of what a token's frames hear, in samples after the token's start"""
        return (self.token + HOP - WIN_LENGTH) / 2


# --- sound to frames and back ---

class Spectrum(nn.Module):
    """STFT and its inverse as matrix products with HOP-sized blocks of sound, for the first F bins only.
    Frame t ends with sample (t + 1) * HOP, so no frame hears the future. A tone of amplitude a peaks at |S| = a.
    Spectra are (B, frames, 2, F): real parts, imaginary parts."""

    def __init__(self):
        super().__init__()
        n = torch.arange(3 * HOP, dtype=torch.float64) - (3 * HOP - WIN_LENGTH)  # position within the window
        window = torch.where(n >= 0, 0.5 - 0.5 * torch.cos(2 * math.pi * (n + 0.5) / WIN_LENGTH), 0.0)
        k = torch.arange(N_BINS, dtype=torch.float64)
        angle = 2 * math.pi / N_FFT * n[:, None] * k
        basis = torch.cat([angle.cos(), -angle.sin()], 1) * window[:, None]  # (3 HOP, 2F)
        gain = window.sum() / 2
        # least-squares inverse (Griffin and Lim, 1984): windowed frames, added up, over the sum of squared windows
        overlap = window.square().view(3, HOP).sum(0).repeat(3)[:, None]
        both_sides = torch.where((k == 0) | (k == N_FFT // 2), 1.0, 2.0).repeat(2)  # a bin and its mirror image
        self.register_buffer('analysis', (basis / gain).float(), persistent=False)
        self.register_buffer('synthesis', (basis * gain * both_sides / N_FFT / overlap).T.float(), persistent=False)

    def stft(self, wave, before=None):
        """(B, S), S a multiple of HOP -> (B, S / HOP, 2, F); before (B, 2 HOP) is what sounded before, silence if not given"""
        before = wave.new_zeros(len(wave), 2 * HOP) if before is None else before
        blocks = torch.cat([before, wave], 1).unfold(1, 3 * HOP, HOP)
        return (blocks @ self.analysis).unflatten(2, (2, -1))

    def istft(self, spectrum):
        """(B, frames, 2, F) -> (B, frames * HOP); no frame is taken to follow the last"""
        a, b, c = F.pad(spectrum.flatten(2) @ self.synthesis, (0, 0, 0, 2)).split(HOP, 2)
        return (a[:, 2:] + b[:, 1:-1] + c[:, :-2]).flatten(1)

    def magnitude(self, spectrum):
        """(..., 2, F) -> (..., F); the small constant keeps the gradient of silence finite"""
        return (spectrum.square().sum(-2) + 1e-12).sqrt()

    def log(self, magnitude):
        return torch.log1p(COMPRESS * magnitude)

    def exp(self, frames):
        return torch.expm1(frames.clamp(0, 12)) / COMPRESS

    def sounds(self, frames):
        """Log magnitudes (B, T, patch * F) -> 1 where a token has a tone, 0 in silence, (B, T, 1): from -35 to -24 dB of full scale"""
        return (frames.float().amax(-1, keepdim=True) - 1).clamp(0, 1)

    def squelch(self, frames):
        """Log magnitudes (..., F) without what is no tone: frames below -35 dB of full scale, and in all others what is below -42 dB"""
        return frames * ((self.sounds(frames) > 0) & (frames > 0.6))

    def with_phase(self, magnitude, spectrum):
        """`magnitude` (..., F) with the phase of `spectrum` (..., 2, F)"""
        return spectrum * (magnitude / self.magnitude(spectrum)).unsqueeze(-2)

    def guess_phase(self, magnitude):
        """Magnitudes (B, frames, F) -> spectrum with a phase that advances from frame to frame by the frequency of the
        frame's highest peak: exact for one steady tone (after SPSI: Beauregard, Harish and Wyse, 2015)."""
        k = magnitude[..., 1:-1].argmax(-1, keepdim=True) + 1
        left, peak, right = (magnitude.clamp(min=1e-6).log().gather(-1, k + i) for i in (-1, 0, 1))
        shift = (left - right) / (2 * (left - 2 * peak + right)).clamp(max=-1e-6)  # vertex of the parabola through the three
        omega = (k + shift.clamp(-0.5, 0.5)).double() * (2 * math.pi / N_FFT)  # (B, frames, 1) radians a sample
        middle = HOP * (omega.cumsum(1) - omega / 2) % (2 * math.pi)  # phase at the middle of the window
        cos, sin = middle.cos().to(magnitude.dtype), middle.sin().to(magnitude.dtype)
        # a bin sees it through a window that is symmetric about its middle, from the window's start
        bins = torch.arange(magnitude.shape[-1], device=magnitude.device) * (math.pi / N_FFT * (WIN_LENGTH - 1))
        c, s = bins.cos(), bins.sin()
        return torch.stack([magnitude * (cos * c + sin * s), magnitude * (sin * c - cos * s)], -2)

    def wave(self, magnitude, heard):
        """Magnitudes (B, frames, F) -> waveforms (B, frames * HOP), by one iteration of Griffin-Lim from the phase that the same frame of the
        spectrum heard (B, frames, 2, F) has, if that sounds alike, or else from guess_phase. Tones that are played again and again would
        blur at a guess: after 12 times they are 10 ms longer."""
        was = self.magnitude(heard)
        alike = (magnitude - was).abs().amax(-1) < 0.5 * magnitude.amax(-1)
        spectrum = torch.where(alike[..., None, None], self.with_phase(magnitude, heard), self.guess_phase(magnitude))
        return self.istft(self.with_phase(magnitude, self.stft(self.istft(spectrum))))


# --- Mamba-2 ---

def ssd(x, dt, A, B, C, chunk):
    """State space duality, the scan of Mamba-2 (Dao and Gu, 2024, listing 1), by matrix products within chunks:

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t

    x (B, T, H, P), dt (B, T, H) positive, A (H,) not positive (both fp32 or better), B and C (B, T, N), shared by the heads -> y (B, T, H, P)"""
    T, (H, P) = x.shape[1], x.shape[2:]
    n = -(-T // chunk)  # chunks, of equal length
    Q = -(-T // n)
    x, decay = (x * dt[..., None]).to(x.dtype), dt * A
    if T % Q:
        x, decay, B, C = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, n * Q - T)) for t in (x, decay, B, C))
    x, decay, B, C = (t.unflatten(1, (n, Q)) for t in (x, decay, B, C))  # (B, n, Q, ...)
    decay = decay.cumsum(2)  # (B, n, Q, H), from the start of the chunk
    by_head = decay.transpose(2, 3)  # (B, n, H, Q)
    past = torch.ones(Q, Q, dtype=torch.bool, device=x.device).tril()
    # -inf goes in before exp: what lies in the future would overflow
    L = (by_head[..., :, None] - by_head[..., None, :]).masked_fill(~past, -math.inf).exp()  # (B, n, H, Q, Q)
    y = ((C @ B.transpose(2, 3))[:, :, None] * L).to(x.dtype) @ x.transpose(2, 3)
    y = y.transpose(2, 3)  # (B, n, Q, H, P)
    if n > 1:  # the states (N, P) that earlier chunks leave behind
        total = by_head[..., -1].transpose(1, 2)  # (B, H, n)
        left = B.transpose(2, 3) @ (x * (decay[:, :, -1:] - decay).exp()[..., None].to(x.dtype)).flatten(3)  # (B, n, N, HP)
        before = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
        total = total.cumsum(2)
        reach = (F.pad(total, (1, -1))[..., :, None] - total[..., None, :]).masked_fill(~before, -math.inf).exp()
        state = torch.einsum('bhij,bjnhp->binhp', reach.to(x.dtype), left.unflatten(3, (H, P)))
        y = y + (C @ state.flatten(3)).unflatten(3, (H, P)) * decay.exp()[..., None].to(x.dtype)
    return y.flatten(1, 2)[:, :T]


def causal_conv(x, w, b):
    """SiLU of a depthwise convolution over the last K tokens: x (B, T, C), w (K, C), b (C,) -> (B, T, C)"""
    T = x.shape[1]
    late = lambda k: F.pad(x[:, :max(T - k, 0)], (0, 0, min(k, T), 0))  # by k tokens
    return F.silu(sum(late(len(w) - 1 - i) * tap for i, tap in enumerate(w)) + b).to(x.dtype)


# --- a Mamba-2 layer between its two products, for a sequence of up to SHORT tokens, in half precision on a GPU: in PyTorch each step of it is a
# --- pass over memory, here it is one for the convolution and one for the rest. f[grid](...) starts a program for each cell of the grid; a tensor
# --- comes as the address of its contiguous numbers, and what a mask leaves out is not read.
# --- W is the width of in_proj's output, HP that of the gate z in front ---

if triton:
    @triton.jit
    def sigmoid(z):
        """By the reciprocal root, which is one instruction; Triton divides by a slower one"""
        root = tl.rsqrt(1 + tl.exp(-z))
        return root * root

    @triton.jit
    def get(x, there):
        return tl.load(x, mask=there, other=0).to(tl.float32)

    @triton.jit
    def conv_forward(zxBCdt, w, b, y, T, W, C, HP: tl.constexpr, channels: tl.constexpr, span: tl.constexpr):
        """Some of the C channels of one example, for some tokens, one by one, with the last three at hand"""
        i, c, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * channels + tl.arange(0, channels), tl.program_id(2) * span
        there, before, x, y = c < C, c < C * (start > 0), zxBCdt + i * T * W + HP + c, y + i * T * C + c
        w0, w1, w2, w3 = get(w + c, there), get(w + C + c, there), get(w + 2 * C + c, there), get(w + 3 * C + c, there)
        bias, x1, x2, x3 = get(b + c, there), get(x + (start - 1) * W, before), get(x + (start - 2) * W, before), get(x + (start - 3) * W, before)
        for t in range(start, tl.minimum(start + span, T)):
            x0 = get(x + t * W, there)
            s = bias + w3 * x0 + w2 * x1 + w1 * x2 + w0 * x3
            tl.store(y + t * C, (s * sigmoid(s)).to(y.dtype.element_ty), mask=there)
            x1, x2, x3 = x0, x1, x2

    @triton.jit
    def conv_backward(zxBCdt, w, b, dy, dv, d, dwb, T, W, C, HP: tl.constexpr, H: tl.constexpr, channels: tl.constexpr, span: tl.constexpr):
        """The same, from the last token to the first, and before them the three that they reach. Behind the C channels d is given dv (B, H, T),
        the gradient of in_proj's dt, and zeros."""
        i, c, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * channels + tl.arange(0, channels), tl.program_id(2) * span
        end, there, x, d = tl.minimum(start + span + 3, T), c < C, zxBCdt + i * T * W + HP + c, d + i * T * W + HP + c
        w0, w1, w2, w3 = get(w + c, there), get(w + C + c, there), get(w + 2 * C + c, there), get(w + 3 * C + c, there)
        x0, x1, x2 = get(x + (end - 1) * W, there), get(x + (end - 2) * W, c < C * (end > 1)), get(x + (end - 3) * W, c < C * (end > 2))
        # three zeros, not one three times: g2 = g1 would look like a loop that leaves g2 as it is, and Triton take it for a constant; d0 to db are added to
        g1, g2, g3 = tl.zeros([channels], tl.float32), tl.zeros([channels], tl.float32), tl.zeros([channels], tl.float32)
        bias, d0, d1, d2, d3, db = get(b + c, there), g1, g1, g1, g1, g1
        for back in range(end - start):
            t = end - 1 - back
            own = t < start + span
            x3 = get(x + (t - 3) * W, c < C * (t > 2))
            s = bias + w3 * x0 + w2 * x1 + w1 * x2 + w0 * x3
            open_ = sigmoid(s)
            g0 = get(dy + (i * T + t) * C + c, there) * (open_ + s * open_ * (1 - open_))
            of_dt = get(dv + (i * H + c - C) * T + t, (c >= C) & (c < C + H))
            tl.store(d + t * W, (w3 * g0 + w2 * g1 + w1 * g2 + w0 * g3 + of_dt).to(d.dtype.element_ty), mask=HP + c < W * own)
            g = g0 * own
            d3, d2, d1, d0, db = d3 + g * x0, d2 + g * x1, d1 + g * x2, d0 + g * x3, db + g
            x0, x1, x2, g1, g2, g3 = x1, x2, x3, g0, g1, g2
        dwb += (i * tl.num_programs(2) + tl.program_id(2)) * 5 * C + c
        tl.store(dwb, d0, mask=there)
        tl.store(dwb + C, d1, mask=there)
        tl.store(dwb + 2 * C, d2, mask=there)
        tl.store(dwb + 3 * C, d3, mask=there)
        tl.store(dwb + 4 * C, db, mask=there)

    @triton.jit
    def kept(step, total, t, T):
        """A head's share of what comes in at token j in the state at token i >= j, (TP, TP), from its steps and the sums of its decays, (T,)"""
        i, j = t[:, None], t[None, :]
        passed = tl.load(total + i, mask=i < T, other=0) - tl.load(total + j, mask=j < T, other=0)
        return tl.exp(tl.where((i >= j) & (i < T), passed, float('-inf'))) * tl.load(step + j, mask=j < T, other=0)

    @triton.jit
    def scan_forward(z, xBC, step, total, D, out, T, W, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TP: tl.constexpr):
        """One head of one example: scan, gate and norm. TP is T, rounded up to a power of 2."""
        i, h, t, p, n = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, TP), tl.arange(0, P), tl.arange(0, N)
        C: tl.constexpr = H * P + 2 * N
        inside, xBC, at = (t < T)[:, None], xBC + i * T * C, (i * H + h) * T
        B_ = tl.load(xBC + t[:, None] * C + H * P + n[None, :], mask=inside, other=0)
        C_ = tl.load(xBC + t[:, None] * C + H * P + N + n[None, :], mask=inside, other=0)
        x = tl.load(xBC + t[:, None] * C + h * P + p[None, :], mask=inside, other=0)
        z_ = tl.load(z + i * T * W + t[:, None] * W + h * P + p[None, :], mask=inside, other=0).to(tl.float32)
        M = tl.dot(C_, tl.trans(B_)) * kept(step + at, total + at, t, T) + tl.where(t[:, None] == t[None, :], tl.load(D + h), 0)
        s = tl.dot(M.to(x.dtype), x) * z_ * sigmoid(z_)
        s *= tl.rsqrt(tl.sum(s * s, 1) / P + 1e-5)[:, None]
        tl.store(out + i * T * H * P + t[:, None] * (H * P) + h * P + p[None, :], s.to(x.dtype), mask=inside)

    @triton.jit
    def scan_backward(z, xBC, step, total, D, dout, dz, dxBC, row, column, dD, T, W, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TP: tl.constexpr):
        """All heads of one example, as B and C are theirs together. row and column (B, H, T) are the sums of the gradient of kept()'s logarithm."""
        i, t, p, n = tl.program_id(0).to(tl.int64), tl.arange(0, TP), tl.arange(0, P), tl.arange(0, N)
        C: tl.constexpr = H * P + 2 * N
        inside, xBC, dxBC, z, dz, dout = (t < T)[:, None], xBC + i * T * C, dxBC + i * T * C, z + i * T * W, dz + i * T * W, dout + i * T * H * P
        B_ = tl.load(xBC + t[:, None] * C + H * P + n[None, :], mask=inside, other=0)
        C_ = tl.load(xBC + t[:, None] * C + H * P + N + n[None, :], mask=inside, other=0)
        scores, dscores = tl.dot(C_, tl.trans(B_)), tl.zeros([TP, TP], tl.float32)
        for h in range(H):
            at = (i * H + h) * T
            x = tl.load(xBC + t[:, None] * C + h * P + p[None, :], mask=inside, other=0)
            z_ = tl.load(z + t[:, None] * W + h * P + p[None, :], mask=inside, other=0).to(tl.float32)
            ds = tl.load(dout + t[:, None] * (H * P) + h * P + p[None, :], mask=inside, other=0).to(tl.float32)
            share = kept(step + at, total + at, t, T)
            M = (scores * share + tl.where(t[:, None] == t[None, :], tl.load(D + h), 0)).to(x.dtype)
            y, open_ = tl.dot(M, x), sigmoid(z_)
            gate = z_ * open_
            s = y * gate
            r = tl.rsqrt(tl.sum(s * s, 1) / P + 1e-5)
            ds = (ds - s * (tl.sum(ds * s, 1) * r * r / P)[:, None]) * r[:, None]
            tl.store(dz + t[:, None] * W + h * P + p[None, :], (ds * y * (open_ + gate - gate * open_)).to(x.dtype), mask=inside)
            dy = ds * gate
            tl.store(dD + i * H + h, tl.sum(dy * x))
            dy = dy.to(x.dtype)
            tl.store(dxBC + t[:, None] * C + h * P + p[None, :], tl.dot(tl.trans(M), dy).to(x.dtype), mask=inside)
            dM = tl.dot(dy, tl.trans(x)) * share
            dscores += dM
            dM *= scores
            tl.store(row + at + t, tl.sum(dM, 1), mask=t < T)
            tl.store(column + at + t, tl.sum(dM, 0), mask=t < T)
        dscores = dscores.to(xBC.dtype.element_ty)
        # once more, as there is no room to keep them
        B_ = tl.load(xBC + t[:, None] * C + H * P + n[None, :], mask=inside, other=0)
        C_ = tl.load(xBC + t[:, None] * C + H * P + N + n[None, :], mask=inside, other=0)
        tl.store(dxBC + t[:, None] * C + H * P + n[None, :], tl.dot(tl.trans(dscores), C_).to(B_.dtype), mask=inside)
        tl.store(dxBC + t[:, None] * C + H * P + N + n[None, :], tl.dot(dscores, B_).to(B_.dtype), mask=inside)


class ShortMixer(torch.autograd.Function):
    """What in_proj gives, (B, T, W), pace (B, T, 1), which gets no gradient, the convolution's w (4, C) and b (C,), dt_bias, A and D (H,), head_dim
    and d_state -> what out_proj gets, but for the weights of the norm: (B, T, HP)"""

    @staticmethod
    def forward(ctx, zxBCdt, pace, w, b, dt_bias, A, D, P, N):
        (B, T, W), C, H = zxBCdt.shape, w.shape[1], len(A)
        zxBCdt, TP = zxBCdt.contiguous(), max(16, 1 << (T - 1).bit_length())
        xBC, out = zxBCdt.new_empty(B, T, C), zxBCdt.new_empty(B, T, H * P)
        conv_forward[(B, -(-C // 128), -(-T // 16))](zxBCdt, w, b, xBC, T, W, C, HP=H * P, channels=128, span=16, num_warps=2)
        v = zxBCdt[..., H * P + C:H * P + C + H].transpose(1, 2).float().contiguous() + dt_bias[:, None]
        step = F.softplus(v) * pace.transpose(1, 2)  # (B, H, T)
        total = (step * A[:, None]).cumsum(2)
        ctx.sizes = dict(H=H, P=P, N=N, TP=TP, num_warps=max(1, TP // 16))
        scan_forward[(B, H)](zxBCdt, xBC, step, total, D, out, T, W, **ctx.sizes)
        ctx.save_for_backward(zxBCdt, xBC, pace, w, b, v, step, total, A, D)
        return out

    @staticmethod
    def backward(ctx, dout):
        zxBCdt, xBC, pace, w, b, v, step, total, A, D = ctx.saved_tensors
        (B, T, W), C, H, HP = zxBCdt.shape, w.shape[1], len(A), dout.shape[2]
        d, dxBC, row, column, dD = *map(torch.empty_like, (zxBCdt, xBC, step, step)), A.new_empty(B, H)
        scan_backward[(B,)](zxBCdt, xBC, step, total, D, dout.contiguous(), d, dxBC, row, column, dD, T, W, **ctx.sizes)
        ddecay = (row - column).flip(2).cumsum(2).flip(2)
        dv = ((column / step.clamp(min=1e-30) + ddecay * A[:, None]) * pace.transpose(1, 2) * v.sigmoid()).contiguous()  # where the step is 0, so is pace
        dwb = w.new_empty(B, -(-T // 32), 5, C)
        conv_backward[(B, -(-(W - HP) // 128), dwb.shape[1])](zxBCdt, w, b, dxBC, dv, d, dwb, T, W, C, HP=HP, H=H, channels=128, span=32, num_warps=2)
        dwb = dwb.sum((0, 1))
        return d, None, dwb[:-1], dwb[-1], dv.sum((0, 2)), (ddecay * step).sum((0, 2)), dD.sum(0), None, None


SHORT = 128         # tokens up to which auto takes ShortMixer: more do not fit on the chip at once
KERNEL_FROM = 1024  # tokens from which on it takes mamba_ssm's kernel; bench.py measures them all


def short_mixer_fits(x, c):
    """Whether ShortMixer can take x (B, T, W): on a GPU, in half precision, of a length and of sizes that it can tile, on the smallest card too"""
    return (bool(triton) and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and x.shape[1] <= SHORT
            and c.head_dim in (16, 32) and c.d_state in (16, 32, 64, 128))


@functools.cache
def load_kernel():
    """mamba_ssm's Triton kernel of the scan; ImportError says what is missing. The package's own import wants extensions compiled
    for CUDA that the kernel does without: only the modules it needs are loaded."""
    spec = importlib.util.find_spec('mamba_ssm')
    if spec is None:
        raise ImportError("mamba-ssm is not installed, see requirements-gpu.txt")
    if 'mamba_ssm' not in sys.modules:
        sys.modules['mamba_ssm'] = importlib.util.module_from_spec(spec)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    return mamba_chunk_scan_combined


@torch.compiler.assume_constant_result
@functools.cache
def kernel_missing():
    """Why ssd_kernel cannot be used here, '' if it can"""
    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU"
    try:
        load_kernel()
    except ImportError as e:
        return str(e)
    return ''


@torch.compiler.disable
def ssd_kernel(x, dt, A, B, C):
    """ssd() by mamba_ssm's kernel, in the chunks that it likes"""
    return load_kernel()(x, dt, A, B[:, :, None], C[:, :, None], 256)


def gate_and_norm(y, z):
    """The scan's y (..., H, P) and the gate z (..., HP) -> (..., HP). The norm is over each head: one that counts far must not drown the others."""
    return F.rms_norm(y.float() * F.silu(z).unflatten(-1, y.shape[-2:]), y.shape[-1:], eps=1e-5).flatten(-2)


def split(zxBCdt, pace, dt_bias, P, N):
    """What in_proj gives (..., W) -> the gate z (..., HP), the convolution's input xBC (..., HP + 2N), the steps of time dt (..., H)"""
    H = len(dt_bias)
    z, xBC, dt = zxBCdt.tensor_split((H * P, 2 * (H * P + N)), -1)
    return z, xBC, F.softplus(dt[..., :H].float() + dt_bias) * pace


def mixer(zxBCdt, pace, w, b, dt_bias, A, D, P, N, scan):
    """ShortMixer in PyTorch, for any length and with any scan(x, dt, A, B, C)"""
    z, xBC, dt = split(zxBCdt, pace, dt_bias, P, N)
    x, B, C = causal_conv(xBC, w, b).split([len(A) * P, N, N], -1)
    x = x.unflatten(-1, (len(A), P))  # (B, T, H, P)
    return gate_and_norm(scan(x, dt, A, B, C) + D[:, None] * x, z)


def ssd_step(h, x, dt, A, B, C):
    """ssd() for one token: the state h (B, H, P, N), x (B, H, P), dt (B, H), B and C (B, N) -> y (B, H, P) and the next state"""
    h = h * (dt * A).exp()[..., None, None] + (dt[..., None] * x)[..., None] * B[:, None, None]
    return (h * C[:, None, None]).sum(-1), h


class Mamba2(nn.Module):
    """One Mamba-2 block, with its pre-norm and residual: (B, T, D) -> (B, T, D), causal. `pace` (B, T, 1) scales the steps of time: where it
    is 0, the state stays as it is."""

    def __init__(self, c):
        super().__init__()
        self.c, self.n_heads = c, c.d_inner // c.head_dim
        self.forever = round(c.counting * self.n_heads)  # heads with A = 0: dt gates what goes in, nothing ever goes out
        d_conv = c.d_inner + 2 * c.d_state
        self.norm = nn.RMSNorm(c.d_model)
        width = c.d_inner + d_conv + self.n_heads
        self.in_proj = nn.Linear(c.d_model, width + -width % 8, bias=False)  # GPUs are slow at other widths; the rest is not used
        self.conv_weight = nn.Parameter(torch.empty(D_CONV, d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(d_conv))
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads - self.forever))
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.gate_norm = nn.Parameter(torch.ones(c.d_inner))
        self.out_proj = nn.Linear(c.d_inner, c.d_model, bias=False)

    def A(self):
        return F.pad(-self.A_log.exp(), (self.forever, 0))  # (H,)

    def forward(self, u, pace):
        c, T, zxBCdt = self.c, u.shape[1], self.in_proj(self.norm(u))
        inputs = zxBCdt, pace, self.conv_weight, self.conv_bias, self.dt_bias, self.A(), self.D, c.head_dim, c.d_state
        if c.ssd == 'auto' and short_mixer_fits(zxBCdt, c):
            return u + self.out(ShortMixer.apply(*inputs))
        kernel = u.is_cuda and T >= {'auto': KERNEL_FROM, 'torch': math.inf, 'mamba_ssm': 0}[c.ssd] and not kernel_missing()
        return u + self.out(mixer(*inputs, ssd_kernel if kernel else functools.partial(ssd, chunk=CHUNK)))

    def out(self, y):
        """(..., d_inner) -> (..., D). The weights of the norm go into those of out_proj: fewer passes over memory."""
        return F.linear(y, self.out_proj.weight * self.gate_norm)

    def step(self, u, pace, state):
        """forward for the next token alone: u (B, D), its pace (B, 1) and the state, which are the convolution's last inputs (B, D_CONV - 1, d_inner
        + 2N) and the scan's h (B, H, P, N) -> (B, D) and the next state, no larger"""
        c, (inputs, h) = self.c, state
        z, xBC, dt = split(self.in_proj(self.norm(u)), pace, self.dt_bias, c.head_dim, c.d_state)
        inputs = torch.cat([inputs, xBC[:, None]], 1)
        x, B, C = F.silu((inputs * self.conv_weight).sum(1) + self.conv_bias).split([c.d_inner, c.d_state, c.d_state], -1)
        x = x.unflatten(-1, (self.n_heads, -1))  # (B, H, P)
        y, h = ssd_step(h, x, dt, self.A(), B, C)
        return u + self.out(gate_and_norm(y + self.D[:, None] * x, z)), (inputs[:, 1:], h)


# --- attention ---

def rotary(x):
    """Rotate pairs of (B, h, T, d) by the clock (Su et al., 2021); wavelengths from 6 tokens to a few hundred"""
    half = x.shape[-1] // 2
    rate = 64.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.split(half, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def around(x, w):
    """(B, h, T, d) -> (B, h, T / w, 3w, d): each window of w tokens with the window before it and the one after"""
    return F.pad(x, (0, 0, w, w + -x.shape[2] % w)).unfold(2, 3 * w, w).transpose(-1, -2)


def local_weights(q, k, valid, w, reach, causal=False):
    """Attention weights within `reach` <= w tokens, in time linear in T.

    q and k (B, h, T, d), valid (B, h or 1, T) bool, reach an int or (h, 1, 1) -> (B, h, T / w, w, 3w), to be multiplied with
    around(values, w)"""
    T = q.shape[2]
    q = F.pad(q, (0, 0, 0, -T % w)).unflatten(2, (-1, w))  # (B, h, c, w, d)
    score = (q @ around(k, w).transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    at = torch.arange(w, device=q.device)
    offset = torch.arange(-w, 2 * w, device=q.device) - at[:, None]  # of the key from the query, (w, 3w)
    near = offset.abs() <= reach
    if causal:
        near = near & (offset <= 0)
    there = around(valid[..., None].to(q.dtype), w).transpose(-1, -2) > 0  # (B, h or 1, c, 1, 3w)
    near = (near[:, None] if near.dim() == 3 else near) & there
    # a large negative number, not -inf: a query may see no key at all, and then gets nothing
    return score.masked_fill(~near, -1e9).softmax(-1).masked_fill(~near, 0).to(q.dtype)


def local_values(weights, v, w):
    """Weights of local_weights and values (B, h, T, d) -> (B, h, T, d)"""
    return (weights @ around(v, w)).flatten(2, 3)[:, :, :v.shape[2]]


class SelfAttention(nn.Module):
    """Causal self-attention over a window, with pre-norm and residual: (B, T, D) -> (B, T, D)"""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.norm = nn.RMSNorm(c.d_model)
        self.qkv = nn.Linear(c.d_model, 3 * c.d_model, bias=False)
        self.out_proj = nn.Linear(c.d_model, c.d_model, bias=False)

    def forward(self, x, pace=None):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.c.n_head, -1)).permute(2, 0, 3, 1, 4)  # (B, h, T, d)
        there = torch.ones(1, 1, x.shape[1], dtype=torch.bool, device=x.device)  # what is padding comes last, and is never looked at
        y = local_values(local_weights(rotary(q), rotary(k), there, WINDOW, WINDOW, causal=True), v, WINDOW)
        return x + self.out_proj(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """From the answer to the question. Question and answer share a clock, and the answer's tokens all start out alike, so one
    query is enough; the clock heads rotate it to each token's time and look around that time; the content
    heads see the whole question. One more clock head, the pointer, fetches frames as they are; it goes by the time alone, as what
    sounds then may be like nothing that it knows.

    query (1, 1, D), memory (B, T, D), frames (B, T, patch * F), valid (B, T), and perhaps whose (B,), seen (B, T) and noise (B, T, D): the
    content heads find the question of the example whose[i] in the place of the i-th one; the clock heads find it, under the noise, where
    theirs is not seen; the pointer always has its own -> (B, T, D), pointed-at (B, T, patch * F)"""

    def __init__(self, c):
        super().__init__()
        self.c = c
        d = c.d_model // c.n_head
        self.norm = nn.RMSNorm(c.d_model)
        self.memory_norm = nn.RMSNorm(c.d_model)
        self.q = nn.Linear(c.d_model, c.d_model + d, bias=False)
        self.k = nn.Linear(c.d_model, c.d_model, bias=False)
        self.here = nn.Parameter(torch.empty(d))  # the pointer's key of every token
        self.v = nn.Linear(c.d_model, c.d_model, bias=False)
        self.out_proj = nn.Linear(c.d_model, c.d_model, bias=False)

    def forward(self, query, memory, frames, valid, whose=None, seen=None, noise=None):
        c, half, T = self.c, self.c.n_head // 2, memory.shape[1]
        heads = lambda y, n: y.unflatten(-1, (n, -1)).transpose(1, 2)  # (B, h, T, d)
        memory = self.memory_norm(memory)
        q = heads(self.q(self.norm(query)), c.n_head + 1)
        k, v = (heads(of(memory), c.n_head) for of in (self.k, self.v))
        # content: the first half of the heads
        found = lambda t: t if whose is None else t[whose]
        score = (q[:, :half] @ found(k[:, :half]).transpose(-1, -2)).float() / math.sqrt(q.shape[-1])  # (B, h, 1, T)
        content = score.masked_fill(~found(valid)[:, None, None], -1e9).softmax(-1).to(v.dtype) @ found(v[:, :half])
        # clock: the second half, and the pointer, which reaches less far
        k, v = k[:, half:], v[:, half:]
        if seen is not None:
            other = memory[whose] + noise
            k, v = (torch.where(seen[:, None, :, None], t, heads(of(other), c.n_head)[:, half:]) for t, of in ((k, self.k), (v, self.v)))
        k = torch.cat([k, self.here.to(k.dtype).expand(len(k), 1, T, -1)], 1)
        reach = torch.full((half + 1, 1, 1), WINDOW, device=q.device)
        reach[-1] = POINTER_WINDOW
        weights = local_weights(rotary(q[:, half:].expand(-1, -1, T, -1)), rotary(k), valid[:, None], WINDOW, reach)
        clock = local_values(weights[:, :half], v, WINDOW)
        pointed = local_values(weights[:, half:], frames[:, None], WINDOW)[:, 0]
        y = torch.cat([content.expand(-1, -1, T, -1), clock], 1)
        return self.out_proj(y.transpose(1, 2).flatten(2)), pointed


# --- the model ---

class MiniJMamba(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.spectrum = Spectrum()
        self.embed = nn.Linear(c.patch * N_BINS, c.d_model)
        self.encoder = nn.ModuleList((Mamba2 if c.mamba else SelfAttention)(c) for _ in range(c.n_encoder))
        self.start = nn.Parameter(torch.empty(c.d_model))
        self.cross = CrossAttention(c)
        self.decoder = nn.ModuleList((Mamba2 if c.mamba else SelfAttention)(c) for _ in range(c.n_decoder))
        self.self_attention = SelfAttention(c)
        self.norm = nn.RMSNorm(c.d_model)
        self.frames = nn.Linear(c.d_model, c.patch * N_BINS)
        self.gate = nn.Linear(c.d_model, c.patch)
        self.logits = nn.Linear(c.d_model, c.n_symbols + 1)  # the last one: no symbol
        self.so_far = nn.Linear(c.d_model, c.n_so_far)       # what the question comes to, from the encoder
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """All of it, except the norms (1) and D (1), which keep what they were made with"""
        c = self.config
        n_layers = c.n_encoder + c.n_decoder + 2
        for name, p in self.named_parameters():
            if name.endswith('bias') and 'dt_bias' not in name:
                nn.init.zeros_(p)
            elif p.dim() == 2:
                fan_in = D_CONV if 'conv' in name else p.shape[1]
                nn.init.normal_(p, std=fan_in ** -0.5 / (math.sqrt(n_layers) if 'out_proj' in name else 1))
        nn.init.zeros_(self.frames.weight)  # silence, until something new is to be played
        nn.init.normal_(self.start)
        self.cross.here.copy_(self.cross.q(self.cross.norm(self.start))[c.d_model:])  # at first the pointer looks straight across
        for layer in [*self.encoder, *self.decoder] if c.mamba else ():
            dt = torch.exp(torch.empty_like(layer.dt_bias).uniform_(math.log(1e-2), math.log(1.0)))
            layer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
            layer.A_log.copy_(torch.empty_like(layer.A_log).uniform_(1, 16).log())

    def hear(self, question):
        """(B, S) -> log-magnitude frames, `patch` to a row: (B, T, patch * F). S is padded to whole tokens."""
        question, s = F.pad(question, (0, -question.shape[1] % self.config.token)), self.spectrum
        # bfloat16 has too few digits for this; float16 has those of TF32, and half the bytes
        with torch.autocast(question.device.type, torch.float16, question.is_cuda and torch.is_autocast_enabled('cuda')):
            spectrum = s.stft(question.float()).float()
        return s.log(s.magnitude(spectrum)).unflatten(1, (-1, self.config.patch)).flatten(2)

    def pace(self, frames):
        """(B, T, patch * F) -> (B, T, 1), how fast time passes for the Mamba-2 layers. A pause can then be as long as it likes."""
        return self.spectrum.sounds(frames) if self.config.freeze else torch.ones_like(frames[..., :1])

    def encode(self, frames):
        """(B, T, patch * F) -> (B, T, D); what stands at t has heard nothing after t"""
        x, pace = self.embed(frames).float(), self.pace(frames)  # the residual stream stays fp32 under autocast
        for layer in self.encoder:
            x = layer(x, pace)
        return x

    def step(self, sound, state=None):
        """The encoder, a token at a time, in memory that does not grow: the next (B, token) samples and the state after those before
        them -> what stands at this token in encode(), (B, D); its frames as in hear(), (B, patch * F); the next state"""
        c, s = self.config, self.spectrum
        if state is None:
            zeros = lambda *shape: sound.new_zeros(len(sound), *shape)
            state = zeros(2 * HOP), [(zeros(D_CONV - 1, c.d_inner + 2 * c.d_state),
                                        zeros(layer.n_heads, c.head_dim, c.d_state)) for layer in self.encoder]
        before, layers = state
        frames = s.log(s.magnitude(s.stft(sound, before))).flatten(1)
        x, after = self.embed(frames), []
        for layer, layer_state in zip(self.encoder, layers):
            x, layer_state = layer.step(x, self.pace(frames), layer_state)
            after.append(layer_state)
        return x, frames, (torch.cat([before, sound], 1)[:, -2 * HOP:], after)

    def forward(self, question, lengths, new=None, seen=None, noise=None):
        """Waveforms (B, S) at 16 kHz and how many samples of each count, (B,) -> answer frames (B, T * patch, F), log magnitudes; symbol
        logits (B, T, n_symbols + 1); and the encoder's logits on what the question comes to so far (B, T, n_so_far). In training perhaps also new (B, T * patch),
        which frames may be generated, the others can only be pointed at; and how many samples the decoder sees in place, (B,): if not
        all, what it knows by content is its neighbour's in the batch, and beyond it sees the neighbour under noise (B, T, D)"""
        heard = self.hear(question)
        return self.answer(self.encode(heard), heard, lengths, new, seen, noise)

    def answer(self, memory, heard, lengths, new=None, seen=None, noise=None):
        """forward, once the question has been encoded to memory (B, T, D) from its frames heard (B, T, patch * F)"""
        c = self.config
        n = ((lengths + c.token - 1) // c.token).clamp(1, heard.shape[1])  # (B,) tokens
        at = torch.arange(heard.shape[1], device=heard.device)
        valid = at < n[:, None]
        whose = None
        if seen is not None:
            seen, example = at < seen[:, None] // c.token, torch.arange(len(seen), device=at.device)
            whose = torch.where(seen.all(1), example, example ^ 1)  # in pairs: an even share of a batch has all it needs
        query = self.start[None, None]  # it knows nothing of the question: what the encoder ends with after three divisors was never trained
        # without its noise what is pointed at is as good as what is generated, and the gate need not know where a tone is, or which
        tones = self.spectrum.squelch(heard.unflatten(2, (c.patch, -1))).flatten(2)
        x, pointed = self.cross(query, memory, tones, valid, whose, seen, noise)
        x = query + x
        half = len(self.decoder) // 2
        turned = torch.where(valid, n[:, None] - 1 - at, at)  # the first half runs from the question's end to its start; padding stays behind the rest
        turn = lambda y: y.gather(1, turned[..., None].expand_as(y))
        x, pace = turn(x), self.pace(heard)
        for layer in self.decoder[:half]:
            x = layer(x, turn(pace))
        x = turn(x)
        x = self.self_attention(x)
        for layer in self.decoder[half:]:
            x = layer(x, pace)
        return *self.heads(x, pointed, new), self.so_far(memory)

    def heads(self, x, pointed, new):
        """The decoder's tokens (B, T, D), the frames pointed at (B, T, patch * F) and which may be generated (B, T * patch), or None -> answer
        frames (B, T * patch, F), symbol logits (B, T, n_symbols + 1)"""
        c, x = self.config, self.norm(x)
        gate = torch.sigmoid(self.gate(x)).unsqueeze(-1) * c.pointer  # (B, T, patch, 1)
        made, pointed = (t.unflatten(-1, (c.patch, -1)) for t in (self.frames(x), pointed))
        if new is not None:
            made = made * new.unflatten(1, (-1, c.patch))[..., None]
        return (gate * pointed + (1 - gate) * made).flatten(1, 2), self.logits(x)

    def reply(self, question, lengths):
        """What generate hears and plays in one pass: waveforms (B, S), their lengths (B,) -> the spectrum heard (B, frames, 2, F), answer
        frames (B, frames, F) and symbol logits (B, T, n_symbols + 1), T being whole tokens and one more"""
        c, s = self.config, self.spectrum
        # the token more is silent: in training there was always some silence behind the last tone, and a recording may end with it
        question = F.pad(question, (0, -question.shape[1] % c.token + c.token))
        heard = s.stft(question)
        frames = s.log(s.magnitude(heard)).unflatten(1, (-1, c.patch)).flatten(2)
        dither = DITHER * torch.randn(question.shape[1], generator=torch.Generator(question.device).manual_seed(0), device=question.device)
        answer, logits, _ = self.answer(self.encode(self.hear(question + dither)), frames, lengths + c.token)
        return heard, answer.float(), logits

    @torch.no_grad()
    def generate(self, question, lengths=None, think=1, conversation=False):
        """Waveforms (B, S) and their lengths in samples -> answer waveforms (B, S), silent beyond each length.

        With think > 1 the model hears its own answer as the next question, up to so many passes in all; an example is
        done when the sound that it plays is the sound that it heard. Nothing but sound is handed on.
        conversation=True returns the answers of every pass, a list, and how many passes changed each example (B,)."""
        c, s, S = self.config, self.spectrum, question.shape[1]
        if lengths is None:
            lengths = torch.full((len(question),), S, device=question.device)
        going, answers, passes = torch.arange(len(question), device=question.device), [], torch.zeros_like(lengths)  # whose sound still changes
        for _ in range(think):
            heard, frames, _ = self.reply(question[going], lengths[going])
            frames = s.squelch(frames)  # faint remains of a tone that went would be heard again
            wave = s.wave(s.exp(frames), heard)
            wave = wave * (torch.arange(wave.shape[1], device=wave.device) < lengths[going, None])
            question = question.index_copy(0, going, wave[:, :S])
            answers.append(question)
            if think > 1:
                a, b = (s.magnitude(x).unflatten(1, (-1, c.patch)).mean(2) for x in (heard, s.stft(wave)))
                going = going[(a - b).abs().amax((1, 2)) >= 0.2]  # a tone, of amplitude 0.5-0.8, has come or gone
                passes[going] += 1
                if not len(going):
                    break
        return (answers, passes) if conversation else answers[-1]


# --- speed ---

def compile_parts(model, *more):
    """torch.compile for the layers of a model, its front end and its heads, and for modules of the classes in `more`: once for all of a
    kind, for each shape that is met"""
    torch._dynamo.config.recompile_limit = 64
    for part in model.modules():
        if isinstance(part, (Mamba2, SelfAttention, CrossAttention, *more)):
            part.compile(dynamic=False)
    for part, name in ((model, 'hear'), (model, 'pace'), (model, 'heads'), (model.spectrum, 'squelch')):
        setattr(part, name, torch.compile(getattr(part, name), dynamic=False))


def capture(f, generator):
    """f(), which may draw from the generator, as a CUDA graph, after three runs to warm up -> the graph and what f returned"""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            f()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        result = f()
    return graph, result


# --- checkpoints ---

def pick_device(device):
    """'auto' is the GPU if there is one. ValueError if the one asked for is not there. On the way: no more threads than a container
    is allowed cores, or they would only take them from one another."""
    try:
        with open('/sys/fs/cgroup/cpu.max') as f:
            share, period = map(int, f.read().split())
        torch.set_num_threads(max(1, min(torch.get_num_threads(), share // period)))
    except (OSError, ValueError):  # there is no limit
        pass
    if device == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        if device != 'cpu':  # which has just one
            torch.Generator(device)
            torch.empty(1, device=device)
            if device.startswith('cpu'):
                raise RuntimeError
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {device!r} here; use auto, cpu or cuda") from None
    return device


def save_checkpoint(path, model, **rest):
    """Write weights, model config and whatever else is given, whole or not at all; OSError if it cannot be written"""
    try:
        with open(path + '.tmp', 'wb') as f:
            torch.save({'model_args': asdict(model.config), 'model': model.state_dict(), **rest}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + '.tmp', path)
    except BaseException as e:
        if os.path.exists(path + '.tmp'):
            os.remove(path + '.tmp')
        if isinstance(e, RuntimeError):  # what torch makes of a full disk
            raise OSError(errno.ENOSPC, 'the disk is full?') from e
        raise


def load_checkpoint(out_dir, device='cpu', init_from='out_dir'):
    """The best checkpoint in out_dir, the last one (init_from='resume') or assets/release.pt (init_from='release') -> the
    model, in eval mode, and the whole checkpoint. ValueError, with what to do, if there is none or it does not fit this code."""
    here = os.path.dirname(os.path.abspath(__file__))
    paths = {'out_dir': [os.path.join(out_dir, 'best.pt'), os.path.join(out_dir, 'ckpt.pt')],
             'resume': [os.path.join(out_dir, 'ckpt.pt')], 'release': [os.path.join(here, 'assets', 'release.pt')]}
    if init_from not in paths:
        raise ValueError(f"init_from is 'out_dir' or 'release', not {init_from!r}")
    path = next((p for p in paths[init_from] if os.path.exists(p)), None)
    if path is None:
        config = os.path.join('config', os.path.basename(os.path.normpath(out_dir)) + '.py')
        config = config if os.path.exists(os.path.join(here, config)) else 'config/mirror.py'
        raise ValueError(f"there is no {paths[init_from][-1]}; train a model with: python train.py {config} --out_dir={out_dir}"
                         + ("; or take the weights that come with the code: --init_from=release" if init_from == 'out_dir' else ''))
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        model = MiniJMamba(JMambaConfig(**checkpoint['model_args'])).to(device)
        model.load_state_dict(checkpoint['model'])
        checkpoint['config']['tasks'].split(','), checkpoint['config']['aloud'].split(','), checkpoint['iter_num']
    except Exception:  # a broken file fails in many ways: as a zip, a pickle, a config, a shape
        raise ValueError(f"{path} is not a checkpoint of this model, or is damaged; remove it and train again") from None
    return model.eval(), checkpoint
