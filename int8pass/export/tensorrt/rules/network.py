"""What TensorRT's parser takes of any ONNX network: opsets, domains, operators, data types, shapes."""

from collections.abc import Iterator

from int8pass.export.tensorrt.onnx_graph import (
    DEFAULT_DOMAINS,
    DEQUANTIZE,
    QUANTIZE,
    OnnxGraph,
    attribute,
    dtype,
    input_of,
    producer,
)
from int8pass.export.tensorrt.operators import ONNX_TYPES, operator_list
from int8pass.export.tensorrt.restrictions import RESTRICTIONS
from int8pass.export.tensorrt.rule import Rule, Violation

INTEGER_OPERATORS = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")
MAX_RANK = 8
DATA_DEPENDENT = ("NonMaxSuppression", "NonZero")
_OPERATORS = "onnx-tensorrt docs/operators.md (TensorRT 10.15)"
_MATRIX = f"{_OPERATORS}, Operator Support Matrix"
_QUANTIZED_ONLY = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")


def _opset(graph: OnnxGraph) -> Iterator[Violation]:
    first, last = operator_list().opsets
    if not first <= graph.opset <= last:
        message = f"the file has opset {graph.opset}, and the parser takes {first} to {last}"
        yield Violation(graph.nodes[0], message)


def _domain(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.domain not in DEFAULT_DOMAINS:
            yield Violation(node, f"domain {node.domain!r}: without a plugin of that name the parser stops here")


def _operator(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.nodes:
        known = node.op_type in operator_list().supported or node.op_type in INTEGER_OPERATORS
        if node.domain in DEFAULT_DOMAINS and not known:
            yield Violation(node, f"{node.op_type} is not an operator that the parser supports")


def _integer_operator(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(*INTEGER_OPERATORS):
        yield Violation(node, f"{node.op_type} is listed as unsupported; write QuantizeLinear and DequantizeLinear")


def _restriction(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(*RESTRICTIONS):
        if not RESTRICTIONS[node.op_type](node):
            yield Violation(node, f"{node.op_type}: {operator_list().supported[node.op_type].restriction}")


def _operator_type(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(*operator_list().supported):
        types = operator_list().supported[node.op_type].types
        found = next((dtype(value) for value in node.inputs if value is not None), "")
        judged = found in ONNX_TYPES.values() and found not in (*_QUANTIZED_ONLY, "UINT8")
        if judged and found not in types and node.op_type != DEQUANTIZE:
            yield Violation(node, f"{node.op_type} of {found}; the parser takes {', '.join(types)}")


def _data_type(graph: OnnxGraph) -> Iterator[Violation]:
    """Type by type; what QuantizeLinear makes and DequantizeLinear reads is the rule int8-codes'."""
    root = graph.model.graph
    for value in (*root.inputs, *root.initializers.values()):
        readers = {node.op_type for node in value.consumers()}
        if not value.is_graph_input() and readers and readers <= {QUANTIZE, DEQUANTIZE}:
            continue
        allowed = "UINT8" if value.is_graph_input() else ""
        yield from _unsupported(value, value, allowed)
    for node in graph.nodes:
        for value in node.outputs if node.op_type not in (QUANTIZE, *INTEGER_OPERATORS) else ():
            yield from _unsupported(node, value, "UINT8" if value.is_graph_output() else "")


def _unsupported(place, value, allowed: str) -> Iterator[Violation]:
    name = dtype(value)
    if not name or name == allowed:
        return
    if name == "DOUBLE":
        yield Violation(place, f"{value.name!r} is DOUBLE, which TensorRT narrows to FLOAT")
    elif name == "UINT8":
        yield Violation(place, f"{value.name!r} is UINT8, which only inputs and outputs of the network may be")
    elif name not in ONNX_TYPES.values():
        yield Violation(place, f"{value.name!r} is {name}, a type that TensorRT does not have")


def _rank(graph: OnnxGraph) -> Iterator[Violation]:
    root = graph.model.graph
    places = [(value, value) for value in (*root.inputs, *root.initializers.values())]
    places += [(node, value) for node in graph.nodes for value in node.outputs]
    for place, value in places:
        if value.shape is not None and len(value.shape) > MAX_RANK:
            yield Violation(place, f"{value.name!r} has {len(value.shape)} dimensions")


def _data_dependent_output(graph: OnnxGraph) -> Iterator[Violation]:
    root = graph.model.graph
    known = {str(size) for value in root.inputs if value.shape is not None for size in value.shape}
    for value in root.outputs:
        unknown = value.shape is None or any(
            not isinstance(size, int) and str(size) not in known for size in value.shape
        )
        source = _ancestor(value, DATA_DEPENDENT) if unknown else None
        if source is not None:
            yield Violation(source, f"output {value.name!r} has a shape that depends on the data of {source.op_type}")


def _ancestor(value, names: tuple[str, ...]):
    pending, seen = [value], set()
    while pending:
        node = producer(pending.pop())
        if node is None or node in seen:
            continue
        if node.op_type in names:
            return node
        seen.add(node)
        pending.extend(each for each in node.inputs if each is not None)
    return None


def _quantize_opset(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        scale = dtype(input_of(node, 1))
        if graph.opset < 19 and scale in ("FLOAT16", "BFLOAT16"):
            yield Violation(node, f"a {scale} scale at opset {graph.opset}")
        elif graph.opset < 21 and attribute(node, "block_size", 0):
            yield Violation(node, f"a block size at opset {graph.opset}")


NETWORK_RULES = (
    Rule("opset", "The opset is one that the parser takes, 9 to 24.", f"{_OPERATORS}, first paragraph", _opset),
    Rule(
        "standard-domain",
        "Every operator is of the standard ONNX domain.",
        'TensorRT documentation, "ONNX Opset Guide" (the operator list covers ai.onnx; others need a plugin)',
        _domain,
    ),
    Rule("supported-operator", "Every operator is in the parser's list.", _MATRIX, _operator),
    Rule(
        "no-integer-operator",
        "Integer products are written as Q/DQ around a float operator, never as integer operators.",
        f"{_MATRIX}: DynamicQuantizeLinear, MatMulInteger, QLinearMatMul, ConvInteger, QLinearConv",
        _integer_operator,
    ),
    Rule(
        "operator-restriction",
        "An operator keeps the restriction in its row.",
        f"{_MATRIX}, Restrictions",
        _restriction,
    ),
    Rule(
        "operator-type",
        "The first input of an operator has a type of its row.",
        f"{_MATRIX}, Supported Types",
        _operator_type,
    ),
    Rule(
        "data-type",
        "No tensor is DOUBLE or of a type that TensorRT lacks; UINT8 only as network input or output.",
        f"{_OPERATORS}, notes on DOUBLE and UINT8 above the matrix",
        _data_type,
    ),
    Rule(
        "rank",
        "No tensor has more than 8 dimensions.",
        "TensorRT API, class Dims: MAX_DIMS",
        _rank,
    ),
    Rule(
        "data-dependent-output",
        "No output's shape depends on data (it would need an IOutputAllocator).",
        'TensorRT documentation, "Working with Dynamic Shapes", Dynamically Shaped Output',
        _data_dependent_output,
    ),
    Rule(
        "quantize-opset",
        "16-bit scales need opset 19, blocks opset 21.",
        "ONNX, Changelog.md: QuantizeLinear-19, QuantizeLinear-21, DequantizeLinear-19, DequantizeLinear-21",
        _quantize_opset,
    ),
)
