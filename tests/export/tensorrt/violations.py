"""Hand-made violations of every rule: a valid model, and changes of its text that break one rule and no other."""

from typing import NamedTuple

from tests.export.tensorrt.onnx_text import OUTLIERS, PLAIN, changed, in_bfloat16, in_float16


class Broken(NamedTuple):
    """A model that breaks `rule`, in the way that `name` says."""

    rule: str
    name: str
    text: str


FLOAT16 = in_float16(PLAIN)
QUANTIZE = "codes = QuantizeLinear (normalized, scale, zero)"
DEQUANTIZE = "activation = DequantizeLinear (codes, scale, zero)"
WEIGHT = "dequantized = DequantizeLinear <axis = 1> (weight, weight_scale)"
PRODUCT = "product = MatMul (activation, dequantized)"
RESULT = "y = Mul (product, row)"
CODES = "int8[4, 3] weight = {127, -3, 50, 4, 127, -6, 7, 80, 127, -10, 11, 12}, "
SCALES = "float[3] weight_scale = {0.5, 0.25, 0.125}"


def broken(rule: str, name: str, text: str, *changes: tuple[str, str]) -> Broken:
    return Broken(rule, name, changed(text, *changes))


def through(name: str, cast: int) -> tuple[str, str]:
    """The product passes through another type on its way."""
    return RESULT, f"{name} = Cast <to = {cast}> (product)\n    back = Cast <to = 1> ({name})\n    y = Mul (back, row)"


NETWORK = [
    broken("opset", "too new", PLAIN, ("21]", "25]")),
    broken(
        "opset", "too old", '<ir_version: 4, opset_import: ["" : 8]> old (float[2] x) => (float[2] y) { y = Abs (x) }'
    ),
    broken(
        "standard-domain",
        "ONNX Runtime's own operator",
        PLAIN,
        ('"" : 21', '"" : 21, "com.microsoft" : 1'),
        (RESULT, "y = com.microsoft.BiasGelu (product, weight_scale)"),
    ),
    broken(
        "supported-operator",
        "Compress",
        OUTLIERS,
        ("int64[1] columns = {2}", "bool[4] columns = {0, 0, 1, 0}"),
        ("Gather <axis = 1>", "Compress <axis = 1>"),
    ),
    broken(
        "no-integer-operator",
        "dynamic quantization",
        PLAIN,
        (QUANTIZE, "codes, scales, zeros = DynamicQuantizeLinear (normalized)"),
        (DEQUANTIZE, ""),
        (WEIGHT, ""),
        (PRODUCT, "product = Mul (integers, scales)"),
        (
            "product = Mul",
            "sums = MatMulInteger (codes, weight, zeros)\n    integers = Cast <to = 1> (sums)\n    product = Mul",
        ),
    ),
    broken(
        "no-integer-operator",
        "MatMulInteger on the codes",
        PLAIN,
        (DEQUANTIZE, ""),
        (WEIGHT, "sums = MatMulInteger (codes, weight)"),
        (PRODUCT, "product = Cast <to = 1> (sums)"),
    ),
    broken(
        "operator-restriction",
        "axes known at run time only",
        PLAIN,
        ("int64[1] last = {-1}, ", ""),
        ("4] x)", "4] x, int64[1] last)"),
    ),
    broken(
        "operator-restriction",
        "unsorted TopK",
        PLAIN,
        ("largest = ReduceMax <keepdims = 1>", "largest, places = TopK <sorted = 0>"),
        ("last = {-1}", "last = {1}"),
    ),
    broken(
        "operator-type",
        "Clip of int64",
        OUTLIERS,
        ("int64[1] last", "int64 first = {0}, int64[1] last"),
        (
            "outliers = Gather <axis = 1> (x, columns)",
            "clipped = Clip (columns, first)\n    outliers = Gather <axis = 1> (x, clipped)",
        ),
    ),
    broken(
        "operator-type",
        "NonZero of bool",
        PLAIN,
        (RESULT, f"{RESULT}\n    over = IsNaN (x)\n    places = NonZero (over)"),
    ),
    broken("data-type", "double", PLAIN, through("double_precision", 11)),
    broken("data-type", "uint8 inside", PLAIN, through("byte", 2)),
    broken("data-type", "int16", PLAIN, through("short", 5)),
    broken(
        "rank",
        "nine dimensions",
        PLAIN,
        ("int64[1] last", "int64[9] nine = {-1, 1, 1, 1, 1, 1, 1, 1, 3}, int64[2] two = {-1, 3}, int64[1] last"),
        (RESULT, "deep = Reshape (product, nine)\n    flat = Reshape (deep, two)\n    y = Mul (flat, row)"),
    ),
    broken(
        "data-dependent-output",
        "places of what is not zero",
        PLAIN,
        ("3] y)", "3] y, int64[2, count] places)"),
        (RESULT, f"{RESULT}\n    places = NonZero (x)"),
    ),
    broken(
        "quantize-opset",
        "a float16 scale at opset 17",
        PLAIN,
        ("21]", "17]"),
        ("int64[1] last = {-1}, ", ""),
        ("<keepdims = 1> (size, last)", "<keepdims = 1, axes = [-1]> (size)"),
        ("float scale = {0.007874016}", "float16 scale = {8200}"),
    ),
]

SCALE = [
    broken(
        "scale-constant",
        "computed from the activation",
        PLAIN,
        ("float scale = {0.007874016}, ", ""),
        (QUANTIZE, f"scale = ReduceMax <keepdims = 0> (row)\n    {QUANTIZE}"),
    ),
    broken("scale-positive", "zero in one channel", PLAIN, ("{0.5, 0.25, 0.125}", "{0.5, 0, 0.125}")),
    broken("scale-positive", "negative", PLAIN, ("{0.007874016}", "{-0.007874016}")),
    broken(
        "activation-scale",
        "one for each feature",
        PLAIN,
        ("float scale = {0.007874016}, int8 zero = {0}", "float[4] scale = {1, 2, 3, 4}, int8[4] zero = {0, 0, 0, 0}"),
    ),
    broken("weight-scale", "one for the whole weight", PLAIN, (SCALES, "float weight_scale = {0.5}")),
    broken(
        "weight-scale",
        "along the inputs",
        PLAIN,
        ("<axis = 1>", "<axis = 0>"),
        (SCALES, "float[4] weight_scale = {1, 2, 3, 4}"),
    ),
    broken("weight-scale", "too few", PLAIN, (SCALES, "float[2] weight_scale = {0.5, 0.25}")),
    broken("zero-point", "asymmetric", PLAIN, ("zero = {0}", "zero = {3}")),
    broken("zero-point", "computed at run time", PLAIN, (", int8 zero = {0}", ""), ("4] x)", "4] x, int8 zero)")),
    broken("int8-codes", "uint8", PLAIN, ("int8 zero", "uint8 zero")),
    broken(
        "int8-codes",
        "uint8 for want of a zero point",
        PLAIN,
        ("(normalized, scale, zero)", "(normalized, scale)"),
        ("(codes, scale, zero)", "(codes, scale)"),
    ),
    broken("equal-scales", "another scale", PLAIN, ("(codes, scale, zero)", "(codes, tiny, zero)")),
]

PLACEMENT = [
    broken("constant-weight", "an input of the network", PLAIN, ("4] x)", "4] x, int8[4, 3] weight)"), (CODES, "")),
    broken(
        "codes-between-pairs",
        "transposed codes",
        PLAIN,
        ("int8[4, 3]", "int8[3, 4]"),
        (WEIGHT, "turned = Transpose (weight)\n    dequantized = DequantizeLinear <axis = 1> (turned, weight_scale)"),
    ),
    broken(
        "codes-between-pairs",
        "rows gathered from codes",
        OUTLIERS,
        ("MatMul (outliers, outlier_weight)", "MatMul (outliers, wide)"),
        (
            "outliers = ",
            "rows_taken = Gather (weight, columns)\n    wide = Cast <to = 1> (rows_taken)\n    outliers = ",
        ),
    ),
    broken("pair", "codes as an output", PLAIN, ("3] y)", "3] y, int8[rows, 4] codes)")),
    broken(
        "pair", "nothing reads the codes", PLAIN, (RESULT, f"{RESULT}\n    unread = QuantizeLinear (y, scale, zero)")
    ),
    broken(
        "adjacent",
        "a reshaped activation",
        PLAIN,
        ("int64[1] last", "int64[2] shape = {-1, 4}, int64[1] last"),
        (PRODUCT, "flat = Reshape (activation, shape)\n    product = MatMul (flat, dequantized)"),
    ),
    broken(
        "adjacent",
        "a transposed weight",
        PLAIN,
        ("int8[4, 3]", "int8[3, 4]"),
        ("<axis = 1>", "<axis = 0>"),
        (PRODUCT, "turned = Transpose (dequantized)\n    product = MatMul (activation, turned)"),
    ),
    broken(
        "adjacent",
        "a cast",
        PLAIN,
        (PRODUCT, "cast = Cast <to = 1> (activation)\n    product = MatMul (cast, dequantized)"),
    ),
    broken(
        "both-inputs",
        "a float activation",
        PLAIN,
        (QUANTIZE, ""),
        (DEQUANTIZE, ""),
        ("MatMul (activation", "MatMul (normalized"),
    ),
    broken(
        "both-inputs",
        "a float weight",
        OUTLIERS,
        ("float tiny", "float[4, 3] whole = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float tiny"),
        (WEIGHT, ""),
        ("MatMul (activation, dequantized)", "MatMul (activation, whole)"),
    ),
]

FLOATS = [
    broken("float16-overflow", "a large weight", FLOAT16, ("{14336, 13312, 12288}", "{25552, 13312, 12288}")),
    broken("float16-underflow", "the guard of a division", FLOAT16, ("tiny = {5145}", "tiny = {0}")),
    broken("float16-underflow", "a subnormal weight scale", FLOAT16, ("{14336, 13312, 12288}", "{14336, 12, 12288}")),
    broken(
        "float16-underflow",
        "narrowed by a cast",
        PLAIN,
        (
            "row = Max (largest, tiny)",
            "narrow = Cast <to = 10> (tiny)\n    wide = Cast <to = 1> (narrow)\n    row = Max (largest, wide)",
        ),
    ),
    Broken("bfloat16-codes", "all in bfloat16", in_bfloat16(PLAIN)),
]

VIOLATIONS = [*NETWORK, *SCALE, *PLACEMENT, *FLOATS]
