"""What each Linear of a file takes in ONNX Runtime, part by part, against the same file with float Linears."""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from int8pass.inspection.onnx_linears import FileLinear, node_of_kernel, users_of_nodes
from int8pass.inspection.onnx_run import Feed, FileRun
from int8pass.inspection.timing import Timing

if TYPE_CHECKING:
    import onnx_ir as ir

RUNS = 9
_WARM_UP = 2  # runs that are not counted
_KERNEL = "_kernel_time"
_FLOAT = "int8pass_float"
Weights = Sequence[np.ndarray]  # float32[K, N] of each Linear


def time_linears(run: FileRun, feed: Feed, weights: Weights) -> list[Timing]:
    """One a Linear of the run, of ONNX Runtime's own profile: sums of its kernels' medians over the runs.

    What several Linears share counts for each of them in equal parts. float: of a copy of the file whose Linears are
    MatMul and Add; its weights take four times the memory. Raises OnnxFileError.
    """
    users = users_of_nodes(run.linears)
    seconds, float_seconds = _profiles(run, [run.path, _with_float_linears(run, weights)], feed)
    names = sorted((node.name for node in run.graph), key=len, reverse=True)
    int8: list[dict[str, float]] = [defaultdict(float) for _ in run.linears]
    for kernel, taken in seconds.items():
        shared = users.get(node_of_kernel(kernel, names), [])
        for number, part in shared:
            int8[number][part] += taken / len(shared)
    floats = [0.0] * len(run.linears)
    for kernel, taken in float_seconds.items():
        if own := re.search(rf"{_FLOAT}-(\d+)/", kernel):
            floats[int(own[1])] += taken
    return [
        Timing(taken, sum(each.values()), each["quantize"], each["gemm"], each["dequantize"], each["outliers"])
        for taken, each in zip(floats, int8, strict=True)
    ]


def _profiles(run: FileRun, paths: Sequence[Path], feed: Feed) -> list[dict[str, float]]:
    """Of each file, median seconds a run of each kernel, by the name of its node. Runs of the files alternate."""
    sessions = [run.open(path, profile=run.folder / f"profile-{number}") for number, path in enumerate(paths)]
    for _ in range(_WARM_UP + RUNS):
        for session in sessions:
            run.call(session, feed)
    return [_medians(Path(session.end_profiling())) for session in sessions]


def _medians(profile: Path) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            found[event["name"].removesuffix(_KERNEL)].append(1e-6 * event["dur"])
    return {name: statistics.median(durations[_WARM_UP:]) for name, durations in found.items()}


def _with_float_linears(run: FileRun, weights: Weights) -> Path:
    """The file with a MatMul and an Add in place of each int8 Linear."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = ir.convenience.extract(run.graph, list(run.graph.inputs), list(run.graph.outputs))
    for number, (linear, weight) in enumerate(zip(run.linears, weights, strict=True)):
        _replace(graph, linear, weight, f"{_FLOAT}-{number}")
    graph.sort()
    model = ir.Model(graph, ir_version=10)
    RemoveUnusedNodesPass()(model)
    return run.write(graph, "float")


def _replace(graph: "ir.Graph", linear: FileLinear, weight: np.ndarray, name: str) -> None:
    import onnx_ir as ir

    values = ir.convenience.create_value_mapping(graph)
    x, y = values[linear.x], values[linear.y]
    dtype = y.dtype.numpy()
    constants = []
    for part, array in (("weight", weight), ("bias", np.zeros(weight.shape[1], np.float32))):
        tensor = ir.tensor(array.astype(dtype), name=f"{name}/{part}")
        value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        graph.register_initializer(value)
        constants.append(value)
    product = ir.node("MatMul", [x, constants[0]], name=f"{name}/MatMul")
    result = ir.node("Add", [product.outputs[0], constants[1]], name=f"{name}/Add")
    product.outputs[0].name, result.outputs[0].name = f"{name}/product", f"{name}/y"
    graph.extend([product, result])
    y.replace_all_uses_with(result.outputs[0], replace_graph_outputs=True)
