"""Device time: work captured in CUDA graphs and replayed, so that no launch of the host's is in it."""

import time
from collections.abc import Callable

import torch

from int8pass.bench.measure import Unavailable

_WARM_UPS = 3


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call as a CUDA graph's replay; on the CPU, the call itself. Raises Unavailable where none can hold it."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        raise Unavailable(f"no CUDA graph can hold it: {str(error).splitlines()[0]}") from error
    return graph.replay


def nothing() -> None:
    """What precedes a timed batch: graphs hold so many layers that none is left in the device's cache."""


def device_clock(device: torch.device) -> Callable[[], float]:
    """Seconds, read once the device has finished what was asked of it."""
    if device.type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read
