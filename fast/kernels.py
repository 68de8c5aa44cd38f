"""
Faster ways through a Mamba-2 layer, for GPUs: ShortMixer is mixer() of model.py in Triton, and
ssd_kernel is ssd() by mamba_ssm's kernel. tests/test_kernels.py holds each to its plain PyTorch.
"""
import functools
import importlib.util
import os
import sys

import torch
import torch.nn.functional as F

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
    triton = None

SHORT = 128         # tokens up to which ssd=auto takes ShortMixer: more do not fit on the chip
KERNEL_FROM = 1024  # tokens from which on it takes mamba_ssm's scan; lab/bench.py measures all


# --- a Mamba-2 layer between in_proj and out_proj, for up to SHORT tokens ---
#
# In PyTorch each step is a pass over memory. Here the convolution is one pass, and scan, gate and
# norm together are another. There are two more for the gradients.
#
#   B examples   T tokens   H heads   P head_dim   N d_state   HP = H * P
#   W           numbers that in_proj gives a token: z (HP), xBC (HP + 2N), dt (H), a few unused
#   channels    HP + 2N, those of the convolution: x (HP), B (N), C (N)
#   TP          T rounded up to a power of 2, as the sides of Triton's tiles must be
#   example, head   which of them a program works on: its cell of the grid
#   t, c, p, n      ranges: of tokens, of channels, of a head's numbers in x, of B's numbers in xBC
#
# kernel[grid](...) starts one program for each cell of the grid. A tensor arrives as a pointer, the
# address of its first number, and is contiguous. A mask says what to read or write: the rest is
# read as 0, and is not written.

if triton:
    @triton.jit
    def sigmoid(z):
        """By the reciprocal root, which is a single instruction: Triton's division is slower"""
        root = tl.rsqrt(1 + tl.exp(-z))
        return root * root

    @triton.jit
    def load(ptr, mask):
        return tl.load(ptr, mask, other=0)

    @triton.jit
    def load_float(ptr, mask):
        return load(ptr, mask).to(tl.float32)

    @triton.jit
    def load_taps(w_ptr, b_ptr, c, channels):
        """The convolution's weights and bias. w0 is of the token itself, w3 of that three before"""
        mask = c < channels
        w3 = load_float(w_ptr + c, mask)
        w2 = load_float(w_ptr + channels + c, mask)
        w1 = load_float(w_ptr + 2 * channels + c, mask)
        w0 = load_float(w_ptr + 3 * channels + c, mask)
        bias = load_float(b_ptr + c, mask)
        return w0, w1, w2, w3, bias

    @triton.jit
    def load_token(x_ptr, t, W, c, channels):
        """Channels c of token t, zeros if t lies before the first. The bool is a factor and not
        `mask & (t >= 0)`, as Triton's interpreter makes a number of a bool that stands alone."""
        return load_float(x_ptr + t * W, c < channels * (t >= 0))

    @triton.jit
    def conv_forward(
        zxBCdt_ptr, w_ptr, b_ptr, y_ptr,
        T, W, channels,
        HP: tl.constexpr,
        BLOCK: tl.constexpr,  # channels of a program
        SPAN: tl.constexpr,  # tokens of a program
    ):
        """SiLU of the convolution. The grid is (B, blocks of channels, spans of tokens)."""
        example = tl.program_id(0).to(tl.int64)  # a batch may have more than 2^31 numbers
        c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        start = tl.program_id(2) * SPAN
        mask = c < channels
        x_ptr = zxBCdt_ptr + example * T * W + HP + c
        y_ptr += example * T * channels + c
        w0, w1, w2, w3, bias = load_taps(w_ptr, b_ptr, c, channels)
        # The program goes from token to token, with the last three at hand.
        x1 = load_token(x_ptr, start - 1, W, c, channels)
        x2 = load_token(x_ptr, start - 2, W, c, channels)
        x3 = load_token(x_ptr, start - 3, W, c, channels)
        for t in range(start, tl.minimum(start + SPAN, T)):
            x0 = load_float(x_ptr + t * W, mask)
            s = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
            tl.store(y_ptr + t * channels, s * sigmoid(s), mask)
            x1, x2, x3 = x0, x1, x2

    @triton.jit
    def conv_backward(
        zxBCdt_ptr, w_ptr, b_ptr, dy_ptr, dv_ptr, dzxBCdt_ptr, dwb_ptr,
        T, W, channels,
        HP: tl.constexpr,
        H: tl.constexpr,
        BLOCK: tl.constexpr,
        SPAN: tl.constexpr,
    ):
        """The gradients of xBC, and of the weights and the bias by this program's tokens: dwb is
        (B, spans, 5, channels), to be summed. Whatever follows xBC in a token is written here too:
        dv (B, H, T), the gradient of in_proj's dt, and zeros for the unused."""
        example = tl.program_id(0).to(tl.int64)
        c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        start = tl.program_id(2) * SPAN
        mask = c < channels
        mask_dt = (c >= channels) & (c < channels + H)
        x_ptr = zxBCdt_ptr + example * T * W + HP + c
        dx_ptr = dzxBCdt_ptr + example * T * W + HP + c
        dy_ptr += example * T * channels + c
        dv_ptr += (example * H + c - channels) * T
        w0, w1, w2, w3, bias = load_taps(w_ptr, b_ptr, c, channels)
        # A token counts in the three after it, too. So the program goes backwards, with the
        # gradients of three tokens at hand, and begins three tokens beyond its own.
        end = tl.minimum(start + SPAN + 3, T)
        x0 = load_token(x_ptr, end - 1, W, c, channels)
        x1 = load_token(x_ptr, end - 2, W, c, channels)
        x2 = load_token(x_ptr, end - 3, W, c, channels)
        # These zeros must be three. Triton finds out what a loop changes by comparing each name's
        # value before and after. If all were one zero, `g2 = g1` would look like no change, and
        # Triton would take g2 for a constant. The sums may share one: something is added to them.
        g1 = tl.zeros([BLOCK], tl.float32)
        g2 = tl.zeros([BLOCK], tl.float32)
        g3 = tl.zeros([BLOCK], tl.float32)
        dw0, dw1, dw2, dw3, dbias = g1, g1, g1, g1, g1
        for back in range(end - start):
            t = end - 1 - back
            x3 = load_token(x_ptr, t - 3, W, c, channels)
            s = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
            # SiLU: y = s open, open = sigmoid(s):
            # ds = dy (open + s open (1 - open))
            open_ = sigmoid(s)
            dy = load_float(dy_ptr + t * channels, mask)
            g0 = dy * (open_ + s * open_ * (1 - open_))
            dx = w0 * g0 + w1 * g1 + w2 * g2 + w3 * g3
            ddt = load_float(dv_ptr + t, mask_dt)
            # The three tokens beyond are written and summed by the next program.
            own = t < start + SPAN
            tl.store(dx_ptr + t * W, dx + ddt, HP + c < W * own)
            g = g0 * own
            dw0 += g * x0
            dw1 += g * x1
            dw2 += g * x2
            dw3 += g * x3
            dbias += g
            x0, x1, x2 = x1, x2, x3
            g1, g2, g3 = g0, g1, g2
        program = example * tl.num_programs(2) + tl.program_id(2)
        dwb_ptr += program * 5 * channels + c
        tl.store(dwb_ptr, dw3, mask)
        tl.store(dwb_ptr + channels, dw2, mask)
        tl.store(dwb_ptr + 2 * channels, dw1, mask)
        tl.store(dwb_ptr + 3 * channels, dw0, mask)
        tl.store(dwb_ptr + 4 * channels, dbias, mask)

    @triton.jit
    def kept(step_ptr, total_ptr, t, T):
        """What a head keeps at token i of what comes in at token j <= i, (TP, TP): by its steps of
        time, (T,), and total = cumsum(step * A), step_j exp(total_i - total_j)"""
        i = t[:, None]
        j = t[None, :]
        total_i = load(total_ptr + i, i < T)
        total_j = load(total_ptr + j, j < T)
        step_j = load(step_ptr + j, j < T)
        # -inf goes in before exp, as the exp of what lies in the future would overflow.
        past = (i >= j) & (i < T)
        decay = tl.where(past, total_i - total_j, float('-inf'))
        return tl.exp(decay) * step_j

    @triton.jit
    def mix(scores, share, D_ptr, t):
        """The matrix M of the scan y = M x, (TP, TP): scores * share, and D on the diagonal"""
        D = tl.load(D_ptr)
        diagonal = t[:, None] == t[None, :]
        return scores * share + tl.where(diagonal, D, 0)

    @triton.jit
    def scan_forward(
        z_ptr, xBC_ptr, step_ptr, total_ptr, D_ptr, out_ptr,
        T, W,
        H: tl.constexpr,
        P: tl.constexpr,
        N: tl.constexpr,
        TP: tl.constexpr,
    ):
        """Scan, gate and norm. So few tokens need no chunks: the scan is one product with a matrix.

            y = ((C B^T) * kept + diag(D)) x     s = y z sigmoid(z)     out = s / rms(s)

        The grid is (B, H). z_ptr is zxBCdt, in which the gate z comes first."""
        example = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1)
        channels: tl.constexpr = H * P + 2 * N
        t = tl.arange(0, TP)
        inside = (t < T)[:, None]
        row = example * T + t[:, None]  # of these tokens in (B * T, ...)
        p = head * P + tl.arange(0, P)[None, :]
        n = H * P + tl.arange(0, N)[None, :]
        xBC_ptr += row * channels
        B = load(xBC_ptr + n, inside)  # (TP, N)
        C = load(xBC_ptr + N + n, inside)
        x = load(xBC_ptr + p, inside)  # (TP, P)
        z = load_float(z_ptr + row * W + p, inside)
        at = (example * H + head) * T  # where this head begins in (B, H, T)
        share = kept(step_ptr + at, total_ptr + at, t, T)
        scores = tl.dot(C, B.T)  # (TP, TP)
        M = mix(scores, share, D_ptr + head, t).to(x.dtype)
        y = tl.dot(M, x)  # (TP, P)
        s = y * z * sigmoid(z)
        r = tl.rsqrt(tl.sum(s * s, 1) / P + 1e-5)  # (TP,)
        tl.store(out_ptr + row * H * P + p, s * r[:, None], inside)

    @triton.jit
    def scan_backward(
        z_ptr, xBC_ptr, step_ptr, total_ptr, D_ptr, dout_ptr,
        dz_ptr, dxBC_ptr, by_row_ptr, by_column_ptr, dD_ptr,
        T, W,
        H: tl.constexpr,
        P: tl.constexpr,
        N: tl.constexpr,
        TP: tl.constexpr,
    ):
        """The gradients of z, xBC and D, and of log(kept), summed by row and by column (B, H, T).
        The grid is (B,): a program takes one head after the other, as they share B and C."""
        example = tl.program_id(0).to(tl.int64)
        channels: tl.constexpr = H * P + 2 * N
        t = tl.arange(0, TP)
        inside = (t < T)[:, None]
        row = example * T + t[:, None]
        n = H * P + tl.arange(0, N)[None, :]
        z_ptr += row * W
        dz_ptr += row * W
        xBC_ptr += row * channels
        dxBC_ptr += row * channels
        dout_ptr += row * H * P
        B = load(xBC_ptr + n, inside)  # (TP, N)
        C = load(xBC_ptr + N + n, inside)
        scores = tl.dot(C, B.T)  # (TP, TP)
        dscores = tl.zeros([TP, TP], tl.float32)
        for head in range(H):
            p = head * P + tl.arange(0, P)[None, :]
            at = (example * H + head) * T
            x = load(xBC_ptr + p, inside)  # (TP, P)
            z = load_float(z_ptr + p, inside)
            dout = load_float(dout_ptr + p, inside)
            # First the forward pass again, as none of it was stored.
            share = kept(step_ptr + at, total_ptr + at, t, T)
            M = mix(scores, share, D_ptr + head, t).to(x.dtype)
            y = tl.dot(M, x)
            open_ = sigmoid(z)
            gate = z * open_
            s = y * gate
            # Norm: out = s r, r = 1 / sqrt(mean(s^2) + 1e-5):
            # ds = (dout - s along) r, along = mean(dout s) r^2
            r = tl.rsqrt(tl.sum(s * s, 1) / P + 1e-5)
            along = tl.sum(dout * s, 1) * r * r / P
            ds = (dout - s * along[:, None]) * r[:, None]
            # Gate: s = y gate, gate = z open, open = sigmoid(z):
            # dy = ds gate, dz = ds y (open + gate - gate open)
            dz = ds * y * (open_ + gate - gate * open_)
            tl.store(dz_ptr + p, dz, inside)
            dy = ds * gate
            # Scan: y = M x:
            # dx = M^T dy, dM = dy x^T, and dD sums the diagonal of dM, on which D is
            tl.store(dD_ptr + example * H + head, tl.sum(dy * x))
            dy = dy.to(x.dtype)
            tl.store(dxBC_ptr + p, tl.dot(M.T, dy), inside)
            # Mix: M = scores share + diag(D):
            # dscores = dM share, and the gradient of log(share) is dM scores share
            dM = tl.dot(dy, x.T) * share
            dscores += dM
            dM *= scores
            tl.store(by_row_ptr + at + t, tl.sum(dM, 1), t < T)
            tl.store(by_column_ptr + at + t, tl.sum(dM, 0), t < T)
        # Scores: C B^T:
        # dB = dscores^T C, dC = dscores B
        # B and C are loaded once more, as there is no room on the chip to keep them while the
        # heads go by.
        B = load(xBC_ptr + n, inside)
        C = load(xBC_ptr + N + n, inside)
        dscores = dscores.to(B.dtype)
        tl.store(dxBC_ptr + n, tl.dot(dscores.T, C), inside)
        tl.store(dxBC_ptr + N + n, tl.dot(dscores, B), inside)


class ShortMixer(torch.autograd.Function):
    """mixer() of model.py in four kernels, for inputs that short_mixer_fits():

    zxBCdt (B, T, W), which in_proj gives; pace (B, T, 1), which gets no gradient; w (4, channels),
    the oldest token's first, and b (channels,) of the convolution; dt_bias, A and D (H,); head_dim;
    d_state -> what out_proj takes, before the weights of the norm: (B, T, HP)"""

    @staticmethod
    def forward(ctx, zxBCdt, pace, w, b, dt_bias, A, D, P, N):
        B, T, W = zxBCdt.shape
        H = len(A)
        HP = H * P
        channels = w.shape[1]
        zxBCdt = zxBCdt.contiguous()
        xBC = zxBCdt.new_empty(B, T, channels)
        grid = (B, triton.cdiv(channels, 128), triton.cdiv(T, 16))
        conv_forward[grid](
            zxBCdt, w, b, xBC, T, W, channels,
            HP=HP, BLOCK=128, SPAN=16, num_warps=2,
        )
        # The steps of time are few numbers: PyTorch's passes over them cost little.
        dt = zxBCdt.narrow(2, HP + channels, H).transpose(1, 2)
        v = dt.float().contiguous() + dt_bias[:, None]
        step = F.softplus(v) * pace.transpose(1, 2)  # (B, H, T)
        total = (step * A[:, None]).cumsum(2)
        out = zxBCdt.new_empty(B, T, HP)
        TP = max(16, triton.next_power_of_2(T))
        warps = max(1, TP // 16)
        ctx.sizes = dict(H=H, P=P, N=N, TP=TP, num_warps=warps)
        scan_forward[(B, H)](zxBCdt, xBC, step, total, D, out, T, W, **ctx.sizes)
        ctx.save_for_backward(zxBCdt, xBC, pace, w, b, v, step, total, A, D)
        return out

    @staticmethod
    def backward(ctx, dout):
        zxBCdt, xBC, pace, w, b, v, step, total, A, D = ctx.saved_tensors
        B, T, W = zxBCdt.shape
        H = len(A)
        HP = dout.shape[2]
        channels = w.shape[1]
        dzxBCdt = torch.empty_like(zxBCdt)
        dxBC = torch.empty_like(xBC)
        by_row = torch.empty_like(step)
        by_column = torch.empty_like(step)
        dD = A.new_empty(B, H)
        scan_backward[(B,)](
            zxBCdt, xBC, step, total, D, dout.contiguous(),
            dzxBCdt, dxBC, by_row, by_column, dD, T, W, **ctx.sizes,
        )
        # log(kept) = total_i - total_j + log(step_j), and total = cumsum(decay), decay = step * A.
        # So a token's decay counts in all totals from there on. Where step is 0, so is pace, and so
        # is dv: the clamp has only to keep the quotient finite.
        ddecay = (by_row - by_column).flip(2).cumsum(2).flip(2)
        dstep = by_column / step.clamp(min=1e-30) + ddecay * A[:, None]
        dA = (ddecay * step).sum((0, 2))
        # step = softplus(v) * pace, v = dt + dt_bias
        dv = dstep * pace.transpose(1, 2) * v.sigmoid()
        dv = dv.contiguous()
        ddt_bias = dv.sum((0, 2))
        spans = triton.cdiv(T, 32)
        dwb = w.new_empty(B, spans, 5, channels)
        grid = (B, triton.cdiv(W - HP, 128), spans)
        conv_backward[grid](
            zxBCdt, w, b, dxBC, dv, dzxBCdt, dwb, T, W, channels,
            HP=HP, H=H, BLOCK=128, SPAN=32, num_warps=2,
        )
        dwb = dwb.sum((0, 1))
        return dzxBCdt, None, dwb[:-1], dwb[-1], ddt_bias, dA, dD.sum(0), None, None


def short_mixer_fits(x, head_dim, d_state):
    """Whether ShortMixer can take x (B, T, W): on a GPU, in half precision, of a length and of
    sizes that it can tile, on the smallest card too"""
    half = x.dtype in (torch.float16, torch.bfloat16)
    tiles = head_dim in (16, 32) and d_state in (16, 32, 64, 128)
    return bool(triton) and x.is_cuda and half and x.shape[1] <= SHORT and tiles


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
    if short_mixer_fits(zxBCdt, head_dim, d_state):
        return ShortMixer.apply(*inputs)
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
