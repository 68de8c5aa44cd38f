"""
What makes the model fast, above all on a GPU. Skip it at first: without it everything works.

    fast.use(model)                   # kernels where they fit: the same answers, sooner
    fast.use(model, compiled=True)    # for training, which repeats the same shapes

kernels.py has the middle of a Mamba-2 layer in Triton, and mamba_ssm's scan for long questions;
graphs.py has what torch.compile and CUDA graphs do.
"""
from fast.graphs import capture, compile_parts, compiled_synthesis, in_graphs

__all__ = ['capture', 'compiled_synthesis', 'in_graphs', 'use']


def use(model, ssd='auto', compiled=False):
    """Hand a model, which is on its device already, the functions that are the fastest there.

    ssd names the scan: auto, whichever is the fastest for a length; torch, model.py's own; or
    mamba_ssm, at every length: ValueError says why if it cannot be had. compiled: all layers and
    what a pass calls once are compiled, each shape when it is met."""
    device = model.start.device
    if ssd == 'mamba_ssm' or ssd == 'auto' and device.type == 'cuda':
        from fast.kernels import mixer_for  # which loads Triton, and nothing else needs that
        model.hand_in(mixer=mixer_for(ssd, device))
    if compiled:
        compile_parts(model)
