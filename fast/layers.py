"""
A run of Mamba-2 layers in training, as one function with a backward pass of its own: in a layer,
two matrix products, the two kernels of its mixer, and one for what lies between two layers; and
as many backward. What concerns weights is done for all layers of the run at once.
tests/test_layers.py holds it to the layers one by one.

Letters are those of kernels.py, and L layers, M = B * T tokens, D d_model.
"""
import math

import torch

import model
from fast.kernels import (
    Sizes,
    kernels_fit,
    mixer_backward,
    mixer_forward,
    saved_for,
    triton,
    weights_from,
)

if triton:
    from fast.kernels import load_float, tl

ROWS = 16   # tokens of a program here
SPLITS = 8  # parts of a batch whose products are summed: many small products fill a GPU


# --- what lies between the mixers of two layers ---

if triton:
    EPS = tl.constexpr(torch.finfo(torch.float32).eps)  # as in nn.RMSNorm

    @triton.jit(do_not_specialize=['M'])
    def between_forward(
        x_ptr, y_ptr, g_ptr, sum_ptr, out_ptr,
        M,
        D: tl.constexpr,
        COLUMNS: tl.constexpr,  # D or more
        ROWS: tl.constexpr,
    ):
        """x + y, the residual stream after a layer, and out = rms_norm(x + y) g, with which the
        next one begins, all (M, D). Without y there was no layer, and no sum is written."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, COLUMNS)[None, :]
        mask = (row < M) & (column < D)
        at = row * D + column
        x = load_float(x_ptr + at, mask)
        if y_ptr is not None:
            x += load_float(y_ptr + at, mask)
            tl.store(sum_ptr + at, x, mask)
        g = load_float(g_ptr + column, column < D)
        r = tl.rsqrt(tl.sum(x * x, 1) / D + EPS)
        tl.store(out_ptr + at, x * r[:, None] * g, mask)

    @triton.jit(do_not_specialize=['M'])
    def between_backward(
        x_ptr, g_ptr, dout_ptr, dsum_ptr, dx_ptr, half_ptr, dg_ptr,
        M,
        D: tl.constexpr,
        COLUMNS: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        """The gradient of x, given those of out = rms_norm(x) g and, by what follows, of x itself,
        dsum; the same in half precision, if a layer before needs it; and that of g by program,
        (programs, D)"""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, COLUMNS)[None, :]
        mask = (row < M) & (column < D)
        at = row * D + column
        x = load_float(x_ptr + at, mask)
        dout = load_float(dout_ptr + at, mask)
        g = load_float(g_ptr + column, column < D)
        # out = x r g, r = 1 / sqrt(mean(x^2) + EPS), with dn = dout g:
        # dx = (dn - x along) r, along = mean(dn x) r^2
        r = tl.rsqrt(tl.sum(x * x, 1) / D + EPS)
        dn = dout * g
        along = tl.sum(dn * x, 1) * r * r / D
        dx = load_float(dsum_ptr + at, mask)
        dx += (dn - x * along[:, None]) * r[:, None]
        tl.store(dx_ptr + at, dx, mask)
        if half_ptr is not None:
            tl.store(half_ptr + at, dx, mask)
        dg = tl.sum(dout * x * r[:, None], 0)[None, :]
        tl.store(dg_ptr + tl.program_id(0) * D + column, dg, column < D)


def between(kernel, *tensors):
    """Run one of these kernels on its tensors, of which the first is (M, D)"""
    M, D = tensors[0].shape
    programs = triton.cdiv(M, ROWS)
    columns = triton.next_power_of_2(D)
    kernel[programs,](*tensors, M, D=D, COLUMNS=columns, ROWS=ROWS)


# --- the weights of all layers at once ---

KINDS = 9  # of weights that a layer has


def weights_of(layer):
    norms = layer.norm.weight, layer.gate_norm
    projections = layer.in_proj.weight, layer.out_proj.weight
    conv = layer.conv_weight, layer.conv_bias
    scan = layer.dt_bias, layer.A_log, layer.D
    return *norms, *projections, *conv, *scan


def by_kind(weights):
    """weights_of() one layer after the other -> of each kind a tuple of L"""
    layers = [weights[i:i + KINDS] for i in range(0, len(weights), KINDS)]
    return zip(*layers, strict=True)


def stacked(*kinds):
    """Of each kind L tensors -> of each kind a tensor (L, ...), all by a single copy"""
    L = len(kinds[0])
    flat = torch.cat([x.flatten() for kind in kinds for x in kind])
    parts = flat.split([L * kind[0].numel() for kind in kinds])
    return [part.view(L, *kind[0].shape) for part, kind in zip(parts, kinds, strict=True)]


def summed_products(a, b, B):
    """a (L, M, m) and b (L, M, n) of B examples -> a^T b, (L, m, n), in fp32"""
    L, M, m = a.shape
    splits = math.gcd(B, SPLITS)
    a = a.view(L * splits, M // splits, m)
    b = b.view(L * splits, M // splits, -1)
    products = torch.bmm(a.transpose(1, 2), b)
    products = products.view(L, splits, m, -1)
    return products.sum(1, dtype=torch.float32)


# --- the layers ---

class LayerRun(torch.autograd.Function):
    """L layers in a row: x (B, T, D) fp32, pace (B, T, 1), Sizes, the data type of half precision,
    whether there will be a backward pass, and weights_of() each layer -> (B, T, D)"""

    @staticmethod
    def forward(ctx, x, pace, sizes, half, saves, *weights):
        s, D = sizes, x.shape[2]
        M, HP, L = s.B * s.T, s.H * s.P, len(weights) // KINDS
        norms, gate_norms, in_projs, out_projs, *mixers, A_logs, Ds = by_kind(weights)
        gate_norm, in_proj, out_proj, A_log = stacked(gate_norms, in_projs, out_projs, A_logs)
        in_half = in_proj.to(half)
        # The norm's weights go into the projection, as in model.py.
        out_half = torch.empty_like(out_proj, dtype=half)
        torch.mul(out_proj, gate_norm[:, None], out=out_half)
        A = A_log.new_zeros(L, s.H)
        forever = s.H - A_log.shape[1]
        torch.exp(A_log, out=A[:, forever:])
        A.neg_()

        # Without a backward pass each layer overwrites what the one before has left.
        n = L if saves else 1
        streams = x.new_empty(max(1, n - 1), M, D)
        normed = x.new_empty(n, M, D, dtype=half)
        zxBCdt = x.new_empty(n, M, s.W, dtype=half)
        mixed = x.new_empty(n, M, HP, dtype=half)
        saved = saved_for(s, zxBCdt, n)
        pace = pace.contiguous()
        first = x.contiguous().view(M, D)
        stream, y = first, None
        for i, mixer in enumerate(zip(*mixers, A, Ds, strict=True)):
            at = i if saves else 0
            following = streams[max(0, at - 1)]
            between(between_forward, stream, y, norms[i], following, normed[at])
            stream = following if i else first
            torch.mm(normed[at], in_half[i].T, out=zxBCdt[at])
            of_layer = [x[at] for x in saved]
            mixer_forward(s, zxBCdt[at], pace, *mixer, of_layer, mixed[at])
            y = mixed[at] @ out_half[i].T
        if saves:
            ctx.sizes = s
            made = streams, normed, zxBCdt, mixed, *saved
            stacks = gate_norm, out_proj, in_half, out_half, A
            ctx.save_for_backward(pace, first, *made, *stacks, *weights)
        return (stream + y).view(x.shape)

    @staticmethod
    def backward(ctx, dx):
        pace, first, streams, normed, zxBCdt, mixed, *more = ctx.saved_tensors
        *saved, gate_norm, out_proj, in_half, out_half, A = more[:8]
        norms, _, _, _, *mixers, A_logs, Ds = by_kind(more[8:])
        mixers = list(zip(*mixers, A, Ds, strict=True))
        s, (L, M, D) = ctx.sizes, normed.shape
        dy = torch.empty_like(normed)
        dzxBCdt = torch.empty_like(zxBCdt)
        sums = A.new_empty(L, s.B, s.n_sums())
        dnorm = A.new_empty(L, triton.cdiv(M, ROWS), D)
        dstream = dx.contiguous().view(M, D)
        dy[-1].copy_(dstream)
        for i in reversed(range(L)):
            of_layer = [x[i] for x in saved]
            dmixed = dy[i] @ out_half[i]
            given = zxBCdt[i], pace, *mixers[i], of_layer, dmixed
            mixer_backward(s, *given, dzxBCdt[i], sums[i])
            dnormed = dzxBCdt[i] @ in_half[i]
            stream = streams[i - 1] if i else first
            given = stream, norms[i], dnormed, dstream
            dstream = torch.empty_like(dstream)
            dbefore = dy[i - 1] if i else None
            between(between_backward, *given, dstream, dbefore, dnorm[i])

        din_proj = summed_products(dzxBCdt, normed, s.B)
        dfolded = summed_products(dy, mixed, s.B)
        dout_proj = dfolded * gate_norm[:, None]
        dgate_norm = (dfolded * out_proj).sum(1)
        dw, db, ddt_bias, dA, dD = weights_from(s, sums.sum(1))
        forever = s.H - len(A_logs[0])
        dA_log = (dA * A)[:, forever:]
        norms = dnorm.sum(1), dgate_norm
        kinds = *norms, din_proj, dout_proj, dw, db, ddt_bias, dA_log, dD
        dweights = [x for layer in zip(*kinds, strict=True) for x in layer]
        return dstream.view(dx.shape), None, None, None, None, *dweights


def fits(layers, x):
    """Whether a LayerRun can take these layers: Mamba-2, and all of the same sizes"""
    if not layers or any(type(layer) is not model.Mamba2 for layer in layers):
        return False
    shapes = {tuple(w.shape for w in weights_of(layer)) for layer in layers}
    half = None
    if torch.is_autocast_enabled(x.device.type):
        half = torch.get_autocast_dtype(x.device.type)
    return len(shapes) == 1 and kernels_fit(x, half, *layers[0].sizes)


def run_layers(layers, x, pace):
    """Layers one after the other: x (B, T, D) fp32 and pace (B, T, 1), which gets no gradient ->
    (B, T, D). What a LayerRun cannot take goes layer by layer."""
    if not fits(layers, x):
        return model.run_layers(layers, x, pace)
    first = layers[0]
    W, H = len(first.in_proj.weight), len(first.D)
    sizes = Sizes(*x.shape[:2], W, H, *first.sizes)
    half = torch.get_autocast_dtype(x.device.type)
    weights = [w for layer in layers for w in weights_of(layer)]
    return LayerRun.apply(x, pace, sizes, half, torch.is_grad_enabled(), *weights)
