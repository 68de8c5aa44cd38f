"""
How training examples sound, for GPUs, in a few Triton kernels: play(), reverberate(), noisy() and
answered() of prepare.py. tests/test_fast_sound.py holds each to its plain PyTorch.
"""
import math

import torch

from fast.kernels import triton
from prepare import FADE, LOUDNESS, LOWEST, SAMPLE_RATE, SPACING

if triton:
    import triton.language as tl

# Tiles
PLAY = dict(BLOCKS=16, SLOTS=32, num_warps=4)
ECHO = dict(SPAN=4096, num_warps=16)
NOISE = dict(QUADS=512, num_warps=4)
ANSWER = dict(BLOCKS=32, num_warps=4)
TOGETHER = 3  # delays of a pass of reverberate()


# --- the kernels ---
#
#   B examples   S samples   N slots   K overtones, or octaves of noise   E delays
#   row       the program's example; the grid is (spans, B)
#   t         samples of its span
#   block     blocks of 10 ms, in each of which no more than one slot sounds
#   part, i   a block is taken in parts of PART samples: i counts those of a block
#
# A tensor arrives as a pointer, the address of its first number, and is contiguous.

if triton:
    RATE = tl.constexpr(SAMPLE_RATE)
    BLOCK = tl.constexpr(SAMPLE_RATE // 100)
    PART = tl.constexpr(32)
    LOWEST_ = tl.constexpr(int(LOWEST))
    SPACING_ = tl.constexpr(int(SPACING))
    FADE_ = tl.constexpr(FADE)
    LOUDNESS_ = tl.constexpr(LOUDNESS)
    PI = tl.constexpr(math.pi)

    @triton.jit
    def row_start(length):
        """Where the program's row begins in a tensor (B, length), which may be of over 2^31"""
        return tl.program_id(1).to(tl.int64) * length

    @triton.jit
    def sine(x):
        """Up to a right angle either way, where Taylor's series is right to 1e-7. Triton's own is
        right for all angles, and takes several times as long."""
        square = x * x
        sin = 1 / 362880 - square * (1 / 39916800)
        sin = 1 / 120 + square * (-1 / 5040 + square * sin)
        return x * (1 + square * (-1 / 6 + square * sin))

    @triton.jit
    def cosine(x):
        """Likewise, to 5e-7"""
        square = x * x
        cos = 1 / 40320 - square * (1 / 3628800)
        cos = 1 / 24 + square * (-1 / 720 + square * cos)
        return 1 + square * (-1 / 2 + square * cos)

    @triton.jit
    def turned(turns):
        """Sine and cosine of an angle in turns"""
        # Without whole turns, half of the angle is a right angle at most. Then it is doubled.
        half = (turns - tl.floor(turns + 0.5)) * PI
        sin = sine(half)
        return 2 * sin * cosine(half), 1 - 2 * sin * sin

    @triton.jit
    def slot_by(start_ptr, N, end, SLOTS: tl.constexpr):
        """Which of a row's N slots was the last to start by samples `end`, or else the first"""
        count = tl.zeros_like(end)
        for begin in range(0, N, SLOTS):
            slot = begin + tl.arange(0, SLOTS)
            start = tl.load(start_ptr + slot, slot < N, other=float('inf'))
            has_started = tl.ceil(start * RATE)[None, :] <= end[:, None]
            count += tl.sum(has_started.to(tl.int32), 1)
        return tl.maximum(count - 1, 0)

    @triton.jit
    def load_shares(overtones_ptr, hertz, K: tl.constexpr):
        """Those of a row's K overtones, as far as the sample rate holds them: a tuple"""
        shares = ()
        for k in tl.static_range(K):
            share = tl.load(overtones_ptr + k)
            shares += (tl.where((k + 2) * hertz < RATE / 2, share, 0),)
        return shares

    @triton.jit
    def with_overtones(sin, cos, shares):
        # sin (k + 1)x comes from sin kx and the one below.
        below, harmonic = sin, 2 * cos * sin
        for k in tl.static_range(len(shares)):
            sin += shares[k] * harmonic
            below, harmonic = harmonic, 2 * cos * harmonic - below
        return sin

    @triton.jit(do_not_specialize=['N'])
    def play_blocks(
        symbols_ptr, start_ptr, length_ptr, detune_ptr, amplitude_ptr, phase_ptr, overtones_ptr,
        waves_ptr,
        S, N,
        K: tl.constexpr,
        BLOCKS: tl.constexpr,  # of a program
        SLOTS: tl.constexpr,  # that it looks at together
    ):
        block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
        t = block[:, None] * BLOCK
        start_ptr += row_start(N)
        waves_ptr += row_start(S)
        slot = slot_by(start_ptr, N, block * BLOCK + BLOCK, SLOTS)
        at = row_start(N) + slot
        symbol = tl.load(symbols_ptr + at).to(tl.int32)
        length = tl.load(length_ptr + at) * RATE
        # How many samples a block starts after its slot's first is exact, seconds are not.
        since = block * BLOCK - tl.ceil(tl.load(start_ptr + slot) * RATE).to(tl.int32)
        sounds = (symbol >= 0) & (since > -BLOCK) & (since < length)
        if tl.max(sounds.to(tl.int32), 0) > 0:
            pitch = LOWEST_ + SPACING_ * symbol
            detune = tl.load(detune_ptr + at)
            # The turns until then: those of whole hertz are counted in integers, and exact, too.
            turns = (since * pitch % RATE + since * detune) / RATE
            turns += tl.load(phase_ptr + at) / (2 * PI)
            hertz = pitch + detune
            amplitude = tl.where(sounds, tl.load(amplitude_ptr + at), 0)
            shares = load_shares(overtones_ptr + row_start(K), hertz[:, None], K)
            for part in tl.static_range(0, BLOCK, PART):
                i = part + tl.arange(0, PART)[None, :]
                n = (since[:, None] + i).to(tl.float32)
                # A tone fades over its first and its last 5 ms.
                to_edge = tl.minimum(n, length[:, None] - n)
                faded = tl.minimum(tl.maximum(to_edge / (FADE_ * RATE), 0), 1)
                fade = sine(faded * (PI / 2))
                sin, cos = turned(turns[:, None] + i * (hertz / RATE)[:, None])
                wave = with_overtones(sin, cos, shares)
                wave = wave * fade * fade * amplitude[:, None]
                tl.store(waves_ptr + t + i, wave, t + i < S)
        else:
            for part in tl.static_range(0, BLOCK, PART):
                i = part + tl.arange(0, PART)[None, :]
                tl.store(waves_ptr + t + i, tl.zeros([BLOCKS, PART], tl.float32), t + i < S)

    @triton.jit
    def with_echoes(wet_ptr, delays_ptr, gains_ptr, t, S, DELAYS: tl.constexpr):
        """A row at samples t, where each delay repeats what the ones before have left: as many
        echoes as there are sets of delays"""
        total = tl.zeros(t.shape, tl.float32)
        for chosen in tl.static_range(1 << DELAYS):
            gain = 1.0
            before = t
            for k in tl.static_range(DELAYS):
                if chosen >> k & 1:
                    gain *= tl.load(gains_ptr + k)
                    before -= tl.load(delays_ptr + k).to(tl.int32)
            total += gain * tl.load(wet_ptr + before, (before >= 0) & (t < S), other=0)
        return total

    # If Triton knew that rows start at whole 16 bytes, each thread would take four samples in a
    # row, also of echoes. Those start anywhere, and would take four times as many steps to read.
    @triton.jit(do_not_specialize=['S', 'E', 'first'])
    def add_echoes(
        waves_ptr, wet_ptr, delays_ptr, gains_ptr, direct_ptr, tail_ptr, out_ptr,
        S, E,
        first,  # delay of this pass
        DELAYS: tl.constexpr,  # of this pass
        LAST: tl.constexpr,  # whether it is the last one, which mixes echoes and direct sound
        SPAN: tl.constexpr,
    ):
        """A row of which no echoes are heard is left out of all passes but the last."""
        t = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
        waves_ptr += row_start(S)
        out_ptr += row_start(S)
        direct = tl.load(direct_ptr + tl.program_id(1))
        tail = tl.load(tail_ptr + tl.program_id(1))
        if tail != 0:
            gains_ptr += row_start(E) + first
            out = with_echoes(wet_ptr + row_start(S), delays_ptr + first, gains_ptr, t, S, DELAYS)
            if LAST:
                wave = tl.load(waves_ptr + t, t < S)
                out = direct * wave + tail * (out - wave)
            tl.store(out_ptr + t, out, t < S)
        elif LAST:
            tl.store(out_ptr + t, direct * tl.load(waves_ptr + t, t < S), t < S)

    @triton.jit
    def overdriven(wave, limit):
        loudness = tl.maximum(LOUDNESS_ / limit, 1)
        return tl.minimum(tl.maximum(wave, -limit), limit) * loudness

    @triton.jit
    def add_noise(
        waves_ptr, white_ptr, octaves_ptr, limit_ptr, out_ptr,
        S,
        K: tl.constexpr,
        QUADS: tl.constexpr,  # four samples each
    ):
        quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)[:, None]
        t = 4 * quad + tl.arange(0, 4)[None, :]
        white_ptr += row_start(S)
        octaves_ptr += row_start(K)
        wave = tl.load(waves_ptr + row_start(S) + t, t < S)
        wave += tl.load(octaves_ptr) * tl.load(white_ptr + t, t < S)
        # In many rows there is the highest octave alone.
        others = 0.0
        for k in tl.static_range(1, K):
            others += tl.abs(tl.load(octaves_ptr + k))
        if others > 0:
            wave += tl.load(octaves_ptr + 1) * tl.load(white_ptr + t // 2, t < S)
            # In those below, the samples of four are one number, which is read once.
            low = tl.zeros([QUADS, 1], tl.float32)
            for k in tl.static_range(2, K):
                octave = tl.load(white_ptr + (quad >> k - 2), 4 * quad < S)
                low += tl.load(octaves_ptr + k) * octave
            wave += low
        limit = tl.load(limit_ptr + tl.program_id(1))
        tl.store(out_ptr + row_start(S) + t, overdriven(wave, limit), t < S)

    @triton.jit(do_not_specialize=['n_blocks'])
    def answer_blocks(
        repeated_ptr, limit_ptr, kept_ptr, made_ptr, out_ptr,
        n_blocks,
        BLOCKS: tl.constexpr,  # of a program
    ):
        block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
        inside = block < n_blocks
        kept = tl.load(kept_ptr + row_start(n_blocks) + block, inside, other=0)
        limit = tl.load(limit_ptr + tl.program_id(1))
        row = row_start(n_blocks) * BLOCK
        for part in tl.static_range(0, BLOCK, PART):
            t = block * BLOCK + part + tl.arange(0, PART)[None, :]
            # What is not kept is not even read.
            repeated = tl.load(repeated_ptr + row + t, inside & kept, other=0)
            made = tl.load(made_ptr + row + t, inside)
            tl.store(out_ptr + row + t, overdriven(repeated, limit) + made, inside)


# --- what is called ---

def play(symbols, rhythm, n_samples):
    """Symbols (B, N) int64, REST where nothing sounds, in a Rhythm -> waveforms (B, n_samples)"""
    B, N = symbols.shape
    waves = rhythm.start.new_empty(B, n_samples)
    start, length, detune, amplitude, phase, _, overtones = (x.contiguous() for x in rhythm)
    grid = triton.cdiv(n_samples, PLAY['BLOCKS'] * BLOCK.value), B
    play_blocks[grid](
        symbols.contiguous(), start, length, detune, amplitude, phase, overtones, waves,
        n_samples, N, K=overtones.shape[1], **PLAY,
    )
    return waves


def reverberate(waves, room):
    """Waveforms (B, S) as they are heard in a Room, of one delay or more. Rows whose `tail` is 0
    have no echoes, and take less time."""
    B, S = waves.shape
    E = len(room.delays)
    delays, gains, direct, tail = (x.contiguous() for x in room)
    waves = waves.contiguous()
    out = waves
    grid = triton.cdiv(S, ECHO['SPAN']), B
    for first in range(0, E, TOGETHER):
        wet, out = out, torch.empty_like(waves)
        left = E - first
        add_echoes[grid](
            waves, wet, delays, gains, direct, tail, out,
            S, E, first, DELAYS=min(left, TOGETHER), LAST=left <= TOGETHER, **ECHO,
        )
    return out


def noisy(waves, white, octaves, limit):
    """Waveforms (B, S) in noise, which is white (B, S) coloured by `octaves` (B, K), and clipped at
    `limit` (B, 1), which may be inf"""
    B, S = waves.shape
    inputs = (x.contiguous() for x in (waves, white, octaves, limit))
    out = torch.empty_like(waves, memory_format=torch.contiguous_format)
    grid = triton.cdiv(S, 4 * NOISE['QUADS']), B
    add_noise[grid](*inputs, out, S, K=octaves.shape[1], **NOISE)
    return out


def answered(repeated, limit, kept, made):
    """The answer (B, S): what it repeats, clipped at `limit` (B, 1), in the 10 ms that are kept
    (B, S / 160) bool, and what it plays anew (B, S)"""
    B, n_blocks = kept.shape
    inputs = (x.contiguous() for x in (repeated, limit, kept, made))
    out = torch.empty_like(made, memory_format=torch.contiguous_format)
    grid = triton.cdiv(n_blocks, ANSWER['BLOCKS']), B
    answer_blocks[grid](*inputs, out, n_blocks, **ANSWER)
    return out
