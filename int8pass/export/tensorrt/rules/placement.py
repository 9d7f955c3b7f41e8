"""Where QuantizeLinear and DequantizeLinear stand, so that TensorRT fuses them into an int8 product."""

from collections.abc import Iterator

from int8pass.export.tensorrt.onnx_graph import (
    DEFAULT_DOMAINS,
    DEQUANTIZE,
    GEMMS,
    MOVERS,
    QUANTIZE,
    OnnxGraph,
    behind_movers,
    dtype,
    is_constant,
    producer,
)
from int8pass.export.tensorrt.rule import Rule, Violation
from int8pass.export.tensorrt.rules.network import INTEGER_OPERATORS

_EXPLICIT = 'TensorRT documentation, "Explicit Quantization"'


def _constant_weight(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(DEQUANTIZE):
        codes = node.inputs[0]
        if producer(codes) is None and not is_constant(codes):
            yield Violation(node, f"it reads {codes.name!r}, an input of the network, where an initializer must be")


def _codes_between_pairs(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.nodes:
        if node.domain in DEFAULT_DOMAINS and node.op_type not in (QUANTIZE, DEQUANTIZE, *INTEGER_OPERATORS):
            touched = [value.name for value in (*node.inputs, *node.outputs) if dtype(value) == "INT8"]
            if touched:
                yield Violation(node, f"{node.op_type} on the INT8 tensor {touched[0]!r}")


def _pair(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(QUANTIZE):
        codes = node.outputs[0]
        if codes.is_graph_output():
            yield Violation(node, f"its codes are the output {codes.name!r} of the network")
        elif not codes.consumers():
            yield Violation(node, "no DequantizeLinear reads its codes")


def _adjacent(graph: OnnxGraph) -> Iterator[Violation]:
    for gemm in graph.of_type(*GEMMS):
        for value in gemm.inputs[:2]:
            mover = producer(value, *MOVERS)
            source = behind_movers(value) if mover is not None else None
            if source is not None and source.op_type == DEQUANTIZE:
                name = gemm.name or gemm.op_type
                yield Violation(mover, f"{mover.op_type} stands between a DequantizeLinear and {name!r}")


def _both_inputs(graph: OnnxGraph) -> Iterator[Violation]:
    for gemm in graph.of_type(*GEMMS):
        sources = [behind_movers(value) for value in gemm.inputs[:2]]
        quantized = [source is not None and source.op_type == DEQUANTIZE for source in sources]
        if any(quantized) and not all(quantized):
            missing = gemm.inputs[quantized.index(False)].name
            yield Violation(gemm, f"{missing!r} is not quantized and the other input is: the product runs in float")


PLACEMENT_RULES = (
    Rule(
        "constant-weight",
        "A DequantizeLinear reads a QuantizeLinear, or a constant int8 initializer.",
        f"{_EXPLICIT}, Quantized Weights: pre-quantized weights are constants, then IDequantizeLayer",
        _constant_weight,
    ),
    Rule(
        "codes-between-pairs",
        "No operator but QuantizeLinear makes int8, none but DequantizeLinear reads it.",
        "onnx-tensorrt docs/operators.md (TensorRT 10.15), note on Quantized Types above the matrix",
        _codes_between_pairs,
    ),
    Rule(
        "pair",
        "Each QuantizeLinear is followed by a DequantizeLinear.",
        f"{_EXPLICIT}, ONNX Support: each fake quantization is a pair of QuantizeLinear and DequantizeLinear",
        _pair,
    ),
    Rule(
        "adjacent",
        "Nothing (reshape, transpose, cast) stands between a DequantizeLinear and its product.",
        f'{_EXPLICIT}, Quantized Weights: "an IDequantizeLayer is required between the weights and the linear '
        'operator that uses them"; Q/DQ Processing: DQ is fused with the layer that it feeds',
        _adjacent,
    ),
    Rule(
        "both-inputs",
        "Where one input of a product is dequantized, so is the other.",
        f"{_EXPLICIT}, Q/DQ Layer-Placement Recommendations: quantize all inputs of weighted operations; "
        "weight-only quantization is INT4's",
        _both_inputs,
    ),
)
