"""16-bit floats: what overflows, underflows or rounds twice in them."""

from collections.abc import Iterator

from int8pass.export.tensorrt.onnx_graph import (
    DEQUANTIZE,
    GEMMS,
    QUANTIZE,
    OnnxGraph,
    behind_movers,
    dtype,
    initializer,
    input_of,
    numbers,
    producer,
)
from int8pass.export.tensorrt.rule import Rule, Violation
from int8pass.export.tensorrt.rules.scales import output_axis

FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-14  # the smallest normal float16
_LARGEST_CODE = 128  # |code| of a QuantizeLinear, which clamps to [-128, 127]
_ROWS = 1024
_BINARY16 = "IEEE 754, binary16"


def _overflow(graph: OnnxGraph) -> Iterator[Violation]:
    for gemm in graph.of_type(*GEMMS):
        if dtype(gemm.outputs[0]) == "FLOAT16":
            for index in (0, 1):
                bound = _product_bound(gemm, index)
                if bound is not None and bound > FLOAT16_MAX:
                    yield Violation(gemm, f"its float16 output can reach {bound:.3g}; float16 ends at {FLOAT16_MAX:g}")


def _product_bound(gemm, weight_index: int) -> float | None:
    """The largest |output|, 128 * s_x * sum over k of |W_q| * s_w; None unless Q/DQ says what W and s_x are."""
    import numpy

    weight, activation = (producer(input_of(gemm, index), DEQUANTIZE) for index in (weight_index, 1 - weight_index))
    codes = initializer(weight.inputs[0]) if weight is not None else None
    if codes is None or activation is None or initializer(activation.inputs[0]) is not None:
        return None
    weight_scale, scale = numbers(input_of(weight, 1)), numbers(input_of(activation, 1))
    if weight_scale is None or scale is None:
        return None
    channels = output_axis(gemm, weight_index, len(codes.shape))
    if len(codes.shape) > 2 and gemm.op_type == "MatMul":
        return None  # a batch of weights
    table = numpy.moveaxis(codes.numpy(), channels, 0).reshape(codes.shape[channels], -1)
    blocks = range(0, len(table), _ROWS)  # so that no copy of the whole weight is made
    sums = numpy.concatenate([numpy.abs(table[row : row + _ROWS].astype("int32")).sum(axis=1) for row in blocks])
    if weight_scale.size not in (1, len(sums)):
        return None
    return float(_LARGEST_CODE * scale.max() * (sums * weight_scale.ravel()).max())


def _underflow(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.nodes:
        for index, value in enumerate(node.inputs):
            if dtype(value) == "FLOAT16" and initializer(value) is not None:
                yield from _small_constant(node, index, value)
        if node.op_type == "Cast" and dtype(node.outputs[0]) == "FLOAT16":
            yield from _small_constant(node, None, node.inputs[0])


def _small_constant(node, index: int | None, value) -> Iterator[Violation]:
    """index: of a float16 constant; None: a wider one that becomes float16."""
    if initializer(value) is None or (initializer(value).size > 1 and (node.op_type, index) not in _SCALES):
        return
    constant = abs(numbers(value))
    small = constant[(constant > 0) & (constant < FLOAT16_TINY)]
    if small.size:
        yield Violation(node, f"{value.name!r} holds {small.min():.3g}, below {FLOAT16_TINY:.3g}")
    elif index is not None and node.op_type in ("Add", "Clip", "Max") and not constant.any() and _is_divisor(node):
        yield Violation(node, f"{value.name!r} is 0 in float16, so it guards no division")


_SCALES = {(QUANTIZE, 1), (DEQUANTIZE, 1)}


def _is_divisor(node) -> bool:
    """Whether something divides by a node's result, itself or its root."""
    readers = list(node.outputs[0].uses())
    for use in readers:
        if use.node.op_type in ("Sqrt", "Cast"):
            readers.extend(use.node.outputs[0].uses())
    return any(use.node.op_type == "Reciprocal" or (use.node.op_type, use.idx) == ("Div", 1) for use in readers)


def _bfloat16(graph: OnnxGraph) -> Iterator[Violation]:
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        place = node.inputs[0] if node.op_type == QUANTIZE else input_of(node, 1)
        paired = node.op_type == DEQUANTIZE and behind_movers(node.inputs[0]) is not None
        if "BFLOAT16" in (dtype(place), dtype(input_of(node, 1))) and not paired:
            yield Violation(
                node, "bfloat16 has 8 significant bits, so codes above 64 round twice; cast to FLOAT before"
            )


FLOAT16_RULES = (
    Rule(
        "float16-overflow",
        "A float16 product stays within float16: 128 * s_x * sum |w| of a channel is at most 65504.",
        f'{_BINARY16}: largest finite number; TensorRT documentation, "Strongly Typed Networks": types are the file\'s',
        _overflow,
    ),
    Rule(
        "float16-underflow",
        "No float16 scale or constant is below 6.1e-05, and none that guards a division is 0.",
        f"{_BINARY16}: smallest normal number; onnx-tensorrt refuses a scale of 0",
        _underflow,
    ),
    Rule(
        "bfloat16-codes",
        "QuantizeLinear reads and DequantizeLinear scales in FLOAT or FLOAT16, not BFLOAT16.",
        "ONNX, Operators.md, QuantizeLinear, `precision`: x / y_scale is computed in the type of y_scale",
        _bfloat16,
    ),
)
