"""
What makes the model fast, above all on a GPU. Skip it at first: but for lots.py, from which all
training takes its examples, everything works without it.

    fast.use(model)                   # kernels where they fit: the same answers, sooner
    fast.use(model, compiled=True)    # for training, which repeats the same shapes

kernels.py and layers.py have Mamba-2 layers in Triton, attention.py the attention, hearing.py what
of a sound is tones, sound.py the synthesizer, losses.py a loss; lots.py draws examples for several
updates at once; graphs.py has torch.compile and CUDA graphs.
"""
import functools

import torch

import lessons
from fast import graphs
from fast.graphs import capture, compiled, in_graphs
from fast.lots import LOT, Lots
from prepare import Synthesis

__all__ = ['LOT', 'Lots', 'capture', 'compiled', 'distance', 'in_graphs', 'synthesis', 'use']


def use(model, ssd='auto', compiled=False):
    """Hand a model, which is on its device already, the functions that are the fastest there.

    ssd names the scan: auto, whichever is the fastest for a length; torch, model.py's own; or
    mamba_ssm, at every length: ValueError says why if it cannot be had. compiled: what is left of a
    forward pass of training is compiled."""
    device = model.start.device
    if ssd == 'mamba_ssm' or ssd == 'auto' and device.type == 'cuda':
        from fast.kernels import mixer_for  # which loads Triton, and nothing else needs that
        model.hand_in(mixer=mixer_for(ssd, device))
    if has_triton(device):
        hand_in_kernels(model, ssd)
    if compiled:
        model.cross.compile(dynamic=True)
        model.self_attention.compile(dynamic=True)
        model.hear, model.play = graphs.compiled(model.hear), graphs.compiled(model.play)


def has_triton(device):
    if torch.device(device).type != 'cuda':
        return False
    from fast.kernels import triton
    return bool(triton)


def hand_in_kernels(model, ssd):
    """Hand a model on a GPU all kernels; each falls back to plain PyTorch where it does not fit"""
    from fast import attention, hearing, layers
    faster = {
        'local_attention': attention.local_attention,
        'windowed_attention': attention.windowed_attention,
        'content_attention': attention.content_attention,
        'squelch': functools.partial(hearing.squelch, model.spectrum),
    }
    if model.config.freeze:
        faster['pace'] = functools.partial(pace, model.pace, model.spectrum, model.config.patch)
    if ssd == 'auto':
        faster['run_layers'] = layers.run_layers
    # torch.compile leaves them as they are.
    model.hand_in(**{name: torch.compiler.disable(f) for name, f in faster.items()})


def pace(plain, spectrum, patch, frames):
    """MiniJMamba.pace(), in training by a kernel. Long counts need all digits of the plain one."""
    from fast import hearing
    if torch.is_autocast_enabled(frames.device.type):
        return hearing.pace(spectrum, frames, patch)
    return plain(frames)


def distance(device):
    """lessons.distance of a device"""
    if not has_triton(device):
        return lessons.distance
    from fast import losses
    return torch.compiler.disable(losses.distance)


def synthesis(device):
    """prepare.Synthesis of a device, for make_batch"""
    if not has_triton(device):
        return Synthesis()
    from fast import sound
    return Synthesis(sound.play, sound.reverberate, sound.noisy, sound.answered)
