"""CUDA graphs: what a replay keeps alive, and what a capture that fails leaves behind. (The device is made up.)"""

import contextlib
import gc
import weakref

import pytest
import torch

from int8pass.bench import gpu_graphs
from int8pass.bench.measure import Unavailable

GPU = torch.device("cuda", 0)


class Stream:
    device = GPU

    def __init__(self, device=GPU):
        pass

    def wait_stream(self, other):
        pass


class Generator:
    """As PyTorch's: one that a capture has begun with gives no numbers outside of it until the capture has ended."""

    def __init__(self):
        self.capturing = False

    def clone_state(self):
        return self.capturing

    def graphsafe_set_state(self, state):
        self.capturing = state


class Graph:
    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda as far as a capture needs it; the end of one that failed raises, before the stream is put back."""

    class Gpu:
        current, generator, failure = Stream(), Generator(), None

    @contextlib.contextmanager
    def capture(graph, capture_error_mode):
        before, Gpu.current, Gpu.generator.capturing = Gpu.current, Stream(), True
        yield
        if Gpu.failure is not None:
            raise Gpu.failure
        Gpu.current, Gpu.generator.capturing = before, False

    def set_stream(stream):
        Gpu.current = stream

    replaced = {
        "CUDAGraph": Graph, "Stream": Stream, "graph": capture, "set_stream": set_stream, "synchronize": print,
        "current_stream": lambda device=None: Gpu.current, "stream": lambda stream: contextlib.nullcontext(),
        "default_generators": (Gpu.generator,),
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Gpu


def test_a_replay_keeps_what_its_graph_reads(gpu):
    x, calls = torch.ones(3), []

    def call(held=x):
        calls.append(held.sum())

    alive = weakref.ref(x)
    replay = gpu_graphs.captured(call, GPU)
    del x, call
    gc.collect()
    assert alive() is not None and len(calls) == 4
    replay()
    assert replay.graph.replays == 1 and len(calls) == 4


@pytest.mark.parametrize("during", [False, True], ids=["at the end", "in the call"])
def test_a_capture_that_fails_puts_stream_and_generator_back(gpu, during):
    before, calls = gpu.current, []

    def call():
        calls.append(None)
        if during and len(calls) == 4:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    if not during:
        gpu.failure = RuntimeError("operation not permitted when stream is capturing\nmore")
    with pytest.raises(Unavailable, match=r"^no CUDA graph can hold it: operation not permitted .* capturing$"):
        gpu_graphs.captured(call, GPU)
    assert gpu.current is before and not gpu.generator.capturing


def test_another_error_puts_them_back_too(gpu):
    before, calls = gpu.current, []

    def call():
        calls.append(None)
        if len(calls) == 4:
            raise KeyError("x")

    with pytest.raises(KeyError):
        gpu_graphs.captured(call, GPU)
    assert gpu.current is before and not gpu.generator.capturing


def test_on_the_cpu_a_call_is_its_own_replay():
    def call():
        pass

    assert gpu_graphs.captured(call, torch.device("cpu")) is call
