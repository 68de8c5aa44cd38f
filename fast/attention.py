"""
Faster attention, for GPUs: local_attention() and content_attention() of model.py in Triton.
tests/test_fast_attention.py holds each to its plain PyTorch.
"""
import math

import torch

import model
from fast.kernels import triton  # and a setting for all kernels

if triton:
    from fast.kernels import load, tl

# --- attention within reach ---
#
# In PyTorch each window of keys and values is copied with the two beside it, and rotation, scores
# and softmax are passes over memory. Here all of it is one pass, and the gradient is another.
#
#   B examples   T tokens   h heads   d numbers of a query or key   HALF d / 2   C those of a value
#   TILE        tokens of a program; whatever they reach lies among 2 * TILE tokens around
#   WIDTH       HALF, or more, filled up with zeros: Triton wants 16, and a power of 2
#   t, s        times of queries and of keys: one is a column (n, 1), the other a row (1, m)
#   a, b        the halves of queries or keys, (n, WIDTH): the clock turns pairs of one in each
#   lse         the logarithm of the sum of exp(score): it gives the weights again
#   x_example, x_head, x_token   how far apart in memory the next ones lie: 0 if x is one for all
#
# The grid is (tiles, h, B). The numbers of a last dimension lie side by side.

if triton:
    PI = tl.constexpr(math.pi)

    @triton.jit
    def at_head(ptr, x_example, x_head):
        """Where the numbers of the program's example and head begin"""
        example = tl.program_id(2).to(tl.int64)  # a batch may have more than 2^31 numbers
        return ptr + example * x_example + tl.program_id(1) * x_head

    @triton.jit
    def clock(t, i, HALF: tl.constexpr):
        """Cosine and sine of the angle that pair i has turned by at time t, t / 64^(i / HALF).
        Triton's own are right for all angles, and take several times as long."""
        rate = tl.exp2(i * (-6 / HALF))
        turns = t * (rate * (0.5 / PI))
        # Without whole turns, half of the angle is a right angle at most. So far Taylor's series
        # are right to 4e-6. Then the angle is doubled.
        x = (turns - tl.floor(turns + 0.5)) * PI
        square = x * x
        sin = 1 / 120 + square * (-1 / 5040 + square * (1 / 362880))
        sin = x * (1 + square * (-1 / 6 + square * sin))
        cos = -1 / 720 + square * (1 / 40320 - square * (1 / 3628800))
        cos = 1 + square * (-1 / 2 + square * (1 / 24 + square * cos))
        return 1 - 2 * sin * sin, 2 * sin * cos

    @triton.jit
    def turn(a, b, cos, sin):
        return a * cos - b * sin, a * sin + b * cos

    @triton.jit
    def load_halves(
        ptr, x_token, t, T,
        HALF: tl.constexpr,
        WIDTH: tl.constexpr,
    ):
        """Queries or keys at times t (n, 1), turned by the clock -> a, b"""
        i = tl.arange(0, WIDTH)[None, :]
        mask = (t >= 0) & (t < T) & (i < HALF)
        ptr += t * x_token + i
        a = load(ptr, mask)
        b = load(ptr + HALF, mask)
        cos, sin = clock(t, i, HALF)
        turned_a, turned_b = turn(a.to(tl.float32), b.to(tl.float32), cos, sin)
        return turned_a.to(a.dtype), turned_b.to(b.dtype)

    @triton.jit
    def store_halves(
        ptr, x_token, a, b, t, T,
        HALF: tl.constexpr,
        WIDTH: tl.constexpr,
        ONE: tl.constexpr,
    ):
        """The gradient (a, b) of what the clock turned is turned back and stored at times t. If it
        is of one query or key for all tokens, its sum is, as that of the tile."""
        i = tl.arange(0, WIDTH)[None, :]
        cos, sin = clock(t, i, HALF)
        a, b = turn(a, b, cos, -sin)
        if ONE:
            ptr += tl.program_id(0) * x_token + i
            mask = i < HALF
            a = tl.sum(a, 0)[None, :]
            b = tl.sum(b, 0)[None, :]
        else:
            ptr += t * x_token + i
            mask = (t < T) & (i < HALF)
        tl.store(ptr, a, mask)
        tl.store(ptr + HALF, b, mask)

    @triton.jit
    def load_columns(ptr, x_token, t, c, T, C: tl.constexpr):
        """Columns c (1, m) of values, or of what has their shape, at times t (n, 1)"""
        mask = (t >= 0) & (t < T) & (c < C)
        return load(ptr + t * x_token + c, mask)

    @triton.jit
    def scores(a, b, other_a, other_b, HALF: tl.constexpr):
        """Those of queries and keys, or of keys and queries: (n, m)"""
        product = tl.dot(b, other_b.T, tl.dot(a, other_a.T))
        return product * (2 * HALF) ** -0.5

    @triton.jit
    def sees(
        t, s, valid_ptr, T,
        REACH: tl.constexpr,
        CAUSAL: tl.constexpr,
        PADDED: tl.constexpr,
    ):
        """Whether the query at time t sees the key at time s"""
        offset = s - t
        inside = (s >= 0) & (s < T)
        near = (offset >= -REACH) & (offset <= REACH * (1 - CAUSAL))
        near = near & inside
        near = near & (t >= 0) & (t < T)
        if PADDED:
            near = near & (load(valid_ptr + s, inside) != 0)
        return near

    @triton.jit(do_not_specialize=['T', 'valid_example'])
    def local_forward(
        q_ptr, k_ptr, v_ptr, valid_ptr, y_ptr, lse_ptr,
        T, valid_example, q_example, q_head, q_token, k_example, k_head, k_token,
        v_example, v_head, v_token,
        HALF: tl.constexpr,
        WIDTH: tl.constexpr,
        C: tl.constexpr,
        BLOCK: tl.constexpr,  # columns of the values, at once
        TILE: tl.constexpr,
        REACH: tl.constexpr,
        CAUSAL: tl.constexpr,
        PADDED: tl.constexpr,  # only keys that are valid are seen
    ):
        """y (B, T, h, C) and lse (B, h, T). A program has the queries of its tile."""
        h = tl.num_programs(1)
        q_ptr = at_head(q_ptr, q_example, q_head)
        k_ptr = at_head(k_ptr, k_example, k_head)
        v_ptr = at_head(v_ptr, v_example, v_head)
        valid_ptr = at_head(valid_ptr, valid_example, 0)
        y_ptr = at_head(y_ptr, T * h * C, C)
        lse_ptr = at_head(lse_ptr, h * T, T)
        start = tl.program_id(0) * TILE
        tile = start + tl.arange(0, TILE)
        around = start - REACH + tl.arange(0, 2 * TILE)
        t = tile[:, None]
        s = around[:, None]
        q_a, q_b = load_halves(q_ptr, q_token, t, T, HALF, WIDTH)
        k_a, k_b = load_halves(k_ptr, k_token, s, T, HALF, WIDTH)
        near = sees(t, around[None, :], valid_ptr, T, REACH, CAUSAL, PADDED)
        score = scores(q_a, q_b, k_a, k_b, HALF)  # (TILE, 2 TILE)
        # A large negative number, not -inf: a query may see no key at all.
        score = tl.where(near, score, -1e9)
        highest = tl.max(score, 1)
        weights = tl.where(near, tl.exp(score - highest[:, None]), 0)
        # The highest has added 1, if there is one.
        total = tl.maximum(tl.sum(weights, 1), 1)
        tl.store(lse_ptr + tile, highest + tl.log(total), tile < T)
        weights = (weights * (1 / total)[:, None]).to(q_a.dtype)
        for first in range(0, C, BLOCK):
            c = first + tl.arange(0, BLOCK)[None, :]
            v = load_columns(v_ptr, v_token, s, c, T, C)
            y = tl.dot(weights, v.to(weights.dtype))
            tl.store(y_ptr + t * h * C + c, y, (t < T) & (c < C))

    @triton.jit(do_not_specialize=['T', 'valid_example'])
    def local_backward(
        q_ptr, k_ptr, v_ptr, valid_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, dk_ptr, dv_ptr,
        T, valid_example, q_example, q_head, q_token, k_example, k_head, k_token,
        v_example, v_head, v_token, dy_example, dy_head, dy_token, dq_token, dk_token, dv_token,
        HALF: tl.constexpr,
        WIDTH: tl.constexpr,
        C: tl.constexpr,
        BLOCK: tl.constexpr,
        TILE: tl.constexpr,
        REACH: tl.constexpr,
        CAUSAL: tl.constexpr,
        PADDED: tl.constexpr,
        Q_ONE: tl.constexpr,  # one query for all tokens: dq is (B, tiles, h, d), to be summed
        K_ONE: tl.constexpr,  # one key for all tokens: so is dk
        V_GRAD: tl.constexpr,  # whether dv is wanted
    ):
        """dq and dk (B, T, h, d) and dv (B, T, h, C). A program has first the queries of its tile
        and the keys around, then the keys of its tile and the queries around. So every weight is
        found twice, and no number is written by two programs."""
        h = tl.num_programs(1)
        tiles = tl.num_programs(0)
        q_ptr = at_head(q_ptr, q_example, q_head)
        k_ptr = at_head(k_ptr, k_example, k_head)
        v_ptr = at_head(v_ptr, v_example, v_head)
        valid_ptr = at_head(valid_ptr, valid_example, 0)
        y_ptr = at_head(y_ptr, T * h * C, C)
        lse_ptr = at_head(lse_ptr, h * T, T)
        dy_ptr = at_head(dy_ptr, dy_example, dy_head)
        dq_ptr = at_head(dq_ptr, (tiles if Q_ONE else T) * dq_token, 2 * HALF)
        dk_ptr = at_head(dk_ptr, (tiles if K_ONE else T) * dk_token, 2 * HALF)
        dv_ptr = at_head(dv_ptr, T * dv_token, C)
        scale: tl.constexpr = (2 * HALF) ** -0.5
        start = tl.program_id(0) * TILE
        tile = start + tl.arange(0, TILE)

        # The queries of the tile
        around = start - REACH + tl.arange(0, 2 * TILE)
        t = tile[:, None]
        s = around[:, None]
        q_a, q_b = load_halves(q_ptr, q_token, t, T, HALF, WIDTH)
        k_a, k_b = load_halves(k_ptr, k_token, s, T, HALF, WIDTH)
        near = sees(t, around[None, :], valid_ptr, T, REACH, CAUSAL, PADDED)
        score = scores(q_a, q_b, k_a, k_b, HALF)  # (TILE, 2 TILE)
        lse = load(lse_ptr + t, t < T)
        weights = tl.where(near, tl.exp(score - lse), 0)
        dweights = tl.zeros([TILE, 2 * TILE], tl.float32)
        for first in range(0, C, BLOCK):
            c = first + tl.arange(0, BLOCK)[None, :]
            v = load_columns(v_ptr, v_token, s, c, T, C)
            dy = load_columns(dy_ptr, dy_token, t, c, T, C)
            dweights = tl.dot(dy, v.to(dy.dtype).T, dweights)
        # Softmax: dscore = weights (dweights - along), along = sum(weights dweights)
        along = tl.sum(weights * dweights, 1)
        dscore = weights * (dweights - along[:, None]) * scale
        dscore = dscore.to(q_a.dtype)
        da = tl.dot(dscore, k_a)
        db = tl.dot(dscore, k_b)
        store_halves(dq_ptr, dq_token, da, db, t, T, HALF, WIDTH, Q_ONE)
        if K_ONE:  # it does not matter then which tile a key belongs to
            da = tl.dot(dscore.T, q_a)
            db = tl.dot(dscore.T, q_b)
            store_halves(dk_ptr, dk_token, da, db, s, T, HALF, WIDTH, K_ONE)

        # The keys of the tile
        if V_GRAD or not K_ONE:
            around = start - REACH * (1 - CAUSAL) + tl.arange(0, 2 * TILE)
            t = around[:, None]
            s = tile[:, None]
            q_a, q_b = load_halves(q_ptr, q_token, t, T, HALF, WIDTH)
            k_a, k_b = load_halves(k_ptr, k_token, s, T, HALF, WIDTH)
            near = sees(around[None, :], s, valid_ptr, T, REACH, CAUSAL, PADDED)
            score = scores(k_a, k_b, q_a, q_b, HALF)  # (TILE, 2 TILE)
            lse = load(lse_ptr + around, (around >= 0) & (around < T))
            weights = tl.where(near, tl.exp(score - lse[None, :]), 0)
            dweights = tl.zeros([TILE, 2 * TILE], tl.float32)
            # Here along is the same sum by another way, sum(dy y).
            along = tl.zeros([2 * TILE], tl.float32)
            for first in range(0, C, BLOCK):
                c = first + tl.arange(0, BLOCK)[None, :]
                dy = load_columns(dy_ptr, dy_token, t, c, T, C)
                y = load_columns(y_ptr, h * C, t, c, T, C)
                v = load_columns(v_ptr, v_token, s, c, T, C)
                dweights = tl.dot(v.to(dy.dtype), dy.T, dweights)
                along += tl.sum(dy.to(tl.float32) * y, 1)
                if V_GRAD:
                    dv = tl.dot(weights.to(dy.dtype), dy)
                    tl.store(dv_ptr + s * dv_token + c, dv, (s < T) & (c < C))
            if not K_ONE:
                dscore = weights * (dweights - along[None, :]) * scale
                dscore = dscore.to(q_a.dtype)
                da = tl.dot(dscore, q_a)
                db = tl.dot(dscore, q_b)
                store_halves(dk_ptr, dk_token, da, db, s, T, HALF, WIDTH, K_ONE)


def side_by_side(x):
    """x, copied unless the numbers of its last dimension lie side by side"""
    return x if x.stride(-1) == 1 else x.contiguous()


def steps(x):
    """x_example, x_head and x_token of x (B or 1, h, T or 1, any)"""
    example, head, token, _ = x.stride()
    return example * (x.shape[0] > 1), head, token * (x.shape[2] > 1)


def validity(valid, q):
    """valid (B or 1, 1, T) or None -> what the kernels take for it, and valid_example"""
    if valid is None:
        return q, 0  # they do not read it
    return valid, valid.stride(0) * (len(valid) > 1)


def sizes_of(q, v, valid, reach, causal):
    """What the kernels are compiled for: none of it depends on B or T"""
    half, C = q.shape[3] // 2, v.shape[3]
    tile = max(16, triton.next_power_of_2(reach if causal else 2 * reach))
    block = max(16, min(128, triton.next_power_of_2(C)))
    return {
        'HALF': half,
        'WIDTH': max(16, triton.next_power_of_2(half)),
        'C': C,
        'BLOCK': block,
        'TILE': tile,
        'REACH': reach,
        'CAUSAL': causal,
        'PADDED': valid is not None,
        'num_warps': 4 if block > 64 else tile // 16,
        'num_stages': 1,  # while one program waits for memory, another works
    }


def attend(q, k, v, valid, sizes):
    """-> y (B, h, T, C), in memory (B, T, h, C), and lse (B, h, T)"""
    B, h, T, C = v.shape
    y = q.new_empty(B, T, h, C)
    lse = q.new_empty(B, h, T, dtype=torch.float32)
    valid, valid_example = validity(valid, q)
    grid = triton.cdiv(T, sizes['TILE']), h, B
    local_forward[grid](
        q, k, v, valid, y, lse,
        T, valid_example, *steps(q), *steps(k), *steps(v), **sizes,
    )
    return y.transpose(1, 2), lse


def attend_backward(dy, saved, gradients, sizes, v_grad=True):
    """dy (B, h, T, C), what attend() took and gave, and where dq, dk and dv go (B, T, h, any), or
    (B, tiles, h, d) of what is one for all tokens"""
    q, k, v, valid, y, lse = saved
    B, h, T, _ = v.shape
    dy = side_by_side(dy)
    valid, valid_example = validity(valid, q)
    grid = triton.cdiv(T, sizes['TILE']), h, B
    local_backward[grid](
        q, k, v, valid, y, lse, dy, *gradients,
        T, valid_example, *steps(q), *steps(k), *steps(v), *steps(dy),
        *[x.stride(1) for x in gradients],
        Q_ONE=q.shape[2] < T,
        K_ONE=k.shape[2] < T,
        V_GRAD=v_grad,
        **sizes,
    )


class LocalAttention(torch.autograd.Function):
    """See local_attention()"""

    @staticmethod
    def forward(ctx, q, k, v, valid, reach, causal):
        q, k, v = map(side_by_side, (q, k, v))
        if valid is not None:
            valid = side_by_side(valid)
        ctx.sizes = sizes_of(q, v, valid, reach, causal)
        y, lse = attend(q, k, v, valid, ctx.sizes)
        ctx.save_for_backward(q, k, v, valid, y, lse)
        return y

    @staticmethod
    def backward(ctx, dy):
        q, k, v, *_ = ctx.saved_tensors
        B, h, T, C = v.shape
        # Each example has gradients of its own, and each token or tile.
        tiles = triton.cdiv(T, ctx.sizes['TILE'])
        dq, dk = (
            x.new_empty(B, tiles if x.shape[2] < T else T, h, x.shape[3])
            for x in (q, k)
        )
        v_grad = ctx.needs_input_grad[2]
        dv = v.new_empty(B, T, h, C) if v_grad else dq
        attend_backward(dy, ctx.saved_tensors, (dq, dk, dv), ctx.sizes, v_grad)
        dq = dq.transpose(1, 2).sum_to_size(q.shape)
        dk = dk.transpose(1, 2).sum_to_size(k.shape)
        dv = dv.transpose(1, 2) if v_grad else None
        return dq, dk, dv, None, None, None


def local_attention(q, k, v, valid, reach, causal=False):
    """local_attention() of model.py, by itself where it does not fit: q and k (B or 1, h, T or 1,
    d), v (B, h, T, C), valid (B or 1, 1, T) bool -> (B, h, T, C), in q's dtype, as all products
    are. A query or key that is one for all examples or tokens is best given as one, not expanded:
    its gradient is then summed on the way."""
    if not attention_fits(q):
        return model.local_attention(q, k, v, valid, reach, causal)
    return LocalAttention.apply(q, k, v, valid, reach, causal)


def heads_of(qkv, h):
    """(B, T, 3 * h * d) -> q, k and v (B, h, T, d)"""
    return qkv.unflatten(2, (3, h, -1)).transpose(1, 3).unbind(2)


class SelfAttention(torch.autograd.Function):
    """See windowed_attention()"""

    @staticmethod
    def forward(ctx, qkv, h, reach):
        qkv = qkv.contiguous()
        q, k, v = heads_of(qkv, h)
        ctx.h = h
        ctx.sizes = sizes_of(q, v, None, reach, True)
        y, lse = attend(q, k, v, None, ctx.sizes)
        ctx.save_for_backward(qkv, y, lse)
        return y.transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx, dy):
        qkv, y, lse = ctx.saved_tensors
        q, k, v = heads_of(qkv, ctx.h)
        dqkv = torch.empty_like(qkv)
        gradients = [x.transpose(1, 2) for x in heads_of(dqkv, ctx.h)]
        dy = dy.unflatten(2, (ctx.h, -1)).transpose(1, 2)
        attend_backward(dy, (q, k, v, None, y, lse), gradients, ctx.sizes)
        return dqkv, None, None


def windowed_attention(qkv, h):
    """windowed_attention() of model.py, which is asked itself where this does not fit: qkv (B, T,
    3 * h * d) -> (B, T, h * d). The gradient is written as one, too, without a copy."""
    if not attention_fits(qkv.unflatten(2, (3 * h, -1))):
        return model.windowed_attention(qkv, h)
    return SelfAttention.apply(qkv, h, model.WINDOW)


# --- the heads that go by content ---
#
# One query of each head looks at all tokens, at BLOCK of them at once. It is too few for a product
# of matrices. WIDTH is d rounded up to a power of 2, s are times, and the grid is (1, h, B).

if triton:
    @triton.jit
    def content_scores(q, k, known_ptr, s, T):
        """Of one query with keys (BLOCK, WIDTH) at times s (BLOCK,)"""
        score = tl.sum(q * k, 1)
        known = load(known_ptr + s, s < T) != 0
        score = tl.where(known, score, -1e9)
        return tl.where(s < T, score, float('-inf'))

    @triton.jit(do_not_specialize=['T', 'known_example'])
    def content_forward(
        q_ptr, k_ptr, v_ptr, known_ptr, y_ptr, lse_ptr,
        T, known_example, q_head, k_example, k_head, k_token, v_example, v_head, v_token,
        D: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """y (B, h, d) and lse (B, h)"""
        h = tl.num_programs(1)
        q_ptr = at_head(q_ptr, 0, q_head)
        k_ptr = at_head(k_ptr, k_example, k_head)
        v_ptr = at_head(v_ptr, v_example, v_head)
        known_ptr = at_head(known_ptr, known_example, 0)
        i = tl.arange(0, WIDTH)
        q = load(q_ptr + i, i < D).to(tl.float32)[None, :] * D ** -0.5
        # The highest score so far, and relative to it the sums of weights and of weighted values
        highest = tl.full([1], float('-inf'), tl.float32)
        total = tl.zeros([1], tl.float32)
        y = tl.zeros([WIDTH], tl.float32)
        for first in range(0, T, BLOCK):
            s = first + tl.arange(0, BLOCK)
            k = load_columns(k_ptr, k_token, s[:, None], i[None, :], T, D)
            v = load_columns(v_ptr, v_token, s[:, None], i[None, :], T, D)
            score = content_scores(q, k, known_ptr, s, T)
            higher = tl.maximum(highest, tl.max(score, 0))
            fade = tl.exp(highest - higher)
            weights = tl.exp(score - higher)
            total = total * fade + tl.sum(weights, 0)
            y = y * fade + tl.sum(weights[:, None] * v, 0)
            highest = higher
        one = tl.arange(0, 1)
        tl.store(at_head(lse_ptr, h, 1) + one, highest + tl.log(total))
        tl.store(at_head(y_ptr, h * D, D) + i, y / total, i < D)

    @triton.jit(do_not_specialize=['T', 'known_example'])
    def content_backward(
        q_ptr, k_ptr, v_ptr, known_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, dk_ptr, dv_ptr,
        T, known_example, q_head, k_example, k_head, k_token, v_example, v_head, v_token,
        dy_example, dy_head,
        D: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """dq (B, h, d), to be summed, dk and dv (B, T, h, d)"""
        h = tl.num_programs(1)
        q_ptr = at_head(q_ptr, 0, q_head)
        k_ptr = at_head(k_ptr, k_example, k_head)
        v_ptr = at_head(v_ptr, v_example, v_head)
        known_ptr = at_head(known_ptr, known_example, 0)
        dk_ptr = at_head(dk_ptr, T * h * D, D)
        dv_ptr = at_head(dv_ptr, T * h * D, D)
        i = tl.arange(0, WIDTH)
        q = load(q_ptr + i, i < D).to(tl.float32)[None, :] * D ** -0.5
        dy = load(at_head(dy_ptr, dy_example, dy_head) + i, i < D).to(tl.float32)
        y = load(at_head(y_ptr, h * D, D) + i, i < D)
        along = tl.sum(dy * y, 0)
        lse = tl.load(at_head(lse_ptr, h, 1))
        dq = tl.zeros([WIDTH], tl.float32)
        for first in range(0, T, BLOCK):
            s = first + tl.arange(0, BLOCK)
            k = load_columns(k_ptr, k_token, s[:, None], i[None, :], T, D)
            v = load_columns(v_ptr, v_token, s[:, None], i[None, :], T, D)
            weights = tl.exp(content_scores(q, k, known_ptr, s, T) - lse)
            dweights = tl.sum(dy[None, :] * v, 1)
            dscore = weights * (dweights - along)
            at = s[:, None] * h * D + i[None, :]
            mask = (s < T)[:, None] & (i < D)[None, :]
            tl.store(dk_ptr + at, dscore[:, None] * q, mask)
            tl.store(dv_ptr + at, weights[:, None] * dy[None, :], mask)
            dq += tl.sum(dscore[:, None] * k, 0)
        tl.store(at_head(dq_ptr, h * D, D) + i, dq * D ** -0.5, i < D)


class ContentAttention(torch.autograd.Function):
    """See content_attention()"""

    @staticmethod
    def forward(ctx, q, k, v, known):
        q, k, v, known = map(side_by_side, (q, k, v, known))
        B, h, T, d = k.shape
        ctx.sizes = {
            'D': d,
            'WIDTH': triton.next_power_of_2(d),
            'BLOCK': 64,
            'num_warps': 2,
        }
        y = q.new_empty(B, h, 1, d)
        lse = q.new_empty(B, h, dtype=torch.float32)
        content_forward[1, h, B](
            q, k, v, known, y, lse,
            T, known.stride(0), q.stride(1), *steps(k), *steps(v), **ctx.sizes,
        )
        ctx.save_for_backward(q, k, v, known, y, lse)
        return y

    @staticmethod
    def backward(ctx, dy):
        q, k, v, known, y, lse = ctx.saved_tensors
        B, h, T, d = k.shape
        dy = side_by_side(dy)
        dq = torch.empty_like(y)
        dk = k.new_empty(B, T, h, d)
        dv = v.new_empty(B, T, h, d)
        content_backward[1, h, B](
            *ctx.saved_tensors, dy, dq, dk, dv,
            T, known.stride(0), q.stride(1), *steps(k), *steps(v), *steps(dy)[:2], **ctx.sizes,
        )
        return dq.sum(0, keepdim=True), dk.transpose(1, 2), dv.transpose(1, 2), None


def content_attention(q, k, v, known):
    """content_attention() of model.py, by itself where it does not fit, as with a query for each
    token: q (1, h, 1, d), k and v (B, h, T, d), known (B, T) bool, one or more of an example's
    tokens -> (B, h, 1, d)"""
    is_one = q.shape[0] == q.shape[2] == 1
    if not (is_one and attention_fits(q)):
        return model.content_attention(q, k, v, known)
    return ContentAttention.apply(q, k, v, known)


def attention_fits(q):
    """Whether these kernels can take queries (..., d): on a GPU, in half precision, and of a size
    that they can tile, on the smallest card too"""
    half = q.dtype in (torch.float16, torch.bfloat16)
    small = q.shape[-1] <= 64
    return bool(triton) and q.is_cuda and half and small
