"""
What can take the place of the model's parts, for comparison; all else stays as it is. A config
names them, as in layer = 'lab.baselines:LSTM', and model.py calls each with its config.

layer  Transformer, LSTM: as many parameters as Mamba-2; MambaSSM: Mamba-2 as its authors give it
cross  NoCross; TokenCross: each token of the answer has a query of its own by content;
       RandomPointer: the pointer starts out anywhere
front  Mel bands, or learned Filters, in the place of the spectrum that the encoder hears

Letters are those of model.py.
"""
import math

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
    join_heads,
    rotary,
    split_heads,
)
from prepare import SAMPLE_RATE

N_MEL = 40  # bands


# --- layers: (B, T, D) -> (B, T, D), with pre-norm and residual ---

def parameters_of_mamba2(config):
    with torch.device('meta'):  # counted, and not made
        return sum(p.numel() for p in Mamba2(config).parameters())


class Transformer(nn.Module):
    """Causal self-attention over all that was, and an MLP. Like Mamba-2 it does without positions
    beyond rotary ones."""

    def __init__(self, config):
        super().__init__()
        D = config.d_model
        # Attention has 4 D^2 parameters, which leaves so many for the MLP's 2 D * width.
        left = parameters_of_mamba2(config) - 4 * D * D
        width = 8 * round(left / (2 * D) / 8)
        self.n_head = config.n_head
        self.norm = nn.RMSNorm(D)
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.attention_out_proj = nn.Linear(D, D, bias=False)
        self.mlp_norm = nn.RMSNorm(D)
        self.up = nn.Linear(D, width, bias=False)
        self.mlp_out_proj = nn.Linear(width, D, bias=False)

    def forward(self, x, pace):
        qkv = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (split_heads(t, self.n_head) for t in qkv)  # (B, h, T, d)
        y = F.scaled_dot_product_attention(rotary(q), rotary(k), v, is_causal=True)
        x = x + self.attention_out_proj(join_heads(y))
        hidden = F.gelu(self.up(self.mlp_norm(x)))
        return x + self.mlp_out_proj(hidden)


class LSTM(nn.Module):
    """An LSTM and its projection"""
    compiles = False  # see fast/graphs.py: it has kernels of its own

    def __init__(self, config):
        super().__init__()
        D, n = config.d_model, parameters_of_mamba2(config)
        # Of width w it has 4 w (D + w + 2) parameters, and its projection w D. Together they are n:
        # the positive root of 4 w^2 + (5 D + 8) w - n.
        b = 5 * D + 8
        width = int((math.sqrt(b * b + 16 * n) - b) / 8)
        self.norm = nn.RMSNorm(D)
        self.lstm = nn.LSTM(D, width, batch_first=True)
        self.out_proj = nn.Linear(width, D, bias=False)

    def forward(self, x, pace):
        y, _ = self.lstm(self.norm(x))
        return x + self.out_proj(y)


class MambaSSM(nn.Module):
    """mamba_ssm's layer, whose expand and d_conv are ours. ValueError where it cannot be had."""
    compiles = False

    def __init__(self, config):
        super().__init__()
        from fast.kernels import kernel_missing  # which loads Triton, and nothing else needs that
        if kernel_missing():
            raise ValueError(f"mamba_ssm cannot be had: {kernel_missing()}")
        from mamba_ssm.modules.mamba2 import Mamba2 as Layer
        self.norm = nn.RMSNorm(config.d_model)
        self.inner = Layer(config.d_model, config.d_state, headdim=config.head_dim,
                           use_mem_eff_path=False)

    def forward(self, x, pace):
        return x + self.inner(self.norm(x))


# --- cross-attention ---

class NoCross(nn.Module):
    """All of the encoder's memory as it is, and no pointer: give pointer = False, too"""

    def __init__(self, config):
        super().__init__()

    def forward(self, query, memory, frames, valid, hiding=None):
        return memory, frames

    def point_straight(self, start):
        """There is no pointer."""


class TokenCross(CrossAttention):
    """What was heard at a time decides what is asked for then"""

    def __init__(self, config):
        super().__init__(config)
        self.token_q = nn.Linear(config.d_model, config.d_model // 2, bias=False)

    def content_query(self, query, memory):
        """-> (B, h, T, d)"""
        return query + split_heads(self.token_q(memory), query.shape[1])


class RandomPointer(CrossAttention):
    """The pointer looks anywhere at first"""

    @torch.no_grad()
    def point_straight(self, start):
        nn.init.normal_(self.pointer_key)


# --- fronts: log magnitudes (B, T, patch * F) and the waveform (B, T * token) -> (B, T, D) ---

class Mel(nn.Module):
    """The magnitudes, added up in bands that are as wide as the ear's"""

    def __init__(self, config):
        super().__init__()
        width_of_bin = SAMPLE_RATE / N_FFT  # Hz
        highest = 2595 * math.log10(1 + width_of_bin * N_BINS / 700)
        mel = torch.linspace(0, highest, N_MEL + 2)
        edges = 700 * (10 ** (mel / 2595) - 1)  # Hz
        bins = torch.arange(N_BINS)[:, None] * width_of_bin
        width = edges.diff().clamp(min=width_of_bin)  # no band falls between two bins
        rise = (bins - edges[:-2]) / width[:-1]
        fall = (edges[2:] - bins) / width[1:]
        bands = rise.minimum(fall).clamp(min=0)  # (F, bands)
        self.register_buffer('bands', bands, persistent=False)
        self.patch = config.patch
        self.out = nn.Linear(config.patch * N_MEL, config.d_model)

    def forward(self, frames, question):
        by_frame = frames.float().unflatten(-1, (self.patch, -1))
        magnitude = torch.expm1(by_frame) / COMPRESS  # (B, T, patch, F)
        heard = torch.log1p(COMPRESS * (magnitude @ self.bands))
        return self.out(heard.flatten(2))


class Filters(nn.Module):
    """Learned filters of 25 ms, as many as the spectrum has bins, and the logarithm of what passes
    each"""

    def __init__(self, config):
        super().__init__()
        self.filters = nn.Conv1d(1, N_BINS, WIN_LENGTH, HOP, bias=False)
        self.patch = config.patch
        self.out = nn.Linear(config.patch * N_BINS, config.d_model)

    def forward(self, frames, question):
        wave = F.pad(question, (WIN_LENGTH - HOP, 0))[:, None]
        passed = self.filters(wave).transpose(1, 2)  # (B, frames, F)
        heard = torch.log1p(COMPRESS * passed.abs())
        return self.out(heard.unflatten(1, (-1, self.patch)).flatten(2))
