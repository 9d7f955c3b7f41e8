"""An ONNX file as the rules see it: functions inlined, types inferred, constants as initializers, weights on disk."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int8pass.errors import MissingDependencyError, OnnxFileError

if TYPE_CHECKING:
    import numpy
    import onnx_ir

DEFAULT_DOMAINS = ("", "ai.onnx")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
GEMMS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Operators that move or cast a tensor's elements and compute nothing.
MOVERS = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

_SMALL = 1024  # bytes


@dataclass(frozen=True)
class OnnxGraph:
    """A loaded model. opset: of the default domain."""

    model: "onnx_ir.Model"
    opset: int

    @cached_property
    def nodes(self) -> "tuple[onnx_ir.Node, ...]":
        """Every node, those of subgraphs included, in order."""
        return tuple(self.model.graph.all_nodes())

    def of_type(self, *names: str) -> "Iterator[onnx_ir.Node]":
        """The nodes of the default domain with one of these operators."""
        return (node for node in self.nodes if node.domain in DEFAULT_DOMAINS and node.op_type in names)


def load_graph(path: Path) -> OnnxGraph:
    """Read an ONNX file; weights in external data stay on disk until a rule reads them.

    Raises OnnxFileError where the file or its external data is missing, is not ONNX, or breaks ONNX's own rules;
    MissingDependencyError without onnx.
    """
    try:
        import onnx
        import onnx_ir
        from google.protobuf.message import DecodeError
        from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX files are read with onnx and onnx_ir: pip install 'int8pass[onnx]'"
        ) from error
    if not path.is_file():
        raise OnnxFileError(f"there is no file {str(path)!r}")
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise OnnxFileError(f"{str(path)!r} is not an ONNX file: {error}") from error
    if not proto.graph.node or not proto.opset_import:
        raise OnnxFileError(f"{str(path)!r} is not an ONNX file: it holds no graph")
    model = onnx_ir.from_proto(proto)
    onnx_ir.external_data.set_base_dir(model.graph, path.parent)
    _check_external_data(model, path)
    try:
        onnx.checker.check_model(os.fspath(path))
        InlinePass()(model)
        proto = onnx.shape_inference.infer_shapes(onnx_ir.to_proto(model), strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OnnxFileError(f"{str(path)!r} is not a valid ONNX model: {error}") from error
    model = onnx_ir.from_proto(proto)
    onnx_ir.external_data.set_base_dir(model.graph, path.parent)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return OnnxGraph(model, model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)))


def _check_external_data(model: "onnx_ir.Model", path: Path) -> None:
    """Raise where external data is missing; read small tensors, as shape inference needs axes and shapes."""
    import onnx_ir

    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            continue
        file = path.parent / tensor.location
        if not file.is_file():
            raise OnnxFileError(
                f"{str(path)!r} keeps {tensor.name!r} in {str(tensor.location)!r}, which is not beside it: "
                "copy the model's external data too"
            )
        if file.stat().st_size < (tensor.offset or 0) + tensor.nbytes:
            raise OnnxFileError(f"{str(file)!r} is too short to hold {tensor.name!r} of {str(path)!r}")
        if tensor.nbytes <= _SMALL:
            value.const_value = onnx_ir.Tensor(tensor.numpy().copy(), name=tensor.name)


# --- questions that rules ask


def dtype(value: "onnx_ir.Value | None") -> str:
    """ONNX's name of a value's element type, such as FLOAT16; "" where it is absent or unknown."""
    return value.dtype.name if value is not None and value.dtype is not None else ""


def input_of(node: "onnx_ir.Node", index: int) -> "onnx_ir.Value | None":
    """The input at an index, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: "onnx_ir.Node", name: str, default: Any) -> Any:
    """An attribute's value, or a default where it is not given."""
    return node.attributes[name].value if name in node.attributes else default


def producer(value: "onnx_ir.Value | None", *names: str) -> "onnx_ir.Node | None":
    """The node that makes a value; with names, only if its operator is one of them."""
    node = value.producer() if value is not None else None
    return node if node is not None and (not names or node.op_type in names) else None


def initializer(value: "onnx_ir.Value | None") -> "onnx_ir.TensorProtocol | None":
    """The tensor of an initializer that no network input overrides."""
    return None if value is None or value.is_graph_input() else value.const_value


def is_constant(value: "onnx_ir.Value | None") -> bool:
    """Whether a value is known when an engine is built: an initializer, or computed from nothing else."""
    if initializer(value) is not None:
        return True
    node = producer(value)
    return node is not None and bool(node.inputs) and all(is_constant(each) for each in node.inputs if each is not None)


def numbers(value: "onnx_ir.Value | None") -> "numpy.ndarray | None":
    """The float64 elements of an initializer, or None."""
    tensor = initializer(value)
    return None if tensor is None else tensor.numpy().astype("float64")


def is_weight(node: "onnx_ir.Node") -> bool:
    """Whether a QuantizeLinear or DequantizeLinear is on a weight: its data is constant."""
    source = producer(node.inputs[0], QUANTIZE)
    return is_constant(source.inputs[0] if source is not None else node.inputs[0])


def behind_movers(value: "onnx_ir.Value | None") -> "onnx_ir.Node | None":
    """The first node, looking back from a value, that is not one of MOVERS."""
    node = producer(value)
    while node is not None and node.op_type in MOVERS:
        node = producer(node.inputs[0])
    return node
