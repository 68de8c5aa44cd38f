"""
CUDA graphs: when they are captured and when replayed, told by a stand-in for a GPU; and on a GPU.

$ python -m pytest tests/test_graphs.py
"""
import contextlib
import types

import pytest
import torch

from fast.graphs import WARM_UPS, in_graphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture
def said(monkeypatch):
    """A stand-in for torch.cuda -> a list of what is asked of it. What is captured is run at once,
    and what is replayed is not run."""
    said = []

    class Stream:
        def __init__(self, name='side'):
            self.name = name

        def wait_stream(self, other):
            said.append(f'{self.name} waits for {other.name}')

    class Graph:
        def register_generator_state(self, generator):
            said.append(f'registers {generator}')

        def replay(self):
            said.append('replays')

    @contextlib.contextmanager
    def on_stream(stream):
        said.append(f'on {stream.name}')
        yield
        said.append(f'off {stream.name}')

    @contextlib.contextmanager
    def captured(graph, pool):
        assert isinstance(graph, Graph)
        said.append(f'captures into {pool}')
        yield
        said.append('has captured')

    def new_pool():
        said.append('makes a pool')
        return 'the pool'

    main = Stream('main')
    cuda = types.SimpleNamespace(
        CUDAGraph=Graph, Stream=Stream, current_stream=lambda: main, graph=captured,
        graph_pool_handle=new_pool, stream=on_stream)
    monkeypatch.setattr(torch, 'cuda', cuda)
    return said


WARMED_UP = ['side waits for main', 'on side', 'runs', 'off side', 'main waits for side']
CAPTURED = ['registers lots', 'registers noise', 'captures into the pool', 'runs', 'has captured']


def taken(said):
    """What was said since the last time"""
    found = said[:]
    said.clear()
    return found


def test_a_key_is_warmed_up_then_captured_once_and_replayed_from_then_on(said):
    graphs, keys = {}, []

    def step(*key):
        said.append('runs')
        keys.append(key)
        return len(keys)

    call = in_graphs(step, graphs, 'lots', 'noise')
    assert taken(said) == ['makes a pool']
    for key in (('mod', 6400), ('mod', 12800), ('mirror', 6400)):
        keys.clear()
        for i in range(WARM_UPS):
            assert call(*key) == i + 1
            assert taken(said) == WARMED_UP
        # What is captured has not run yet.
        assert call(*key) == WARM_UPS + 1
        assert taken(said) == [*CAPTURED, 'replays']
        # Its results lie where they did.
        for _ in range(3):
            assert call(*key) == WARM_UPS + 1
            assert taken(said) == ['replays']
        assert keys == [key] * (WARM_UPS + 1)
    call('mod', 6400)
    assert taken(said) == ['replays']  # it is not forgotten
    assert len(graphs) == 1 + 3


def test_several_functions_share_a_dict_and_its_pool(said):
    graphs, ran = {}, []

    def refill(task):
        ran.append('refill')

    def step(task):
        ran.append('step')

    calls = [in_graphs(f, graphs) for f in (refill, step)]
    assert taken(said) == ['makes a pool']
    for _ in range(WARM_UPS + 2):
        for call in calls:
            call('mod')
    assert ran == ['refill', 'step'] * (WARM_UPS + 1)
    assert said.count('captures into the pool') == 2
    assert said.count('replays') == 4
    graphs.clear()  # as train.py does at its end, so that they can be let go of
    assert not graphs


@needs_gpu
def test_graphs_do_what_the_function_does():
    def results(is_fast):
        generator = torch.Generator('cuda').manual_seed(0)
        total = torch.zeros(2, 8, device='cuda')

        def step(row):
            total[row] += torch.rand(8, generator=generator, device='cuda')
            return 2 * total[row]

        call = in_graphs(step, {}, generator) if is_fast else step
        return [call(i % 2).clone() for i in range(4 * (WARM_UPS + 1))]

    for wanted, found in zip(results(False), results(True), strict=True):
        assert torch.equal(wanted, found)
