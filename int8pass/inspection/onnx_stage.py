"""The graph of an ONNX file as a stage: one typed line a node, small constants as values, each node with its module."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from int8pass.inspection.stages import Stage, StageNode
from int8pass.inspection.text import Symbols

if TYPE_CHECKING:
    import onnx_ir as ir

    from int8pass.export.tensorrt.onnx_graph import OnnxGraph

_SHOWN = 8  # elements of a constant that stands in the text
_DTYPES = {"FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16", "DOUBLE": "f64", "BOOL": "bool"}


class FileStage(Stage):
    """A stage of nodes that know their module: a weight's part of the graph is that of its module."""

    def around_weight(self, weight: str) -> set[str]:
        """Names of the nodes of the module that holds a weight."""
        module = weight.rpartition(".")[0]
        return {node.name for node in self.nodes if node.module == module and node.kind in ("call", "weight")}


def file_stage(name: str, graph: "OnnxGraph", weights: set[str]) -> Stage:
    """The stage. weights: names of the parameters and buffers of the source model that became int8."""
    return FileStage(name, tuple(_Writer(graph.model.graph, weights).nodes()))


class _Writer:
    def __init__(self, graph: "ir.Graph", weights: set[str]) -> None:
        self._graph, self._weights, self._symbols = graph, weights, Symbols()
        self._makers = {value.name: node.outputs[0].name for node in graph for value in node.outputs}
        tensors = {name: value.const_value for name, value in graph.initializers.items() if not value.is_graph_input()}
        self._literals = {name: _literal(tensor) for name, tensor in tensors.items() if tensor.size <= _SHOWN}

    def nodes(self) -> list[StageNode]:
        """In the order of the file: inputs, weights, operators, results."""
        inputs = [StageNode(each.name, f"{self._typed(each)} = input", "input", "", ()) for each in self._graph.inputs]
        large = [
            self._constant(value) for name, value in self._graph.initializers.items() if name not in self._literals
        ]
        calls = [self._call(node) for node in self._graph]
        results = [value.name for value in self._graph.outputs]
        text = f"return ({', '.join(f'%{name}' for name in results)},)"
        return [*inputs, *large, *calls, StageNode("output", text, "output", "", self._read(results))]

    def _constant(self, value: "ir.Value") -> StageNode:
        module, dot, _ = value.name.rpartition(".")
        source = re.sub(r"_(inputs_first|scale)(_\d+)?$", "", value.name)
        what = f"weight '{value.name}'" if dot or source in self._weights else "constant"
        weight = source if source in self._weights else ""
        return StageNode(value.name, f"{self._typed(value)} = {what}", "weight", module, (), weight)

    def _call(self, node: "ir.Node") -> StageNode:
        from int8pass.export.metadata import MODULE

        names = ["" if value is None else value.name for value in node.inputs]
        arguments = [self._literals.get(name, f"%{name}") if name else "None" for name in names]
        arguments += [f"{name}={_attribute(node.attributes[name])}" for name in sorted(node.attributes)]
        left = ", ".join(map(self._typed, node.outputs))
        domain = f"{node.domain}." if node.domain else ""
        text = f"{left} = {domain}{node.op_type}({', '.join(arguments)})"
        module = node.metadata_props.get(MODULE, "")
        return StageNode(node.outputs[0].name, text, "call", module, self._read(filter(None, names)))

    def _read(self, names: Iterable[str]) -> tuple[str, ...]:
        """The nodes that make these values, without literals; an operator goes by its first result."""
        return tuple(dict.fromkeys(self._makers.get(name, name) for name in names if name not in self._literals))

    def _typed(self, value: "ir.Value") -> str:
        if value.dtype is None:
            return f"%{value.name}"
        name = value.dtype.name
        dtype = _DTYPES.get(name) or name.lower().replace("uint", "u").replace("int", "i")
        sizes = "..." if value.shape is None else ", ".join(self._symbols(str(size)) for size in value.shape)
        return f"%{value.name} : {dtype}[{sizes}]"


def _literal(tensor: "ir.TensorProtocol") -> str:
    """[0, 1], or 0.5 of a scalar."""
    return _numbers(tensor.numpy().tolist())


def _numbers(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_numbers, value))}]"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _attribute(attribute: "ir.Attr") -> str:
    value = attribute.value
    if isinstance(value, str | float | int):
        return repr(value) if isinstance(value, str) else _numbers(value)
    if isinstance(value, list | tuple) and all(isinstance(each, str | float | int) for each in value):
        return f"[{', '.join(map(str, value))}]"
    return f"<{attribute.type.name.lower()}>"
