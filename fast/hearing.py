"""
What of a sound is tones, for GPUs and without gradients, in Triton: pace() is that of a MiniJMamba
that freezes, and squelch() is Spectrum's. tests/test_fast_hearing.py holds each to its plain
PyTorch.
"""
import functools
import math
import os

import torch

from fast.kernels import triton
from model import N_BINS

if triton:
    import triton.language as tl
    from triton.language.extra.libdevice import fast_logf
    # Triton's interpreter knows no fast_logf.
    FAST_LOG = tl.constexpr(os.environ.get('TRITON_INTERPRET') != '1')

# Tiles, and how many warps share one
PACE = dict(ROWS=32, num_warps=4)
FIND = dict(SPAN=32, num_warps=2)
KEEP = dict(ROWS=32, num_warps=4, maxnreg=168)


# --- the kernels ---
#
#   B examples   n frames of an example   F bins   S samples
#   t       frames of an example
#   bins    all of them: a tile is (ROWS, F)
#
# kernel[grid](...) starts one program for each cell of the grid. A tensor arrives as a pointer, the
# address of its first number, and is contiguous. A mask says what to read or write: the rest is
# read as 0, and is not written. No kernel is compiled anew for another number of frames.

if triton:
    @triton.jit
    def log(x):
        """With a fast_logf of two instructions, and an error of 3e-7; tl.log has 22"""
        if FAST_LOG:
            return fast_logf(x)
        else:
            return tl.log(x)

    @triton.jit
    def exp(x):
        """With an exp2 of one instruction; tl.exp has five, as it minds results close to 0"""
        return tl.exp2(1.4426950408889634 * x)

    @triton.jit
    def exp_noise(x, near_ptr, share_ptr, bins, over, F: tl.constexpr):
        """exp of Spectrum.noise(): frames (ROWS, F) -> (ROWS, F). Exponentials compare as well, and
        this saves a logarithm."""
        row = tl.arange(0, F)[:, None]
        near = tl.load(near_ptr + row * F + bins)
        share = tl.load(share_ptr + bins)
        # Near is of zeros and ones, so only the frames are rounded.
        usual = tl.dot(x.to(near.dtype), near) * share
        return 1 - over + over * exp(usual)

    @triton.jit(do_not_specialize=['tokens'])
    def pace_tokens(
        frames_ptr, near_ptr, share_ptr, pace_ptr,
        tokens, over,
        F: tl.constexpr,
        PATCH: tl.constexpr,  # frames of a token
        OWN: tl.constexpr,  # tokens of a program, out of tokens = B * T
        OWN2: tl.constexpr,  # rounded up to a power of 2, as the sides of tiles must be
        ROWS: tl.constexpr,  # OWN * PATCH, rounded up likewise
    ):
        """The largest of Spectrum.sounds() in each token"""
        first = tl.program_id(0).to(tl.int64) * OWN
        left = tokens - first
        r = tl.arange(0, ROWS)
        bins = tl.arange(0, F)[None, :]
        inside = (r < OWN * PATCH) & (r < left * PATCH)
        frames_ptr += first * PATCH * F + bins
        x = tl.load(frames_ptr + r[:, None] * F, inside[:, None], other=0)
        noise = exp_noise(x, near_ptr, share_ptr, bins, over, F)
        noise = tl.maximum(noise, 2.718281828)  # exp(1)
        # The largest x - log(noise): a reciprocal root is one instruction, a division several.
        ratio = tl.max(exp(x / 2) * tl.rsqrt(noise), 1)
        sounds = 2 * tl.log(ratio)
        sounds = tl.minimum(tl.maximum(sounds, 0), 1)
        # From frames (ROWS,) to tokens (OWN2,)
        token = tl.arange(0, OWN2)
        is_of = r[:, None] // PATCH == token[None, :]
        pace = tl.max(tl.where(is_of, sounds[:, None], 0), 0)
        inside = (token < OWN) & (token < left)
        tl.store(pace_ptr + first + token, pace, inside)

    @triton.jit
    def share_of_one(t, n):
        """The weight of each frame from t - 2 to t + 2 in their mean: 1 / how many there are"""
        first = tl.maximum(t - 2, 0)
        last = tl.minimum(t + 2, n - 1)
        count = tl.maximum(last - first + 1, 1)
        root = tl.rsqrt(count.to(tl.float32))
        return root * root

    @triton.jit
    def largest(a, b, c, d):
        return tl.maximum(tl.maximum(a, b), tl.maximum(c, d))

    @triton.jit
    def smallest(a, b, c, d):
        return tl.minimum(tl.minimum(a, b), tl.minimum(c, d))

    @triton.jit(do_not_specialize=['n'])
    def find_new(frames_ptr, new_ptr, n, F: tl.constexpr, SPAN: tl.constexpr):
        """Where a bin is no echo, or the fade of what is none: (B, spans, F) words, whose bits are
        SPAN <= 32 frames, the first the lowest. The grid is (B, spans)."""
        example = tl.program_id(0).to(tl.int64)
        start = tl.program_id(1) * SPAN
        bins = tl.arange(0, F)
        frames_ptr += (example * n + start) * F + bins
        # The program goes from frame to frame, with five frames and eleven of their means at hand.
        # All is written out for each frame. So names that move on cost nothing, and a maximum of
        # four that was computed for an earlier frame is not computed again.
        zero = tl.zeros([F], tl.float32)
        x0, x1, x2, x3 = zero, zero, zero, zero
        s0, s1, s2, s3 = zero, zero, zero, zero
        s4, s5, s6 = zero, zero, zero
        s7, s8, s9 = zero, zero, zero
        word = tl.zeros([F], tl.int64)
        # The first bit is of two frames before the start, as what is new spreads by two, and hangs
        # on ten means before it. A mean is known when its last frame is, two later.
        for i in tl.static_range(-14, SPAN + 4):
            x4, x3 = x3, x2
            x2, x1 = x1, x0
            ahead = tl.full([F], i, tl.int32) + start
            inside = (ahead >= 0) & (ahead < n)
            x0 = tl.load(frames_ptr + i * F, inside, other=0)
            s10, s9, s8 = s9, s8, s7
            s7, s6, s5 = s6, s5, s4
            s4, s3 = s3, s2
            s2, s1 = s1, s0
            t = ahead - 2
            total = (x0 + x1) + (x2 + x3) + x4
            mean = total * share_of_one(t, n)
            s0 = tl.where(t < 0, 0, mean)  # as silence, before the first frame
            if i >= 0:
                high = largest(s0, s1, s2, s3)
                high = tl.maximum(high, largest(s4, s5, s6, s7))
                high = tl.maximum(high, largest(s7, s8, s9, s10))
                low = smallest(s0, s1, s2, s3)
                low = tl.minimum(low, smallest(s4, s5, s6, s7))
                low = tl.minimum(low, smallest(s7, s8, s9, s10))
                new = s0 > tl.minimum(high - 0.25, low + 0.6)
                new = new & (t >= 0) & (t < n)
                word |= new.to(tl.int64) << i
        spread = word | (word >> 1) | (word >> 2)
        spread = spread | (word >> 3) | (word >> 4)
        span = example * tl.num_programs(1) + tl.program_id(1)
        tl.store(new_ptr + span * F + bins, spread.to(tl.int32))

    @triton.jit(do_not_specialize=['n', 'spans'])
    def keep_tones(
        frames_ptr, new_ptr, near_ptr, share_ptr, out_ptr,
        n, spans, over, faintest,
        F: tl.constexpr,
        SPAN: tl.constexpr,
        ROWS: tl.constexpr,  # frames of a program
    ):
        """Frames where find_new() has found something new and it is a tone, elsewhere 0. No tone is
        below log(faintest). The grid is (B, tiles)."""
        example = tl.program_id(0).to(tl.int64)
        t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
        bins = tl.arange(0, F)[None, :]
        frames_ptr += example * n * F + bins
        x = tl.load(frames_ptr + t * F, t < n, other=0)
        total = x
        for shift in tl.static_range(1, 3):
            before = t - shift
            after = t + shift
            mask = (before >= 0) & (before < n)
            total += tl.load(frames_ptr + before * F, mask, other=0)
            total += tl.load(frames_ptr + after * F, after < n, other=0)
        smooth = total * share_of_one(t, n)
        noise = exp_noise(smooth, near_ptr, share_ptr, bins, over, F)
        is_tone = exp(smooth) > tl.maximum(noise, faintest)
        tones = tl.where(is_tone, smooth, 0)
        sounds = tl.max(tones, 1) > 1
        new_ptr += example * spans * F + bins
        word = tl.load(new_ptr + t // SPAN * F, t < n, other=0)
        is_new = (word >> t % SPAN) & 1 > 0
        keep = is_tone & is_new & sounds[:, None]
        out_ptr += example * n * F + bins
        tl.store(out_ptr + t * F, tl.where(keep, x, 0), t < n)


# --- their tables ---
#
# Each is made at the first call, which must be none that a CUDA graph captures.

@functools.cache
def near_and_share(near):
    """Spectrum.near (F, F) -> zeros and ones in half precision, and its columns' factors (F,)"""
    return (near > 0).half(), near.amax(0)


# --- what is called ---

def pace(spectrum, frames, patch):
    """MiniJMamba.pace(): log magnitudes (B, T, patch * F) -> (B, T, 1). Its product rounds frames
    to float16, which is closer than the plain one is under autocast, in bfloat16."""
    B, T, _ = frames.shape
    near, share = near_and_share(spectrum.near)
    out = frames.new_empty(B, T, 1)
    own = PACE['ROWS'] // patch
    grid = triton.cdiv(B * T, own),
    pace_tokens[grid](
        frames.contiguous(), near, share, out, B * T, 4.0,
        F=N_BINS, PATCH=patch, OWN=own, OWN2=triton.next_power_of_2(own), **PACE,
    )
    return out


def squelch(spectrum, frames):
    """Spectrum.squelch(): log magnitudes (B, n, F) -> the same where a tone is, elsewhere 0. Of its
    product holds what is said of that of pace()."""
    B, n, _ = frames.shape
    frames = frames.contiguous()
    near, share = near_and_share(spectrum.near)
    spans = triton.cdiv(n, FIND['SPAN'])
    new = frames.new_empty(B, spans, N_BINS, dtype=torch.int32)
    find_new[(B, spans)](frames, new, n, F=N_BINS, **FIND)
    out = torch.empty_like(frames)
    grid = B, triton.cdiv(n, KEEP['ROWS'])
    keep_tones[grid](
        frames, new, near, share, out, n, spans, 2.5, math.exp(0.6),
        F=N_BINS, SPAN=FIND['SPAN'], **KEEP,
    )
    return out
