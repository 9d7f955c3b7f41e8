"""Device time: work captured in CUDA graphs and replayed, so that no launch of the host's is in it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from int8pass.bench.measure import Unavailable

_WARM_UPS = 3


@dataclass(frozen=True)
class Replay:
    """A CUDA graph, and the call that it was captured from: it reads the tensors that the call holds where they lie."""

    graph: torch.cuda.CUDAGraph
    call: Callable[[], object]

    def __call__(self) -> None:
        self.graph.replay()


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call as a CUDA graph's replay; on the CPU, the call itself. Raises Unavailable where none can hold it."""
    if device.type != "cuda":
        return call
    current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            call()
    current.wait_stream(stream)
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[current.device.index]
    state, replay = generator.clone_state(), None
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads' calls are none of its errors
            call()
        replay = Replay(graph, call)
    except RuntimeError as error:
        raise Unavailable(f"no CUDA graph can hold it: {str(error).splitlines()[0]}") from error
    finally:
        if replay is None:  # then the capture's stream is still current, and random numbers wait for its end
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(state)
            torch.cuda.synchronize(device)
    return replay


def nothing() -> None:
    """What precedes a timed batch: graphs hold so many layers that none is left in the device's cache."""


def device_clock(device: torch.device) -> Callable[[], float]:
    """Seconds, read once the device has finished what was asked of it."""
    if device.type == "cpu":
        return time.perf_counter

    def read() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return read
