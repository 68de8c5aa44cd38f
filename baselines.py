"""
Layers that can take the place of Mamba-2, for comparison: config.layer names one. Each has as many
parameters as a Mamba-2 layer; front end, cross-attention, pointer and losses stay as they are.
"""
import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import Mamba2, MiniJMamba, SelfAttention, rotary


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


LAYERS = {'mamba2': Mamba2, 'attention': SelfAttention, 'transformer': Transformer, 'lstm': LSTM}


def make_model(config):
    """The model that config.layer asks for"""
    layer = LAYERS[config.layer]
    if layer in (Transformer, LSTM):
        with torch.device('meta'):
            n = sum(p.numel() for p in Mamba2(config).parameters())
        layer = partial(layer, n=n)
    return MiniJMamba(config, layer)
