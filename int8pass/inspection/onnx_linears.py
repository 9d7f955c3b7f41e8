"""The rewritten Linears of an exported file: which nodes are theirs, and what they read and give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from int8pass.errors import OnnxFileError
from int8pass.inspection.report import Row

if TYPE_CHECKING:
    import onnx_ir as ir

    from int8pass.export.tensorrt.onnx_graph import OnnxGraph

_PRODUCT = "scaled_int8_mm"  # the op of int8pass that gives a Linear's result
_OUTLIERS = ("gathered_mm", "column_mm")
_GEMMS = ("MatMul", "MatMulInteger", "DequantizeLinear")  # of the product; runtimes fuse them


@dataclass(frozen=True)
class FileLinear:
    """A Linear of a file. x, y: the names of the values that it reads and gives.

    parts: the names of its nodes, with what they are for: "quantize", "gemm", "dequantize" or "outliers". Nodes that
    several Linears share are in each of them.
    """

    row: Row
    x: str
    y: str
    parts: dict[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """The weight, and the views that it is read through."""
        return self.row.weight, self.row.view


def linears_of(graph: "OnnxGraph", rows: Sequence[Row], codes: Sequence[str]) -> list[FileLinear]:
    """The Linears of the file, in the order in which they run. rows, codes: of each, and the name of its int8 weight.

    Raises OnnxFileError where the nodes of one cannot be told.
    """
    places = {node.name: place for place, node in enumerate(graph.model.graph)}
    results = _results(graph)
    found = []
    for row, name in zip(rows, codes, strict=True):
        if not results.get(name):
            raise OnnxFileError(f"the file does not say which nodes compute {row.module!r}: export it again")
        result = results[name].pop(0)
        nodes, inputs = _reached(result, {each for values in results.values() for each in values})
        if len(inputs) != 1:
            raise OnnxFileError(f"the nodes of {row.module!r} read {sorted(inputs)} and not one input: export it again")
        found.append(FileLinear(row, *inputs, result.name, {node.name: _part(node) for node in nodes}))
    return sorted(found, key=lambda linear: max(places[name] for name in linear.parts))


def _operation(node: "ir.Node") -> str:
    from int8pass.export.metadata import OPERATION

    return node.metadata_props.get(OPERATION, "")


def _part(node: "ir.Node") -> str:
    operation = _operation(node)
    if operation == _PRODUCT:
        return "gemm" if node.op_type in _GEMMS else "dequantize"
    return "outliers" if operation in _OUTLIERS else "quantize"


def _results(graph: "OnnxGraph") -> dict[str, list["ir.Value"]]:
    """By name of the int8 weight, what its products give, in the order of the file."""
    found: dict[str, list[ir.Value]] = {}
    for node in graph.model.graph:
        if _operation(node) == _PRODUCT and node.op_type in ("MatMul", "MatMulInteger"):
            value, weight = node.outputs[0], node.inputs[1]
            while weight.producer() is not None:
                weight = weight.producer().inputs[0]
            while after := [user for user in value.consumers() if _operation(user) == _PRODUCT]:
                value = after[0].outputs[0]
            found.setdefault(weight.name, []).append(value)
    return found


def _reached(result: "ir.Value", others: set["ir.Value"]) -> tuple[list["ir.Node"], set[str]]:
    """The nodes that a result comes from, as far as they are of int8pass, and the names of what those read."""
    nodes: dict[ir.Node, None] = {}
    inputs: set[str] = set()
    queue = [result]
    while queue:
        value = queue.pop()
        node = value.producer()
        if value is not result and (value in others or node is None or not _operation(node)):
            if value.const_value is None:
                inputs.add(value.name)
        elif node not in nodes:
            nodes[node] = None
            queue += filter(None, node.inputs)
    return list(nodes), inputs


def node_of_kernel(kernel: str, names: Sequence[str]) -> str:
    """The node that a kernel runs: one that the runtime fused is called after one of its nodes. "" for none.

    names: of nodes, the longest first.
    """
    kernel = kernel.removeprefix("fused ")
    return next((name for name in names if kernel == name or kernel.startswith((f"{name}/", f"{name}_"))), "")


def users_of_nodes(linears: Sequence[FileLinear]) -> dict[str, list[tuple[int, str]]]:
    """By name of a node, the numbers of the Linears that it is of, and what it is for there."""
    found: dict[str, list[tuple[int, str]]] = {}
    for number, linear in enumerate(linears):
        for name, part in linear.parts.items():
            found.setdefault(name, []).append((number, part))
    return found
