"""`TARGETS`: which form of a Linear each runtime takes, as data."""

import difflib
from dataclasses import dataclass

from int8pass.errors import ConfigError
from int8pass.quantization.absmax import INT8_MAX


@dataclass(frozen=True)
class Target:
    """A runtime that reads the file.

    step: the activation scale of QuantizeLinear. Rows are divided by max|x| / (127 * step) first, so that their codes
    are those of LLM.int8(): with step 1 bit for bit, with step 1/127 the products stay within the sum of |w|.
    unsigned: activation codes are uint8 around 128 in place of int8 around 0.
    integer_product: MatMulInteger on the codes in place of a MatMul between DequantizeLinears.
    multiple: what K and N of the int8 product are padded to a multiple of.
    not_yet_run: True until a file was run on the real thing.
    onnxruntime: the file is for ONNX Runtime.
    runtime_columns: whether it can find outlier columns in each call.
    rules: whose rules `int8pass check` holds each written file to.
    """

    name: str
    step: float
    unsigned: bool = False
    integer_product: bool = False
    multiple: int = 1
    onnxruntime: bool = True
    not_yet_run: bool = False
    runtime_columns: bool = True
    rules: str | None = None


TARGETS = {
    target.name: target
    for target in (
        # Fuses DequantizeLinear, MatMul to MatMulIntegerToFloat: with int8 activations on x86 only those that one
        # Linear reads alone, and a float16 region not at all.
        Target("onnxruntime-cpu", step=1.0, unsigned=True),
        # Runs DequantizeLinear, MatMul in float; its integer product takes int8 by int8 only, in multiples of 32.
        Target("onnxruntime-cuda", step=1.0, integer_product=True, multiple=32, not_yet_run=True),
        # Explicit quantization: one scalar scale, which in float16 must keep the product from overflowing.
        # Nothing but DequantizeLinear reads int8 weights, so no column can be taken from them in a call.
        Target(
            "tensorrt",
            step=1.0 / INT8_MAX,
            onnxruntime=False,
            not_yet_run=True,
            runtime_columns=False,
            rules="tensorrt",
        ),
    )
}


def target_named(name: str) -> Target:
    """The target of that name. Raises ConfigError naming the nearest one."""
    if name not in TARGETS:
        nearest = difflib.get_close_matches(str(name), TARGETS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown target {name!r}; did you mean {nearest!r}? The targets are: {', '.join(TARGETS)}")
    return TARGETS[name]
