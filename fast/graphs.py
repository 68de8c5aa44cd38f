"""
torch.compile and CUDA graphs: what Python need not do again at every update.
"""
import functools

import torch
from torch.utils._pytree import tree_leaves

from prepare import Synthesis

WARM_UPS = 3  # runs before a graph is captured: what only a first one does cannot be

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
    graph writes its results there again each time it is replayed. f() runs WARM_UPS times first."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    # PyTorch asks that the first runs are on a stream of their own.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            f()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        result = f()
    return graph, result


def captured_update(make_examples, step, generator):
    """step(make_examples()) as a CUDA graph, in which the next examples are made beside an update
    -> the function that replays it and gives the numbers that step returned. WARM_UPS updates have
    been done by then."""
    made, side = list(make_examples()), torch.cuda.Stream()

    def update():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            following = list(make_examples())
        numbers = step(made)
        torch.cuda.current_stream().wait_stream(side)
        for now, then in zip(tree_leaves(made), tree_leaves(following), strict=True):
            if now is not None:
                now.copy_(then)
        return numbers

    graph, numbers = capture(update, generator)

    def replay(keep=made):  # the graph reads and writes `made`, which must live on
        graph.replay()
        return numbers

    return replay


def in_graphs(examples, step, generator):
    """examples(task) and step(task, made) -> the dict of a function for each task that has been
    asked for, and update(task) -> numbers, and how many updates there were: with a task's first
    graph those that warm it up, too"""
    graphs = {}

    def update(task):
        n = 1
        if task not in graphs:
            n += WARM_UPS
            of_task = functools.partial(examples, task), functools.partial(step, task)
            graphs[task] = captured_update(*of_task, generator)
        return graphs[task](), n

    return graphs, update
