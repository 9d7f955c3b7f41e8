"""A Linear in int8pass ops: one text for the rewrite, which inserts nodes, and for Int8Linear, which calls.

Every part of it is looked up by what a Scheme declares.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from int8pass import ops
from int8pass.quantization.scheme import ActivationQuantization, Scheme, WeightQuantization
from int8pass.quantization.static import StaticScale

aten = torch.ops.aten

_SYMMETRIC = {
    "per_token": (ops.scale_per_token, ops.quantize_per_token),
    "per_tensor": (ops.scale_per_tensor, ops.quantize_per_tensor),
}


def call_op(op: Callable[..., Any], *arguments: Any) -> Any:
    """The `call` that computes at once, on tensors."""
    return op(*arguments)


class QuantizedActivation(NamedTuple):
    """codes: int8[..., K]; scale: float32[...] or, per tensor, float32[]; zero_point: int32 like it, None for 0."""

    codes: Any
    scale: Any
    zero_point: Any = None


def outlier_mask(
    call: Callable[..., Any], x: Any, threshold: float, outliers: str, columns: tuple[int, ...] | None
) -> Any:
    """Which features of x leave the int8 part, bool[K] or bool[..., K]; None where there is no outlier branch."""
    if threshold and columns is None:
        return call(ops.outlier_mask, x, threshold, outliers)
    return call(ops.column_mask, x, columns) if threshold and columns else None


def quantize_activation(
    call: Callable[..., Any],
    form: ActivationQuantization,
    x: Any,
    mask: Any = None,
    static: StaticScale | None = None,
) -> QuantizedActivation:
    """Quantize x [..., K] through `call(op, *arguments)`.

    mask: bool[K] or bool[..., K], True for outliers, or None. static: a scale and zero point known beforehand, whatever
    the granularity.
    """
    if static is not None:
        codes = call(ops.quantize_static, x, *static, mask)
        zero_point = None if form.symmetric else call(ops.static_zero_point, x, static.zero_point)
        return QuantizedActivation(codes, call(ops.static_scale, x, static.scale, mask), zero_point)
    if form.symmetric:
        scale_op, quantize_op = _SYMMETRIC[form.granularity]
        scale = call(scale_op, x, mask)
        return QuantizedActivation(call(quantize_op, x, scale, mask), scale)
    scale = call(ops.asymmetric_scale, x, mask, form.granularity)
    zero_point = call(ops.zero_point, x, scale, mask, form.granularity)
    return QuantizedActivation(call(ops.quantize_asymmetric, x, scale, zero_point, mask), scale, zero_point)


def multiply(
    call: Callable[..., Any],
    form: WeightQuantization,
    quantized: QuantizedActivation,
    weight_part: Callable[[str], Any],
) -> Any:
    """The product of codes, int32[..., N], or of groups of them, with their weight scales and zero point float32."""
    if form.group_size is None:
        return call(ops.int8_mm, quantized.codes, weight_part("codes"))
    code_sums = None if quantized.zero_point is None else weight_part("code_sums")
    weight = (weight_part("codes"), weight_part("scale"), code_sums)
    return call(ops.grouped_int8_mm, quantized.codes, quantized.zero_point, *weight)


def dequantize(
    call: Callable[..., Any],
    form: WeightQuantization,
    sums: Any,
    quantized: QuantizedActivation,
    weight_part: Callable[[str], Any],
    outlier: Any,
    bias: Any,
    dtype: torch.dtype,
) -> Any:
    """What a product of codes stands for, plus the outlier part, float32[..., N] or None, and the bias, in `dtype`."""
    if form.group_size is not None:
        return call(ops.dequantize_grouped, sums, quantized.scale, outlier, bias, dtype)
    if quantized.zero_point is None:
        return call(ops.dequantize, sums, quantized.scale, weight_part("scale"), outlier, bias, dtype)
    factors = (quantized.scale, quantized.zero_point, weight_part("scale"), weight_part("code_sums"))
    return call(ops.dequantize_asymmetric, sums, *factors, outlier, bias, dtype)


def int8_mixed_linear(
    call: Callable[..., Any],
    x: Any,
    weight_part: Callable[[str], Any],
    bias: Any = None,
    *,
    scheme: Scheme,
    threshold: float,
    outliers: str,
    dtype: torch.dtype,
    weight: Any = None,
    differentiable: bool = False,
    columns: tuple[int, ...] | None = None,
    static: StaticScale | None = None,
) -> Any:
    """Compose x @ W.T + bias (LLM.int8(), equation 8) through `call(op, *arguments)`, on tensors or on graph nodes.

    x: [..., K]; weight_part: gives a field of the QuantizedWeight by name ("codes", "scale", "code_sums"); bias: [N] or
    None; weight: [N, K] floating for the outlier branch, or None to dequantize its columns. columns: outlier features
    known beforehand, in place of those that x has, with their weights in 16 bits; an empty tuple, like threshold 0,
    means no outlier branch. static: the scale and zero point of x, known beforehand too. Result: [..., N] in `dtype`.
    With `differentiable` the gradient of x passes through the dequantized weight, and that of bias by plain operations.
    """
    source = call(aten.detach.default, x) if differentiable else x
    mask = outlier_mask(call, source, threshold, outliers, columns)
    codes, scale = weight_part("codes"), weight_part("scale")
    quantized = quantize_activation(call, scheme.activations, source, mask, static)
    sums = multiply(call, scheme.weights, quantized, weight_part)
    outlier = None
    if mask is not None:
        in_16_bit = weight is not None and columns is not None
        weights = (codes, scale) if weight is None else (weight, scale) if in_16_bit else (weight,)
        outlier = call(ops.outlier_mm, source, mask, *weights)
    if not differentiable:
        return dequantize(call, scheme.weights, sums, quantized, weight_part, outlier, bias, dtype)
    y = dequantize(call, scheme.weights, sums, quantized, weight_part, outlier, None, torch.float32)
    y = call(ops.straight_through, y, x, codes, scale)
    y = y if bias is None else call(aten.add.Tensor, y, bias)
    return call(aten.to.dtype, y, dtype)
