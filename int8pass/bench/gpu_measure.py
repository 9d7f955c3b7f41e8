"""Measure one workload on a GPU: contestants as CUDA graphs, interleaved, with their share of the device's limits."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from int8pass.bench.gpu_cases import Blocks, BlockShape, LinearShape, block_inputs
from int8pass.bench.gpu_check import dtype_name
from int8pass.bench.gpu_contestants import Contestant
from int8pass.bench.gpu_graphs import captured, device_clock, nothing
from int8pass.bench.gpu_limits import Limits
from int8pass.bench.measure import Prepared, Progress, Unavailable, compiling, measure, relative_error
from int8pass.bench.results import Case, Measurement
from int8pass.bench.timing import median

_COMPARED_ROWS = 64
_LARGEST_ERROR = 0.25  # of a result that int8 explains: its own is a few hundredths


class Bench:
    """What all workloads of a run share. rounds: how often each contestant is timed."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, limits: Limits, rounds: int, progress: Progress
    ) -> None:
        self.device, self.dtype, self.limits = device, dtype, limits
        self._rounds, self._progress = rounds, progress
        self._cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0

    def linear(self, shape: LinearShape, contestants: Sequence[Contestant]) -> Case:
        """A Linear, so many layers of it that weights come from memory; times are those of one layer."""
        copies = shape.copies(self._cache_bytes)
        layers = shape.layers(copies, self.device, self.dtype)

        def prepare(contestant: Contestant) -> Prepared:
            xs = [shape.input(contestant.outliers, self.device, self.dtype)]
            own = layers
            if contestant.moving:  # its calls would empty the others' caches of weight columns
                own = copy.deepcopy(layers)
                xs = [shape.input(contestant.outliers, self.device, self.dtype, turn) for turn in range(2)]
            turns = [[x.clone() for _ in range(copies)] for x in xs]
            call = contestant.build(own)
            y = call(turns[0])[0]
            error = math.nan if y.dtype == torch.int32 else _right(_linear_error(y, xs[0], layers.layers[0]))

            def run() -> None:
                for inputs in turns:
                    call(inputs)

            return self._prepared(contestant, run, len(turns) * copies, error)

        facts = {"dtype": dtype_name(self.dtype), "copies": copies, "unit": "layer", "M": shape.rows,
                 "K": shape.features, "N": shape.outputs, "error": "error"}  # fmt: skip
        element = self.dtype.itemsize
        moved = {each.name: shape.bytes_moved(each.weight_bytes, element) for each in contestants}
        return self._case(shape.name, facts, contestants, prepare, shape.ops, moved)

    def blocks(self, shape: BlockShape, batch: int, tokens: int, past: int, contestants: Sequence[Contestant]) -> Case:
        """A stack of decoder blocks; times are those of one pass over all of them."""
        model = Blocks(shape, self.device, self.dtype)
        inputs = block_inputs(shape, batch, tokens, past, self.device, self.dtype)
        exact = model(*inputs)

        def prepare(contestant: Contestant) -> Prepared:
            call = contestant.build(model)
            error = _right(relative_error(call(*inputs), exact))
            return self._prepared(contestant, lambda: call(*inputs), 1, error)

        kind = "decode" if past else "prefill"
        facts = {"dtype": dtype_name(self.dtype), "unit": "pass", "blocks": shape.blocks, "batch": batch,
                 "tokens": tokens, "past": past, "error": "to eager"}  # fmt: skip
        ops = 2.0 * batch * tokens * shape.weights
        moved = {each.name: float(each.weight_bytes * shape.weights) for each in contestants}
        return self._case(f"{shape.blocks} blocks, {kind} {batch}x{tokens}", facts, contestants, prepare, ops, moved)

    def _prepared(
        self, contestant: Contestant, call: Callable[[], object], units: int, error: float
    ) -> Prepared:  # fmt: skip
        if not contestant.captured:
            return Prepared(call, units, error=error, note="from Python, not as a CUDA graph")
        return Prepared(captured(call, self.device), units, error=error)

    def _case(
        self, name: str, facts: dict[str, Any], contestants: Sequence[Contestant],
        prepare: Callable[[Contestant], Prepared], ops: float, moved: dict[str, float],
    ) -> Case:  # fmt: skip
        with compiling():
            found = measure(
                contestants, prepare, self._rounds, lambda message: self._progress(f"{name}: {message}"),
                device_clock(self.device), before=nothing,
            )  # fmt: skip
        rates = {
            each.name: self._rates(measured, each, ops, moved[each.name])
            for each, measured in zip(contestants, found, strict=True)
            if measured.seconds
        }
        return Case(name, {**facts, "rates": rates}, found)

    def _rates(self, measured: Measurement, contestant: Contestant, ops: float, moved: float) -> dict[str, float]:
        """Roofline figures: operations and bytes a second in units of 10**12 and 10**9, share of the nearer limit."""
        seconds = median(measured.seconds)
        share = self.limits.share(ops, moved, seconds, contestant.int8)
        return {"TOP/s": ops / seconds / 1e12, "GB/s": moved / seconds / 1e9, "share": share}


def _linear_error(y: Tensor, x: Tensor, layer: nn.Linear) -> float:
    rows = slice(_COMPARED_ROWS)
    exact = x[rows].double() @ layer.weight.double().t() + layer.bias.double()
    return relative_error(y[rows], exact)


def _right(error: float) -> float:
    """The error. Raises Unavailable for that of a wrong result, with the very tiles that would be timed."""
    if error <= _LARGEST_ERROR:
        return error
    raise Unavailable(f"not timed: the result is wrong, its relative error is {error:.2g}")
