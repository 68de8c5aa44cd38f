"""
What can take the place of the model's parts, for comparison; all else stays as it is.

layer      of Mamba-2: transformer, lstm, with as many parameters; or attention, with half
attention  of cross-attention and self-attention: cross or self alone, or none; random: both, but
           the pointer starts out anywhere; token: both, and each token of the answer has a
           query of its own by content
front      of the spectrum that the encoder hears: mel bands, or learned filters
"""
import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import (
    COMPRESS,
    HOP,
    N_BINS,
    N_FFT,
    WIN_LENGTH,
    CrossAttention,
    Mamba2,
    MiniJMamba,
    SelfAttention,
    rotary,
    split_heads,
)
from prepare import SAMPLE_RATE


class Transformer(nn.Module):
    """Causal self-attention over all that was, and an MLP, with pre-norm and residual, n parameters
    together: (B, T, D) -> (B, T, D). Like Mamba-2 it does without positions beyond rotary ones."""

    def __init__(self, c, n):
        super().__init__()
        d = c.d_model
        width = round((n - 4 * d * d) / (2 * d) / 8) * 8
        self.n_head = c.n_head
        self.norm = nn.RMSNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.attention_out_proj = nn.Linear(d, d, bias=False)
        self.mlp_norm = nn.RMSNorm(d)
        self.up = nn.Linear(d, width, bias=False)
        self.mlp_out_proj = nn.Linear(width, d, bias=False)

    def forward(self, x, pace=None):
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, T, d)
        y = F.scaled_dot_product_attention(rotary(q), rotary(k), v, is_causal=True)
        x = x + self.attention_out_proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp_out_proj(F.gelu(self.up(self.mlp_norm(x))))


class LSTM(nn.Module):
    """An LSTM and its projection, with pre-norm and residual, n parameters together: (B, T, D)
    -> (B, T, D)"""

    def __init__(self, c, n):
        super().__init__()
        d = c.d_model
        # The width w at which 4 w (d + w + 2) + w d is n
        width = int((math.sqrt((5 * d + 8) ** 2 + 16 * n) - 5 * d - 8) / 8)
        self.norm = nn.RMSNorm(d)
        self.lstm = nn.LSTM(d, width, batch_first=True)
        self.out_proj = nn.Linear(width, d, bias=False)

    def forward(self, x, pace=None):
        return x + self.out_proj(self.lstm(self.norm(x))[0])


class NoCross(nn.Module):
    """In the place of cross-attention: all of the encoder's memory, and no pointer"""

    def forward(self, query, memory, frames, valid, hiding=None):
        return memory, frames


class TokenCross(CrossAttention):
    """Cross-attention in which what was heard at a time decides what is asked for then"""

    def __init__(self, c):
        super().__init__(c)
        self.token_q = nn.Linear(c.d_model, c.d_model // 2, bias=False)

    def content_query(self, query, memory):
        """-> (B, h, T, d)"""
        return query + split_heads(self.token_q(memory), query.shape[1])


class Mel(nn.Module):
    """Log magnitudes (B, T, patch * F) -> 40 mel bands of each frame, embedded (B, T, D)"""

    def __init__(self, c):
        super().__init__()
        bands, highest = 40, 2595 * math.log10(1 + SAMPLE_RATE * N_BINS / N_FFT / 700)
        mel = torch.linspace(0, highest, bands + 2)
        hertz = 700 * (10 ** (mel / 2595) - 1)
        bins = torch.arange(N_BINS)[:, None] * (SAMPLE_RATE / N_FFT)
        width = hertz.diff().clamp(min=SAMPLE_RATE / N_FFT)  # no band falls between two bins
        rise = (bins - hertz[:-2]) / width[:-1]
        fall = (hertz[2:] - bins) / width[1:]
        self.register_buffer('bands', rise.minimum(fall).clamp(min=0), persistent=False)
        self.patch = c.patch
        self.out = nn.Linear(c.patch * bands, c.d_model)

    def forward(self, frames):
        magnitude = torch.expm1(frames.float().unflatten(-1, (self.patch, -1))) / COMPRESS
        return self.out(torch.log1p(COMPRESS * (magnitude @ self.bands)).flatten(2))


class Filters(nn.Module):
    """The waveform that was heard last -> N_BINS learned filters of 25 ms, as many of which each
    frame has in the spectrum; the logarithm of what passes each, embedded (B, T, D)"""

    def __init__(self, c):
        super().__init__()
        self.filters = nn.Conv1d(1, N_BINS, WIN_LENGTH, HOP, bias=False)
        self.patch = c.patch
        self.out = nn.Linear(c.patch * N_BINS, c.d_model)
        self.heard = None

    def forward(self, frames):
        wave = F.pad(self.heard, (WIN_LENGTH - HOP, 0))[:, None]
        passed = torch.log1p(COMPRESS * self.filters(wave).abs()).transpose(1, 2)
        return self.out(passed.unflatten(1, (-1, self.patch)).flatten(2))


class WithFilters(MiniJMamba):
    def hear(self, question):
        frames = super().hear(question)
        self.embed.heard = F.pad(question, (0, -question.shape[1] % self.config.token))
        return frames


LAYERS = {'mamba2': Mamba2, 'attention': SelfAttention, 'transformer': Transformer, 'lstm': LSTM}
ATTENTION = 'both', 'cross', 'self', 'none', 'random', 'token'
FRONTS = {'stft': MiniJMamba, 'mel': MiniJMamba, 'filters': WithFilters}


def make_model(config):
    """The model that config asks for"""
    layer = LAYERS[config.layer]
    if layer in (Transformer, LSTM):
        with torch.device('meta'):
            n = sum(p.numel() for p in Mamba2(config).parameters())
        layer = partial(layer, n=n)
    model = FRONTS[config.front](config, layer)
    if config.attention in ('cross', 'none'):
        model.self_attention = nn.Identity()
    if config.attention in ('self', 'none'):
        model.cross = NoCross()
    if config.attention == 'random':
        nn.init.normal_(model.cross.pointer_key)
    if config.attention == 'token':
        model.cross = TokenCross(config)
        model.init_weights()
    if config.front != 'stft':
        model.embed = {'mel': Mel, 'filters': Filters}[config.front](config)
    return model
