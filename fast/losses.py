"""
How far off frames are, for GPUs, in Triton: distance() is that of lessons.py, in one kernel each
way. tests/test_fast_losses.py holds it to its plain PyTorch.
"""
import torch

import lessons
from fast.kernels import triton

if triton:
    import triton.language as tl

ROWS = 4  # tokens of a program

# M tokens, F numbers of each, WIDTH that or more. The grid is (blocks of ROWS tokens,).

if triton:
    @triton.jit
    def load_off(frames_ptr, wanted_ptr, M, F, ROWS: tl.constexpr, WIDTH: tl.constexpr):
        """frames - wanted of a program's tokens, (ROWS, WIDTH), where they are, and a mask"""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, WIDTH)[None, :]
        mask = (row < M) & (column < F)
        at = row * F + column
        frames = tl.load(frames_ptr + at, mask, other=0).to(tl.float32)
        return frames - tl.load(wanted_ptr + at, mask, other=0).to(tl.float32), at, mask

    @triton.jit(do_not_specialize=['M'])
    def distance_forward(
        frames_ptr, wanted_ptr, out_ptr,
        M, F,
        ROWS: tl.constexpr,
        WIDTH: tl.constexpr,
    ):
        off, _, _ = load_off(frames_ptr, wanted_ptr, M, F, ROWS, WIDTH)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        tl.store(out_ptr + row, tl.sum(tl.abs(off) + off * off, 1) / F, row < M)

    @triton.jit(do_not_specialize=['M'])
    def distance_backward(
        frames_ptr, wanted_ptr, dout_ptr, dframes_ptr,
        M, F,
        ROWS: tl.constexpr,
        WIDTH: tl.constexpr,
    ):
        off, at, mask = load_off(frames_ptr, wanted_ptr, M, F, ROWS, WIDTH)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        dout = tl.load(dout_ptr + row, row < M, other=0)[:, None] / F
        sign = tl.where(off > 0, 1.0, tl.where(off < 0, -1.0, 0.0))
        tl.store(dframes_ptr + at, dout * (sign + 2 * off), mask)


def run(kernel, frames, *tensors):
    """Run one of the two kernels on tensors, of which the first is (..., F)"""
    F = frames.shape[-1]
    M = frames.numel() // F
    grid = triton.cdiv(M, ROWS),
    kernel[grid](frames, *tensors, M, F, ROWS=ROWS, WIDTH=triton.next_power_of_2(F))


class Distance(torch.autograd.Function):
    """See distance()"""

    @staticmethod
    def forward(ctx, frames, wanted):
        frames, wanted = frames.contiguous(), wanted.contiguous()
        ctx.save_for_backward(frames, wanted)
        out = frames.new_empty(frames.shape[:-1], dtype=torch.float32)
        run(distance_forward, frames, wanted, out)
        return out

    @staticmethod
    def backward(ctx, dout):
        frames, wanted = ctx.saved_tensors
        dframes = torch.empty_like(frames)
        run(distance_backward, frames, wanted, dout.contiguous(), dframes)
        return dframes, None


def distance(frames, wanted):
    """distance() of lessons.py, which is asked itself where this does not fit: (B, T, F) each ->
    (B, T). wanted gets no gradient."""
    if not (triton and frames.is_cuda):
        return lessons.distance(frames, wanted)
    return Distance.apply(frames, wanted)
