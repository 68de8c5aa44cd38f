"""
torch.compile and CUDA graphs: what Python need not do again at every update.
"""
import functools

import torch

from prepare import Synthesis

compiled = functools.partial(torch.compile, dynamic=False)  # anew for each shape, but faster


def compile_parts(model):
    """torch.compile for every layer of a model, once for all of a class, and for what a pass calls
    once. A layer that says `compiles = False` stays as it is."""
    torch._dynamo.config.recompile_limit = 64
    layers = [*model.encoder, *model.decoder, model.cross, model.self_attention]
    for layer in layers:
        if getattr(layer, 'compiles', True):
            layer.compile(dynamic=False)
    model.hand_in(compiled=compiled)


def compiled_synthesis():
    """prepare.Synthesis whose functions are compiled, for make_batch"""
    return Synthesis(*map(compiled, Synthesis()))


def capture(f, generator):
    """f(), which may draw from the generator, as a CUDA graph -> the graph and what f returned. The
    graph writes its results there again each time it is replayed. f() runs three times first."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    # What only a first run does, such as compiling, cannot be captured. So three runs come first,
    # on a stream of their own, as PyTorch asks.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            f()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        result = f()
    return graph, result
