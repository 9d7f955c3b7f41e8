"""Scales, zero points and types of QuantizeLinear and DequantizeLinear."""

from collections.abc import Iterator

from int8pass.export.tensorrt.onnx_graph import (
    DEQUANTIZE,
    GEMMS,
    QUANTIZE,
    OnnxGraph,
    attribute,
    dtype,
    initializer,
    input_of,
    is_constant,
    is_weight,
    numbers,
    producer,
)
from int8pass.export.tensorrt.rule import Rule, Violation

_LAYERS = "TensorRT API, IQuantizeLayer and IDequantizeLayer"
_PLACEMENT = 'TensorRT documentation, "Explicit Quantization", Q/DQ Layer-Placement Recommendations'


def _scale_constant(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        if not is_constant(input_of(node, 1)):
            yield Violation(node, f"the scale {node.inputs[1].name!r} is computed at run time")


def _scale_positive(graph: OnnxGraph) -> Iterator[Violation]:
    import numpy

    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        scale = numbers(input_of(node, 1))
        wrong = 0 if scale is None else int((~numpy.isfinite(scale) | (scale <= 0)).sum())
        if wrong:
            yield Violation(node, f"{wrong} of {scale.size} scales are zero, negative, infinite or NaN")


def _activation_scale(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        scale = initializer(input_of(node, 1))
        paired = node.op_type == QUANTIZE or producer(node.inputs[0], QUANTIZE) is not None
        if scale is not None and scale.size != 1 and paired and not is_weight(node):
            yield Violation(node, f"an activation with {scale.size} scales; it takes one number for the whole tensor")


def _weight_scale(graph: OnnxGraph) -> Iterator[Violation]:
    for gemm in graph.of_type(*GEMMS):
        for index, value in enumerate(gemm.inputs[:2]):
            node = producer(value, DEQUANTIZE)
            if node is not None and is_weight(node):
                yield from _one_weight(node, gemm, index)


def _one_weight(node, gemm, index: int) -> Iterator[Violation]:
    data, scale = node.inputs[0], initializer(input_of(node, 1))
    if scale is None or data.shape is None:
        return
    rank = len(data.shape)
    channels = output_axis(gemm, index, rank)
    axis = attribute(node, "axis", 1)
    axis += rank if axis < 0 else 0
    if scale.size == 1 and data.shape[channels] != 1:
        yield Violation(node, f"one scale for the whole weight of {gemm.name or gemm.op_type!r}; give one a channel")
    elif scale.size > 1 and len(scale.shape) != 1:
        yield Violation(node, f"scales of shape {list(scale.shape)}: blocks, which int8 does not have")
    elif scale.size > 1 and axis != channels:
        yield Violation(node, f"scales along axis {axis}; the output channels of {gemm.op_type} are axis {channels}")
    elif scale.size > 1 and scale.size != data.shape[channels]:
        yield Violation(node, f"{scale.size} scales for {data.shape[channels]} output channels")


def output_axis(gemm, index: int, rank: int) -> int:
    """The axis of the output channels in input 0 or 1 of a GEMM or convolution."""
    if gemm.op_type == "MatMul":
        return rank - 1 if index == 1 else rank - 2
    if gemm.op_type == "Gemm":
        transposed = attribute(gemm, "transB" if index == 1 else "transA", 0)
        return (0 if transposed else 1) if index == 1 else (1 if transposed else 0)
    return 0 if gemm.op_type == "Conv" else 1


def _zero_point(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        value = input_of(node, 2)
        if value is None:
            continue
        zero_point = numbers(value)
        if zero_point is None:
            yield Violation(node, f"the zero point {value.name!r} is computed at run time")
        elif zero_point.any():
            yield Violation(node, "the zero point is not zero: TensorRT's quantization is symmetric")


def _int8_codes(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        codes = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
        repeated = node.op_type == DEQUANTIZE and producer(codes, QUANTIZE) is not None
        if dtype(codes) != "INT8" and not repeated:
            hint = ", which is ONNX's default without a zero point" if input_of(node, 2) is None else ""
            yield Violation(node, f"the codes are {dtype(codes) or 'of unknown type'}{hint}; they must be INT8")


def _equal_scales(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(DEQUANTIZE):
        source = producer(node.inputs[0], QUANTIZE)
        if source is None:
            continue
        first, second = numbers(input_of(source, 1)), numbers(input_of(node, 1))
        if first is None or second is None:
            continue
        same_axis = first.size == 1 or attribute(source, "axis", 1) == attribute(node, "axis", 1)
        if first.size != second.size or (first.ravel() != second.ravel()).any() or not same_axis:
            yield Violation(node, f"its scale or axis is not that of {source.name or 'its QuantizeLinear'!r}")


SCALE_RULES = (
    Rule(
        "scale-constant",
        "Every scale is known when the engine is built.",
        'TensorRT Operators documentation, Quantize and Dequantize: "scale ... must be a build-time constant"',
        _scale_constant,
    ),
    Rule(
        "scale-positive",
        "Every scale is finite and greater than zero.",
        f'{_LAYERS}: "All scale coefficients must have strictly positive values"',
        _scale_positive,
    ),
    Rule(
        "activation-scale",
        "An activation has one scale for the whole tensor.",
        f"{_PLACEMENT}: per-tensor for activations",
        _activation_scale,
    ),
    Rule(
        "weight-scale",
        "A weight has one scale for each output channel, along that axis.",
        f"{_PLACEMENT}: per-channel for weights; {_LAYERS}: scale size equals the size of the quantization axis",
        _weight_scale,
    ),
    Rule(
        "zero-point",
        "Zero points are constant zeros, or left out.",
        f'{_LAYERS}: "only symmetric quantization is supported"',
        _zero_point,
    ),
    Rule(
        "int8-codes",
        "Quantized tensors are INT8.",
        "onnx-tensorrt, QuantizeLinear and DequantizeLinear importers: UINT8 codes are refused, or read as INT8",
        _int8_codes,
    ),
    Rule(
        "equal-scales",
        "A DequantizeLinear has the scale and axis of the QuantizeLinear before it.",
        'TensorRT documentation, "Explicit Quantization", ONNX Support: Q and DQ are exported as a pair',
        _equal_scales,
    ),
)
