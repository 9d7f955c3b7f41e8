"""A Linear in int8pass ops: one text for the rewrite, which inserts nodes, and for Int8Linear, which calls."""

from collections.abc import Callable
from typing import Any

import torch

from int8pass import ops

aten = torch.ops.aten


def int8_mixed_linear(
    call: Callable[..., Any],
    x: Any,
    codes: Any,
    scale: Any,
    bias: Any = None,
    *,
    threshold: float,
    outliers: str,
    dtype: torch.dtype,
    weight: Any = None,
    differentiable: bool = False,
    columns: tuple[int, ...] | None = None,
) -> Any:
    """Compose x @ W.T + bias (LLM.int8(), equation 8) through `call(op, *arguments)`, on tensors or on graph nodes.

    x: [..., K]; codes: int8[N, K]; scale: float32[N]; bias: [N] or None; weight: [N, K] floating for the outlier
    branch, or None to dequantize its columns. columns: outlier features known beforehand, in place of those that x has,
    with their weights in 16 bits; an empty tuple, like threshold 0, means no outlier branch. Result: [..., N] in
    `dtype`. With `differentiable` the gradient of x passes through the dequantized weight, and that of bias by plain
    operations.
    """
    source = call(aten.detach.default, x) if differentiable else x
    mask = None
    if threshold and columns is None:
        mask = call(ops.outlier_mask, source, threshold, outliers)
    elif threshold and columns:
        mask = call(ops.column_mask, source, columns)
    x_scale = call(ops.scale_per_token, source, mask)
    x_codes = call(ops.quantize_per_token, source, x_scale, mask)
    sums = call(ops.int8_mm, x_codes, codes)
    outlier = None
    if mask is not None:
        in_16_bit = weight is not None and columns is not None
        weights = (codes, scale) if weight is None else (weight, scale) if in_16_bit else (weight,)
        outlier = call(ops.outlier_mm, source, mask, *weights)
    if not differentiable:
        return call(ops.dequantize, sums, x_scale, scale, outlier, bias, dtype)
    y = call(ops.dequantize, sums, x_scale, scale, outlier, None, torch.float32)
    y = call(ops.straight_through, y, x, codes, scale)
    y = y if bias is None else call(aten.add.Tensor, y, bias)
    return call(aten.to.dtype, y, dtype)
