"""
Faster ways through a Mamba-2 layer, for GPUs: TritonMixer is mixer() of model.py in Triton, and
ssd_kernel is ssd() by mamba_ssm's kernel. tests/test_kernels.py holds each to its plain PyTorch.
"""
import functools
import importlib.util
import math
import os
import sys
from typing import NamedTuple

import torch

from model import mixer, ssd

# From Triton 3.6 on, the matrix products that only Hopper GPUs have read beyond a tile that is 32
# wide (triton-lang/triton issues 10486 and 11366). With this setting every Triton kernel of the
# process, mamba_ssm's too, takes those of the generation before. Triton reads it when it compiles a
# kernel, and all kernels with such products are reached through this file, so here is early enough.
os.environ.setdefault('DISABLE_MMA_V3', '1')
try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU, no need
    triton = tl = None

KERNEL_FROM = 1024  # tokens from which on ssd=auto takes mamba_ssm's scan; lab/bench.py measures it


# --- a Mamba-2 layer between in_proj and out_proj ---
#
# In PyTorch each step is a pass over memory. Here there are two: one for the convolution and the
# steps of time, and one for scan, gate and norm. There are two more for the gradients.
#
#   B examples   T tokens   H heads   P head_dim   N d_state   HP = H * P
#   W           numbers that in_proj gives a token: z (HP), xBC (HP + 2N), dt (H), a few unused
#   channels    HP + 2N, those of the convolution: x (HP), B (N), C (N)
#   Q           tokens in a chunk
#   half        the data type of what in_proj gives; sums are fp32
#   example, head, chunk   which of them a program works on
#   t, c, p, n  ranges: of tokens, of channels, of a head's numbers in x, of B's numbers in xBC
#   state       where in h its numbers lie
#   dy          the gradient of y, and so with any other name
#
# The scan of a head goes from chunk to chunk with its state h (N, P), which is 0 at first. Within a
# chunk it is a product with a matrix K (Q, Q), for token i and all tokens j <= i. Where pace is 0,
# so is step, and h stays as it is.
#
#   step = softplus(dt + dt_bias) pace     cum = cumsum(step A), from the start of the chunk
#   K_ij = (C_i . B_j) step_j exp(cum_i - cum_j)
#   y_i = sum_j K_ij x_j + exp(cum_i) C_i h + D x_i
#   h'  = exp(cum_last) h + sum_j step_j exp(cum_last - cum_j) B_j x_j^T, which the next chunk finds
#   s = y z sigmoid(z)     out = s / rms(s)
#
# A step is only ever a factor beside exp(-cum_j). So there is one logarithm for both of them, and
# as GPUs raise nothing but 2 to a power, all logarithms are to base 2:
#
#   cum = cumsum(step A) log2(e)     since = cum - log2(step)
#   step_j exp(cum_i - cum_j) = 2^(cum_i - since_j)
#
# kernel[grid](...) starts one program for each cell of the grid. A tensor arrives as a pointer, the
# address of its first number, and is contiguous. A mask says what to read or write: the rest is
# read as 0, and is not written; it is no mask & bool, as Triton's interpreter makes a number of a
# bool that stands alone. Sizes of the model are constants (tl.constexpr), from which Triton
# sees that rows begin at whole 16 bytes; T is none, as each T would be compiled anew.

SPAN = 32  # tokens that a convolution's program takes at once; chunks are whole spans
HEADS = 2  # of a program of scan_backward

if triton:
    LOG2E = tl.constexpr(math.log2(math.e))

    @triton.jit
    def sigmoid(z):
        """By a power of 2 and a reciprocal root, each of which is a single instruction"""
        root = tl.rsqrt(1 + tl.exp2(-z * LOG2E))
        return root * root

    @triton.jit
    def softplus(v):
        """log(1 + exp(v)), where 1 + exp(v) has the digits for it, and else what it comes to"""
        e = tl.exp(tl.minimum(v, 20))
        small = e * (1 - e / 2)
        return tl.where(v > 20, v, tl.where(v < -6, small, tl.log(1 + e)))

    @triton.jit
    def load(ptr, mask):
        return tl.load(ptr, mask, other=0)

    @triton.jit
    def load_float(ptr, mask):
        return load(ptr, mask).to(tl.float32)

    @triton.jit
    def load_tokens(ptr, t, T, width: tl.constexpr):
        """Of tokens t, in rows of a width; 0 before the first token and after the last"""
        return load_float(ptr + t * width, (t >= 0) & (t < T))

    @triton.jit
    def load_steps(dt_ptr, pace_ptr, dt_bias_ptr, t, T, W: tl.constexpr, head, H: tl.constexpr):
        """softplus, sigmoid and pace, of tokens t (any, 1) and heads (1, any)"""
        v = load_float(dt_ptr + t * W + head, (t < T) & (head < H))
        v += load_float(dt_bias_ptr + head, head < H)
        return softplus(v), sigmoid(v), load_float(pace_ptr + t, t < T)

    @triton.jit
    def steps_forward(
        dt_ptr, pace_ptr, dt_bias_ptr, A_ptr, cum_ptr, since_ptr,
        T, Q,
        H: tl.constexpr,
        W: tl.constexpr,
        BEHIND: tl.constexpr,
        SPAN: tl.constexpr,
    ):
        """cum and since (H, T) of one example"""
        head = tl.arange(0, BEHIND)[None, :]
        A = load(A_ptr + head, head < H)
        so_far = tl.zeros([1, BEHIND], tl.float32)
        for start in range(0, T, SPAN):
            t = start + tl.arange(0, SPAN)[:, None]
            soft, _, pace = load_steps(dt_ptr, pace_ptr, dt_bias_ptr, t, T, W, head, H)
            step = soft * pace
            decay = step * A * LOG2E
            # Each chunk counts from its own start.
            so_far = tl.where(start % Q == 0, 0, so_far)
            cum = so_far + tl.cumsum(decay, 0)
            so_far += tl.sum(decay, 0)[None, :]
            mask = (t < T) & (head < H)
            tl.store(cum_ptr + head * T + t, cum, mask)
            tl.store(since_ptr + head * T + t, cum - tl.log2(step), mask)

    @triton.jit
    def load_taps(w_ptr, b_ptr, channels: tl.constexpr):
        """The convolution's weights and bias. w0 is of the token itself, w3 of that three before"""
        w3 = tl.load(w_ptr).to(tl.float32)
        w2 = tl.load(w_ptr + channels).to(tl.float32)
        w1 = tl.load(w_ptr + 2 * channels).to(tl.float32)
        w0 = tl.load(w_ptr + 3 * channels).to(tl.float32)
        return w0, w1, w2, w3, tl.load(b_ptr).to(tl.float32)

    @triton.jit(do_not_specialize=['T', 'Q'])
    def conv_forward(
        zxBCdt_ptr, pace_ptr, w_ptr, b_ptr, dt_bias_ptr, A_ptr, xBC_ptr, cum_ptr, since_ptr,
        T, Q,
        H: tl.constexpr,
        P: tl.constexpr,
        N: tl.constexpr,
        W: tl.constexpr,
        BEHIND: tl.constexpr,  # numbers of a token behind xBC, or more
        SPAN: tl.constexpr,
        BLOCK: tl.constexpr,  # channels of a program
    ):
        """xBC (B, T, channels), which is SiLU of the convolution, cum and since (B, H, T). The grid
        is (B, 1 + spans of tokens, blocks of channels), of which the first has the steps."""
        HP: tl.constexpr = H * P
        channels: tl.constexpr = HP + 2 * N
        example = tl.program_id(0).to(tl.int64)  # a batch may have more than 2^31 numbers
        span = tl.program_id(1) - 1
        block = tl.program_id(2)
        zxBCdt_ptr += example * T * W
        if span >= 0:
            t = span * SPAN + tl.arange(0, SPAN)[:, None]
            c = block * BLOCK + tl.arange(0, BLOCK)[None, :]
            w0, w1, w2, w3, bias = load_taps(w_ptr + c, b_ptr + c, channels)
            # Only the first of these comes from far: the others find it in the cache.
            x_ptr = zxBCdt_ptr + HP + c
            x0 = load_tokens(x_ptr, t, T, W)
            x1 = load_tokens(x_ptr, t - 1, T, W)
            x2 = load_tokens(x_ptr, t - 2, T, W)
            x3 = load_tokens(x_ptr, t - 3, T, W)
            s = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
            y_ptr = xBC_ptr + example * T * channels + c
            tl.store(y_ptr + t * channels, s * sigmoid(s), t < T)
        elif block == 0:
            steps_forward(
                zxBCdt_ptr + HP + channels, pace_ptr + example * T, dt_bias_ptr, A_ptr,
                cum_ptr + example * H * T, since_ptr + example * H * T,
                T, Q, H, W, BEHIND, SPAN,
            )

    @triton.jit
    def kept(t, cum, since):
        """What token i has of token j <= i, 2^(cum_i - since_j), (Q, Q)"""
        between = cum[:, None] - since[None, :]
        # -inf goes in before the power, as that of what lies in the future could overflow.
        return tl.exp2(tl.where(t[:, None] >= t[None, :], between, float('-inf')))

    @triton.jit
    def load_cum(cum_ptr, mask):
        """cum, and where there is none what leaves nothing: 2^-inf"""
        return tl.load(cum_ptr, mask, other=float('-inf'))

    @triton.jit(do_not_specialize=['T'])
    def scan_forward(
        zxBCdt_ptr, xBC_ptr, cum_ptr, since_ptr, D_ptr, states_ptr, out_ptr,
        T,
        H: tl.constexpr,
        P: tl.constexpr,
        N: tl.constexpr,
        W: tl.constexpr,
        Q: tl.constexpr,
        CHUNKED: tl.constexpr,  # T may be more than Q
    ):
        """Scan, gate and norm. The grid is (B * H,). states are those that chunks find, but for the
        first: (B, H, chunks - 1, N, P)."""
        HP: tl.constexpr = H * P
        channels: tl.constexpr = HP + 2 * N
        example = (tl.program_id(0) // H).to(tl.int64)
        head = tl.program_id(0) % H
        chunks = tl.cdiv(T, Q) if CHUNKED else 1
        p = tl.arange(0, P)[None, :]
        n = tl.arange(0, N)[None, :]
        state = tl.arange(0, N)[:, None] * P + p
        z_ptr = zxBCdt_ptr + example * T * W + head * P + p
        x_ptr = xBC_ptr + example * T * channels + head * P + p
        B_ptr = xBC_ptr + example * T * channels + HP + n
        C_ptr = B_ptr + N
        out_ptr += example * T * HP + head * P + p
        cum_ptr += (example * H + head) * T
        since_ptr += (example * H + head) * T
        states_ptr += (example * H + head) * (chunks - 1) * N * P + state
        half = xBC_ptr.dtype.element_ty
        D = tl.load(D_ptr + head)
        h = tl.zeros([N, P], tl.float32)
        for chunk in range(chunks):
            t = chunk * Q + tl.arange(0, Q)
            row = t[:, None]
            B = load(B_ptr + row * channels, row < T)  # (Q, N)
            C = load(C_ptr + row * channels, row < T)
            x = load(x_ptr + row * channels, row < T)  # (Q, P)
            z = load_float(z_ptr + row * W, row < T)
            cum = load_cum(cum_ptr + t, t < T)
            since = load(since_ptr + t, t < T)
            K = tl.dot(C, B.T) * kept(t, cum, since)  # (Q, Q)
            y = tl.dot(K.to(half), x)
            if CHUNKED:
                # What is needed again is loaded again, here and below: there is no room on the chip
                # to keep it, and it is still in the cache.
                found = load(states_ptr + (chunk - 1) * N * P, state < N * P * (chunk > 0))
                C = load(C_ptr + row * channels, row < T)
                y += tl.exp2(cum)[:, None] * tl.dot(C, found)
                if chunk + 1 < chunks:
                    last = tl.load(cum_ptr + chunk * Q + Q - 1)
                    B = load(B_ptr + row * channels, row < T)
                    left = (B * tl.exp2(last - since)[:, None]).to(half)
                    h = tl.exp2(last) * h + tl.dot(left.T, x)
                    tl.store(states_ptr + chunk * N * P, h)
                    tl.debug_barrier()  # all threads of the program see what each has stored
            y += D * x
            s = y * z * sigmoid(z)
            r = tl.rsqrt(tl.sum(s * s, 1) / P + 1e-5)  # (Q,)
            tl.store(out_ptr + row * HP, s * r[:, None], row < T)

    @triton.jit
    def back_through_norm(y, z, dout):
        """Gate and norm backwards: the gradients of y and z, (Q, P)"""
        P: tl.constexpr = y.shape[1]
        open_ = sigmoid(z)
        gate = z * open_
        s = y * gate
        # Norm: out = s r, r = 1 / sqrt(mean(s^2) + 1e-5):
        # ds = (dout - s along) r, along = mean(dout s) r^2
        r = tl.rsqrt(tl.sum(s * s, 1) / P + 1e-5)
        along = tl.sum(dout * s, 1) * r * r / P
        ds = (dout - s * along[:, None]) * r[:, None]
        # Gate: s = y gate, gate = z open, open = sigmoid(z):
        # dy = ds gate, dz = ds y open (1 + z - gate)
        dz = ds * y * open_
        return ds * gate, dz + dz * z - dz * gate

    @triton.jit(do_not_specialize=['T'])
    def scan_backward(
        zxBCdt_ptr, xBC_ptr, cum_ptr, since_ptr, D_ptr, states_ptr, dout_ptr,
        dzxBCdt_ptr, dxBC_ptr, dyx_ptr, dlog_ptr, dcum_ptr, dh_ptr, dlast_ptr,
        T,
        H: tl.constexpr,
        P: tl.constexpr,
        N: tl.constexpr,
        W: tl.constexpr,
        Q: tl.constexpr,
        CHUNKED: tl.constexpr,
        HEADS: tl.constexpr,  # of a program, which make a group
    ):
        """The gradients of z and xBC, where each group of heads has its own sums for B and C: dxBC
        is (B, T, HP + groups * 2N). For conv_backward, (B, H, T) each: dyx, what a token gives to
        D; dlog, the gradient of log(step) as far as only that token's counts; dcum, that of
        log(decay), to be summed from the chunk's end on; and dlast (B, H, chunks), that of all
        there. The grid is (B * groups,). dh (B, H, N, P) is of the program's own."""
        groups: tl.constexpr = H // HEADS
        HP: tl.constexpr = H * P
        channels: tl.constexpr = HP + 2 * N
        width: tl.constexpr = HP + groups * 2 * N
        example = (tl.program_id(0) // groups).to(tl.int64)
        group = tl.program_id(0) % groups
        chunks = tl.cdiv(T, Q) if CHUNKED else 1
        p = tl.arange(0, P)[None, :]
        n = tl.arange(0, N)[None, :]
        state = tl.arange(0, N)[:, None] * P + p
        half = xBC_ptr.dtype.element_ty
        zxBCdt_ptr += example * T * W + p
        dzxBCdt_ptr += example * T * W + p
        x_ptr = xBC_ptr + example * T * channels + p
        B_ptr = xBC_ptr + example * T * channels + HP + n
        C_ptr = B_ptr + N
        dxBC_ptr += example * T * width
        dout_ptr += example * T * HP + p
        cum_ptr += example * H * T
        since_ptr += example * H * T
        dyx_ptr += example * H * T
        dlog_ptr += example * H * T
        dcum_ptr += example * H * T
        dlast_ptr += example * H * chunks
        states_ptr += example * H * (chunks - 1) * N * P + state
        dh_ptr += example * H * N * P + state
        for back in range(chunks):
            chunk = chunks - 1 - back
            t = chunk * Q + tl.arange(0, Q)
            row = t[:, None]
            B = load(B_ptr + row * channels, row < T)  # (Q, N)
            C = load(C_ptr + row * channels, row < T)
            scores = tl.dot(C, B.T)  # (Q, Q)
            dscores = tl.zeros([Q, Q], tl.float32)
            dB = tl.zeros([Q, N], tl.float32)
            dC = tl.zeros([Q, N], tl.float32)
            for k in tl.static_range(HEADS):
                head = group * HEADS + k
                D = tl.load(D_ptr + head)
                # First the forward pass again, as none of it was stored but states.
                cum = load_cum(cum_ptr + head * T + t, t < T)
                since = load(since_ptr + head * T + t, t < T)
                x = load(x_ptr + row * channels + head * P, row < T)  # (Q, P)
                share = kept(t, cum, since)
                K = (scores * share).to(half)
                y = tl.dot(K, x)
                if CHUNKED:
                    at = head * (chunks - 1) + chunk - 1
                    h = load(states_ptr + at * N * P, state < N * P * (chunk > 0))
                    C = load(C_ptr + row * channels, row < T)
                    y += tl.exp2(cum)[:, None] * tl.dot(C, h)
                z = load_float(zxBCdt_ptr + row * W + head * P, row < T)
                dout = load_float(dout_ptr + row * HP + head * P, row < T)
                y += D * x
                dy, dz = back_through_norm(y, z, dout)
                tl.store(dzxBCdt_ptr + row * W + head * P, dz, row < T)
                # Within the chunk: y = K x, K = scores share:
                # dx = K^T dy, dK = dy x^T
                dy = dy.to(half)
                dx = tl.dot(K.T, dy)
                dscores += tl.dot(dy, x.T) * share
                if CHUNKED:
                    # To the next chunk: h' = 2^last h + sum_j 2^(last - since_j) B_j x_j^T
                    inner = chunk + 1 < chunks
                    last = load_cum(cum_ptr + head * T + chunk * Q + Q - 1, inner)
                    to_end = tl.exp2(last - since)[:, None]
                    dnext = load(dh_ptr + head * N * P, state < N * P * inner)
                    B = load(B_ptr + row * channels, row < T)
                    dx += to_end * tl.dot(B, dnext.to(half))
                    dB = tl.dot((x * to_end).to(half), dnext.to(half).T, dB)
                    # From the chunk before: y_i = 2^cum_i C_i h
                    dCh = (dy * tl.exp2(cum)[:, None]).to(half)
                    dC = tl.dot(dCh, h.T, dC)
                    if chunk > 0:
                        C = load(C_ptr + row * channels, row < T)
                        dh = tl.exp2(last) * dnext + tl.dot(C.T, dCh)
                        # All that is in h was multiplied by 2^last at that chunk's end.
                        tl.store(dlast_ptr + head * chunks + chunk - 1, tl.sum(h * dh))
                        tl.debug_barrier()  # no thread still reads what is overwritten
                        tl.store(dh_ptr + head * N * P, dh)
                # All that reaches y but D x comes by 2^cum_i, and all that x leaves by 2^-since_j.
                dyx = tl.sum(dy.to(tl.float32) * x, 1)
                dlog = tl.sum(x * dx, 1)
                dcum = tl.sum(dy * y, 1) - D * dyx - dlog
                tl.store(dyx_ptr + head * T + t, dyx, t < T)
                tl.store(dlog_ptr + head * T + t, dlog, t < T)
                tl.store(dcum_ptr + head * T + t, dcum, t < T)
                dx_ptr = dxBC_ptr + row * width + head * P + p
                tl.store(dx_ptr, dx + D * dy, row < T)
            # Scores: C B^T:
            # dB = dscores^T C, dC = dscores B
            C = load(C_ptr + row * channels, row < T)
            B = load(B_ptr + row * channels, row < T)
            dscores = dscores.to(half)
            dB = tl.dot(dscores.T, C, dB)
            dC = tl.dot(dscores, B, dC)
            dB_ptr = dxBC_ptr + row * width + HP + group * 2 * N + n
            tl.store(dB_ptr, dB, row < T)
            tl.store(dB_ptr + N, dC, row < T)
            if CHUNKED:
                tl.debug_barrier()  # the next chunk reads dh

    @triton.jit
    def steps_backward(
        dt_ptr, pace_ptr, dt_bias_ptr, A_ptr, dyx_ptr, dlog_ptr, dcum_ptr, dlast_ptr,
        ddt_ptr, sums_ptr,
        T, Q,
        H: tl.constexpr,
        W: tl.constexpr,
        unused: tl.constexpr,  # numbers of a token, behind dt
        BEHIND: tl.constexpr,
        SPAN: tl.constexpr,
    ):
        """The gradients of dt, and of A, D and dt_bias by this example: sums is (3H,)"""
        head = tl.arange(0, BEHIND)[None, :]
        A = load(A_ptr + head, head < H)
        dA = tl.zeros([1, BEHIND], tl.float32)
        dD = tl.zeros([1, BEHIND], tl.float32)
        dbias = tl.zeros([1, BEHIND], tl.float32)
        later = tl.zeros([1, BEHIND], tl.float32)
        chunks = tl.cdiv(T, Q)
        spans = tl.cdiv(T, SPAN)
        for back in range(spans):
            start = (spans - 1 - back) * SPAN
            t = start + tl.arange(0, SPAN)[:, None]
            mask = (t < T) & (head < H)
            soft, slope, pace = load_steps(dt_ptr, pace_ptr, dt_bias_ptr, t, T, W, head, H)
            dlog = load(dlog_ptr + head * T + t, mask)
            dcum = load(dcum_ptr + head * T + t, mask)
            # A token's decay counts in each cum from there to the end of the chunk.
            chunk = start // Q
            dlast = load(dlast_ptr + head * chunks + chunk, head < H * (chunk + 1 < chunks))
            later = tl.where((start + SPAN) % Q == 0, dlast, later)
            ddecay = tl.cumsum(dcum, 0, reverse=True) + later
            later += tl.sum(dcum, 0)[None, :]
            # step = softplus(v) pace, so d log(step) = sigmoid(v) / softplus(v) dv
            dv = dlog * slope / tl.maximum(soft, 1e-37) + ddecay * A * pace * slope
            # The unused get zeros.
            tl.store(ddt_ptr + t * W + head, dv, (t < T) & (head < H + unused))
            dA += tl.sum(ddecay * soft * pace, 0)[None, :]
            dD += tl.sum(load(dyx_ptr + head * T + t, mask), 0)[None, :]
            dbias += tl.sum(dv, 0)[None, :]
        tl.store(sums_ptr + head, dA, head < H)
        tl.store(sums_ptr + H + head, dD, head < H)
        tl.store(sums_ptr + 2 * H + head, dbias, head < H)

    @triton.jit
    def taps_backward(
        x_ptr, w_ptr, b_ptr, dy_ptr, dx_ptr, sums_ptr,
        T, c,
        W: tl.constexpr,
        channels: tl.constexpr,
        width: tl.constexpr,  # of a token's dy
        SHARES: tl.constexpr,  # of dy, to be summed
        apart: tl.constexpr,  # from one share to the next
        RUNS: tl.constexpr,  # of tokens, which the program takes at once
        RUN: tl.constexpr,  # tokens in one
    ):
        """The gradients of the convolution's inputs, and of its weights and bias by this example:
        channels c (1, any) of sums (5, channels)"""
        w0, w1, w2, w3, bias = load_taps(w_ptr + c, b_ptr + c, channels)
        run = tl.arange(0, RUNS)[:, None] * RUN
        none = tl.zeros([RUNS, c.shape[1]], tl.float32)
        dw0, dw1, dw2, dw3, dbias = none, none, none, none, none
        for first in range(0, T, RUNS * RUN):
            # A token counts in the three after it, too. So the program goes through all runs
            # backwards, with the gradients of three tokens at hand, and begins three tokens beyond
            # each run, which are the next run's.
            t = first + run + RUN + 2
            x0 = load_tokens(x_ptr + c, t, T, W)
            x1 = load_tokens(x_ptr + c, t - 1, T, W)
            x2 = load_tokens(x_ptr + c, t - 2, T, W)
            g1, g2, g3 = none, none, none
            for back in tl.static_range(RUN + 3):
                x3 = load_tokens(x_ptr + c, t - 3, T, W)
                dy = load_tokens(dy_ptr + c, t, T, width)
                for share in tl.static_range(1, SHARES):
                    dy += load_tokens(dy_ptr + share * apart + c, t, T, width)
                # SiLU: y = s open, open = sigmoid(s):
                # ds = dy (open + s open (1 - open))
                s = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
                open_ = sigmoid(s)
                g0 = dy * (open_ + s * open_ * (1 - open_))
                if back >= 3:
                    dx = w0 * g0 + w1 * g1 + w2 * g2 + w3 * g3
                    tl.store(dx_ptr + t * W + c, dx, t < T)
                    dw0 += g0 * x0
                    dw1 += g0 * x1
                    dw2 += g0 * x2
                    dw3 += g0 * x3
                    dbias += g0
                x0, x1, x2 = x1, x2, x3
                g1, g2, g3 = g0, g1, g2
                t -= 1
        tl.store(sums_ptr + c, tl.sum(dw3, 0)[None, :])
        tl.store(sums_ptr + channels + c, tl.sum(dw2, 0)[None, :])
        tl.store(sums_ptr + 2 * channels + c, tl.sum(dw1, 0)[None, :])
        tl.store(sums_ptr + 3 * channels + c, tl.sum(dw0, 0)[None, :])
        tl.store(sums_ptr + 4 * channels + c, tl.sum(dbias, 0)[None, :])

    @triton.jit(do_not_specialize=['T', 'Q'])
    def conv_backward(
        zxBCdt_ptr, pace_ptr, w_ptr, b_ptr, dt_bias_ptr, A_ptr,
        dxBC_ptr, dyx_ptr, dlog_ptr, dcum_ptr, dlast_ptr, dzxBCdt_ptr, sums_ptr,
        T, Q,
        H: tl.constexpr,
        P: tl.constexpr,
        N: tl.constexpr,
        W: tl.constexpr,
        BEHIND: tl.constexpr,
        SPAN: tl.constexpr,
        BLOCK: tl.constexpr,  # channels of a program
        GROUPS: tl.constexpr,  # of heads, in dxBC
    ):
        """The gradients of xBC and dt as in_proj gives them, and those of the weights by example:
        sums is (B, 5 channels + 3H), of w, b, A, D and dt_bias. The grid is (B, 1 + blocks of
        channels), of which the first has the steps."""
        HP: tl.constexpr = H * P
        channels: tl.constexpr = HP + 2 * N
        width: tl.constexpr = HP + GROUPS * 2 * N
        unused: tl.constexpr = W - HP - channels - H
        RUN: tl.constexpr = 8
        RUNS: tl.constexpr = SPAN // RUN
        example = tl.program_id(0).to(tl.int64)
        block = tl.program_id(1) - 1
        c = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        x_ptr = zxBCdt_ptr + example * T * W + HP
        dx_ptr = dzxBCdt_ptr + example * T * W + HP
        dy_ptr = dxBC_ptr + example * T * width
        sums_ptr += example * (5 * channels + 3 * H)
        # Three kinds of programs
        if block < 0:
            steps_backward(
                x_ptr + channels, pace_ptr + example * T, dt_bias_ptr, A_ptr,
                dyx_ptr + example * H * T, dlog_ptr + example * H * T,
                dcum_ptr + example * H * T, dlast_ptr + example * H * tl.cdiv(T, Q),
                dx_ptr + channels, sums_ptr + 5 * channels,
                T, Q, H, W, unused, BEHIND, SPAN,
            )
        elif block * BLOCK < HP:
            taps_backward(
                x_ptr, w_ptr, b_ptr, dy_ptr, dx_ptr, sums_ptr,
                T, c, W, channels, width, 1, 0, RUNS, RUN,
            )
        else:
            taps_backward(
                x_ptr, w_ptr, b_ptr, dy_ptr, dx_ptr, sums_ptr,
                T, c, W, channels, width, GROUPS, 2 * N, RUNS, RUN,
            )


class Sizes(NamedTuple):
    """Those of what a mixer is given: the letters above"""
    B: int
    T: int
    W: int
    H: int
    P: int
    N: int

    def channels(self):
        return self.H * self.P + 2 * self.N

    def chunk(self):
        """Tokens in a chunk: 64, unless 32 leave fewer places empty"""
        return 32 if self.T <= 32 or -self.T % 64 >= 32 else 64

    def chunks(self):
        return -(-self.T // self.chunk())

    def heads(self):
        """How many heads scan_backward takes in one program"""
        return math.gcd(self.H, HEADS)

    def n_sums(self):
        """What conv_backward has for all weights, an example"""
        return 5 * self.channels() + 3 * self.H

    def of_model(self):
        return {key: getattr(self, key) for key in 'HPNW'}

    def of_conv(self):
        """Both the channels of x and those of B and C are whole blocks."""
        HP = self.H * self.P
        behind = self.W - HP - self.channels()
        block = math.gcd(64, HP, 2 * self.N)
        return dict(SPAN=SPAN, BLOCK=block, BEHIND=triton.next_power_of_2(behind), num_warps=2)

    def of_scan(self, *registers):
        """Given how many registers a thread may have, for one chunk and for several: with too many
        too few programs fit on the chip at once"""
        Q, chunked = self.chunk(), self.chunks() > 1
        # A warp has 16 rows of a product.
        how = dict(num_warps=Q // 16, num_stages=1, maxnreg=registers[chunked])
        return dict(Q=Q, CHUNKED=chunked, **how)


def saved_for(sizes, like, layers=1):
    """What mixer_forward leaves for mixer_backward, empty yet, for a number of layers: xBC, cum and
    since, and states"""
    s = sizes
    xBC = like.new_empty(layers, s.B, s.T, s.channels())
    logs = like.new_empty(layers, 2, s.B, s.H, s.T, dtype=torch.float32)
    states = like.new_empty(layers, s.B, s.H, s.chunks() - 1, s.N, s.P)
    return xBC, logs, states


def mixer_forward(sizes, zxBCdt, pace, w, b, dt_bias, A, D, saved, out):
    """The mixer of one layer; all tensors are contiguous. saved, each of saved_for() at one layer,
    and out (B, T, HP) get what it makes."""
    s = sizes
    xBC, (cum, since), states = saved
    conv = s.of_conv()
    grid = s.B, 1 + triton.cdiv(s.T, SPAN), s.channels() // conv['BLOCK']
    conv_forward[grid](
        zxBCdt, pace, w, b, dt_bias, A, xBC, cum, since, s.T, s.chunk(),
        **s.of_model(), **conv,
    )
    scan_forward[s.B * s.H,](
        zxBCdt, xBC, cum, since, D, states, out, s.T,
        **s.of_model(), **s.of_scan(128, 168),
    )


def mixer_backward(sizes, zxBCdt, pace, w, b, dt_bias, A, D, saved, dout, dzxBCdt, sums):
    """Gradients of mixer_forward, given that of out: dzxBCdt, and sums (B, n_sums()), which are to
    be summed over B, for weights_from()"""
    s = sizes
    xBC, (cum, since), states = saved
    groups = s.H // s.heads()
    dxBC = xBC.new_empty(s.B, s.T, s.H * s.P + groups * 2 * s.N)
    dyx, dlog, dcum = cum.new_empty(3, s.B, s.H, s.T)
    dlast = cum.new_empty(s.B, s.H, s.chunks())
    dh = cum.new_empty(s.B, s.H, s.N, s.P if s.chunks() > 1 else 0)
    scan_backward[s.B * groups,](
        zxBCdt, xBC, cum, since, D, states, dout,
        dzxBCdt, dxBC, dyx, dlog, dcum, dh, dlast, s.T,
        **s.of_model(), **s.of_scan(255, 255), HEADS=s.heads(),
    )
    conv = s.of_conv()
    conv_backward[s.B, 1 + s.channels() // conv['BLOCK']](
        zxBCdt, pace, w, b, dt_bias, A, dxBC, dyx, dlog, dcum, dlast, dzxBCdt, sums, s.T, s.chunk(),
        **s.of_model(), **conv, GROUPS=groups,
    )


def weights_from(sizes, sums):
    """Sums (..., n_sums()) -> the gradients of w (..., 4, channels), b, dt_bias, A and D"""
    H, channels = sizes.H, sizes.channels()
    w, b, A, D, dt_bias = sums.split([4 * channels, channels, H, H, H], -1)
    return w.unflatten(-1, (4, channels)), b, dt_bias, A, D


class TritonMixer(torch.autograd.Function):
    """mixer() of model.py in four kernels, for inputs that kernels_fit():

    zxBCdt (B, T, W), which in_proj gives; pace (B, T, 1), which gets no gradient; w (4, channels),
    the oldest token's first, and b (channels,) of the convolution; dt_bias, A and D (H,); head_dim;
    d_state -> what out_proj takes, before the weights of the norm: (B, T, HP)"""

    @staticmethod
    def forward(ctx, zxBCdt, pace, w, b, dt_bias, A, D, P, N):
        inputs = [x.contiguous() for x in (zxBCdt, pace, w, b, dt_bias, A, D)]
        sizes = Sizes(*zxBCdt.shape, len(A), P, N)
        saved = saved_for(sizes, zxBCdt)
        out = zxBCdt.new_empty(*zxBCdt.shape[:2], len(A) * P)
        mixer_forward(sizes, *inputs, [x[0] for x in saved], out)
        ctx.sizes = sizes
        ctx.save_for_backward(*inputs, *saved)
        return out

    @staticmethod
    def backward(ctx, dout):
        *inputs, xBC, logs, states = ctx.saved_tensors
        sizes = ctx.sizes
        dzxBCdt = torch.empty_like(inputs[0])
        sums = logs.new_empty(sizes.B, sizes.n_sums())
        saved = xBC[0], logs[0], states[0]
        mixer_backward(sizes, *inputs, saved, dout.contiguous(), dzxBCdt, sums)
        return dzxBCdt, None, *weights_from(sizes, sums.sum(0)), None, None


def kernels_fit(x, dtype, head_dim, d_state):
    """Whether the kernels can take what is like x (B, T, any), on a GPU, in a data type: half
    precision, a T that they are fast for, and sizes that they can tile, on the smallest card too"""
    half = dtype in (torch.float16, torch.bfloat16)
    tiles = head_dim in (16, 32) and d_state in (16, 32, 64, 128)
    return bool(triton) and x.is_cuda and half and x.shape[1] < KERNEL_FROM and tiles


# --- mamba_ssm's scan, for long sequences ---

@functools.cache
def load_kernel():
    """mamba_ssm's Triton kernel of the scan; ImportError says what is missing. The package's own
    import wants extensions compiled for CUDA, which the kernel does without. So an empty package of
    that name stands in for it, and only the modules that the kernel needs are loaded."""
    spec = importlib.util.find_spec('mamba_ssm')
    if spec is None:
        raise ImportError("mamba-ssm is not installed, see requirements-gpu.txt")
    if 'mamba_ssm' not in sys.modules:
        sys.modules['mamba_ssm'] = importlib.util.module_from_spec(spec)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    return mamba_chunk_scan_combined


def kernel_missing(device='cuda'):
    """Why ssd_kernel cannot be used on a device, '' if it can"""
    if torch.device(device).type != 'cuda' or not torch.cuda.is_available():
        return "it needs an NVIDIA GPU"
    try:
        load_kernel()
    except ImportError as e:
        return str(e)
    return ''


@torch.compiler.disable
def ssd_kernel(x, dt, A, B, C):
    """ssd() of model.py by mamba_ssm's kernel, with one group of heads and in chunks of 256 tokens,
    which suit it"""
    return load_kernel()(x, dt, A, B.unsqueeze(2), C.unsqueeze(2), 256)


# --- which way is the fastest ---

def fastest_mixer(*inputs, long_scan):
    """mixer() of model.py, by whatever takes its inputs the soonest"""
    zxBCdt, *_, head_dim, d_state = inputs
    if kernels_fit(zxBCdt, zxBCdt.dtype, head_dim, d_state):
        return TritonMixer.apply(*inputs)
    is_long = zxBCdt.shape[1] >= KERNEL_FROM
    return mixer(*inputs, scan=long_scan if is_long else ssd)


def mixer_for(name, device):
    """'auto' or 'mamba_ssm' -> a mixer() for models on a device. What depends on the machine is
    asked here, once; what depends on the inputs is asked by what is returned."""
    why = kernel_missing(device)
    if name == 'auto':
        return functools.partial(fastest_mixer, long_scan=ssd if why else ssd_kernel)
    if why:
        raise ValueError(f"ssd=mamba_ssm cannot be had here: {why}; ssd=auto takes what there is")
    return functools.partial(mixer, scan=ssd_kernel)
