"""
torch.compile and CUDA graphs: what Python need not do again at every update.
"""
import functools

import torch

WARM_UPS = 2  # runs before a graph is captured: what only a first one does cannot be

# One program for windows of all lengths: a cold start would be several times as long with one each.
compiled = functools.partial(torch.compile, dynamic=True)


def capture(f, *generators, pool=None):
    """f(), which may draw from the generators, as a CUDA graph -> the graph and what f returned.
    The graph writes its results there again each time it is replayed."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, pool=pool):
        result = f()
    return graph, result


def in_graphs(f, graphs, *generators):
    """f(*key), which reads and writes only what stays where it is -> the same by CUDA graphs, which
    are put into the dict `graphs`, one for each key from the time on when it is no longer new. They
    share their memory, so what f returns is good until the next of them."""
    seen, side = {}, torch.cuda.Stream()
    if not graphs:
        graphs['pool'] = torch.cuda.graph_pool_handle()

    def call(*key):
        name = (f.__name__, *key)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= WARM_UPS:
            # PyTorch asks that the first runs are on a stream of their own.
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                result = f(*key)
            torch.cuda.current_stream().wait_stream(side)
            return result
        if name not in graphs:
            run = functools.partial(f, *key)
            graphs[name] = capture(run, *generators, pool=graphs['pool'])
        graph, result = graphs[name]
        graph.replay()
        return result

    return call
