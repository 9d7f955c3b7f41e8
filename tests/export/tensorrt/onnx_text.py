"""Small ONNX models as text: row-normalised QDQ, with and without an outlier branch, and how to break them."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser

# y = x @ W for W [4, 3]: each row of x is divided by its largest |x|, quantized with the one scale 1/127, and the
# product multiplied by that largest |x| again.
PLAIN = """
<ir_version: 10, opset_import: ["" : 21]>
linear (float[rows, 4] x) => (float[rows, 3] y)
<
    int64[1] last = {-1}, float tiny = {1e-30}, float scale = {0.007874016}, int8 zero = {0},
    int8[4, 3] weight = {127, -3, 50, 4, 127, -6, 7, 80, 127, -10, 11, 12}, float[3] weight_scale = {0.5, 0.25, 0.125}
>
{
    size = Abs (x)
    largest = ReduceMax <keepdims = 1> (size, last)
    row = Max (largest, tiny)
    normalized = Div (x, row)
    codes = QuantizeLinear (normalized, scale, zero)
    activation = DequantizeLinear (codes, scale, zero)
    dequantized = DequantizeLinear <axis = 1> (weight, weight_scale)
    product = MatMul (activation, dequantized)
    y = Mul (product, row)
}
"""


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text with each of `changes`, all of which must be found in it once."""
    for before, after in changes:
        assert text.count(before) == 1, f"{text.count(before)} times: {before}"
        text = text.replace(before, after)
    return text


# Column 2 of x holds outliers: zero in the int8 part, multiplied in float with its row of the weight.
OUTLIERS = changed(
    PLAIN,
    (
        "float tiny",
        "int64[1] columns = {2}, float[4] kept = {1, 1, 0, 1}, "
        "float[1, 3] outlier_weight = {3.5, 20, 15.875},\n    float tiny",
    ),
    ("size = Abs (x)", "inliers = Mul (x, kept)\n    size = Abs (inliers)"),
    ("Div (x, row)", "Div (inliers, row)"),
    (
        "y = Mul (product, row)",
        """scaled = Mul (product, row)
    outliers = Gather <axis = 1> (x, columns)
    outlier_product = MatMul (outliers, outlier_weight)
    y = Add (scaled, outlier_product)""",
    ),
)


def in_float16(text: str) -> str:
    """The model in float16; what guards its division is 0.001 there, as 1e-30 would be 0."""
    return _in_16_bits(changed(text, ("{1e-30}", "{0.001}")), "float16")


def in_bfloat16(text: str) -> str:
    """The model in bfloat16."""
    return _in_16_bits(text, "bfloat16")


def _in_16_bits(text: str, name: str) -> str:
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[name]

    def literal(match: re.Match) -> str:
        shape, constant, numbers = match.groups()
        bits = (str(np.asarray(number, np.float32).astype(dtype).view(np.uint16)) for number in numbers.split(","))
        return f"{name}{shape or ''} {constant} = {{{', '.join(bits)}}}"  # the syntax wants bits of 16-bit floats

    return re.sub(r"float(\[[\d, ]+\])? (\w+) = \{(.*?)\}", literal, text).replace(" (float[", f" ({name}[")


def write(text: str, path: Path) -> Path:
    """Write a model to a file; its nodes are named after their first outputs."""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, path)
    return path
