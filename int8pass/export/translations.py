"""What each int8pass op is in ONNX: standard operators of opset 18, for `custom_translation_table` of torch.onnx.

Row-normalised QDQ. A row's unit u is max |x| / (127 * step) over its regular features. QuantizeLinear(x / u, step)
gives its codes; DequantizeLinear, MatMul with DequantizeLinear(W_q, per channel), times u gives the product. The scale
of QuantizeLinear is one static scalar, so that runtimes fuse the three to an integer product, yet each row has a scale
of its own. All of it is float32; Casts stand outside.

What ONNX leaves open: ReduceMax may hide NaN, and does in ONNX Runtime, so a row's NaN or infinity comes back by the
sum of its normalised features: u + 0 * sum(x / u). A row of zeros, or whose scale is subnormal, is divided by infinity:
all its codes are 0.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op

from int8pass import ops
from int8pass.export.targets import Target
from int8pass.quantization.absmax import INT8_MAX, SMALLEST_NORMAL
from int8pass.torch_private import OpOverload

_FEATURES = np.array([-1], dtype=np.int64)  # the axis of K


def translations(target: Target) -> dict[OpOverload, Callable]:
    """For each op that a file may hold, the function that writes it in ONNX operators for this target."""
    step = np.float32(target.step)
    largest = np.float32(INT8_MAX * target.step)
    smallest = np.float32(SMALLEST_NORMAL / target.step)
    zero_point = np.uint8(128) if target.unsigned else np.int8(0)

    def outlier_mask(x: ir.Value, threshold: float, outliers: str = "column") -> ir.Value:
        reached = op.GreaterOrEqual(op.Abs(_float32(x)), _constant(np.float32(threshold)))
        return (
            reached if outliers == "token" else _any_row(reached, len(x.shape))
        )  # any, not max: a NaN must not hide an outlier

    def column_mask(x: ir.Value, columns: Sequence[int]) -> ir.Value:
        mask = np.zeros(_size(x, -1), dtype=bool)
        mask[list(columns)] = True
        return _constant(mask)

    def scale_features(x: ir.Value, factor: ir.Value) -> ir.Value:
        return op.Mul(x, op.CastLike(factor, x))

    def normalised(x: ir.Value, mask: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """The unit of each row, [..., 1], and its regular features in that unit, [..., K]."""
        x = _float32(x)
        regular = x if mask is None else op.Where(mask, _constant(np.float32(0)), x)
        unit = op.Div(op.ReduceMax(op.Abs(regular), _constant(_FEATURES), keepdims=1), _constant(largest))
        is_normal = op.GreaterOrEqual(unit, _constant(smallest))
        return unit, op.Div(regular, op.Where(is_normal, unit, _constant(np.float32(np.inf))))

    def scale_per_token(x: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        unit, rows = normalised(x, mask)
        zero_or_nan = op.Mul(op.ReduceSum(rows, _constant(_FEATURES), keepdims=1), _constant(np.float32(0)))
        return op.Squeeze(op.Add(unit, zero_or_nan), _constant(_FEATURES))

    def quantize_per_token(x: ir.Value, scale: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        # the same expressions as those of `scale`, of which one copy stays in the file
        _, rows = normalised(x, mask)
        return op.QuantizeLinear(rows, _constant(step), _constant(zero_point))

    def pad_features(x: ir.Value, features: int) -> ir.Value:
        pads = _constant(np.array([0, features - _size(x, -1)], dtype=np.int64))
        return op.Pad(_float32(x), pads, _constant(np.float32(0)), _constant(_FEATURES))

    def scaled_int8_mm(
        x_q: ir.Value,
        x_scale: ir.Value,
        w_q: ir.Value,
        w_scale: ir.Value,
        outlier: ir.Value | None,
        bias: ir.Value | None,
        dtype: int,
    ) -> ir.Value:
        if target.integer_product:
            sums = _first_outputs(op.MatMulInteger(x_q, w_q), w_q, w_scale)
            product = op.Mul(op.Cast(sums, to=ir.DataType.FLOAT), w_scale)
        else:
            weight = op.DequantizeLinear(w_q, w_scale, axis=1)
            product = op.MatMul(op.DequantizeLinear(x_q, _constant(step), _constant(zero_point)), weight)
        y = op.Mul(product, op.Unsqueeze(x_scale, _constant(_FEATURES)))
        rest = [part for part in (outlier, None if bias is None else _float32(bias)) if part is not None]
        if rest:
            y = op.Add(y, rest[0] if len(rest) == 1 else op.Add(*rest))
        return y if dtype == ir.DataType.FLOAT else op.Cast(y, to=dtype)

    def gathered_mm(x: ir.Value, mask: ir.Value, w_q: ir.Value, w_scale: ir.Value) -> ir.Value:
        columns = op.Reshape(op.NonZero(_any_row(mask, len(mask.shape))), _constant(_FEATURES))
        features = _float32(op.Gather(x, columns, axis=-1), x.dtype)
        if len(mask.shape) > 1:
            features = op.Where(op.Gather(mask, columns, axis=-1), features, _constant(np.float32(0)))
        rows = _first_outputs(op.Gather(w_q, columns, axis=0), w_q, w_scale)
        weight = op.Mul(op.Cast(rows, to=ir.DataType.FLOAT), w_scale)
        return op.MatMul(features, weight)

    def column_mm(
        x: ir.Value,
        columns: Sequence[int],
        w: ir.Value,
        w_scale: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        positions = _constant(np.array(columns, dtype=np.int64))
        features, weight = _float32(op.Gather(x, positions, axis=-1), x.dtype), _float32(w)
        weight = weight if w_scale is None else op.Mul(weight, w_scale)
        if bias is not None:  # a row of the weight, for a feature that is 1: one pass over the result less
            pads, one = _constant(np.array([0, 1], dtype=np.int64)), _constant(np.float32(1))
            features = op.Pad(features, pads, one, _constant(_FEATURES))
            weight = op.Concat(weight, op.Unsqueeze(_float32(bias), _constant(np.array([0], dtype=np.int64))), axis=0)
        return op.MatMul(features, weight)

    return {
        ops.outlier_mask: outlier_mask,
        ops.column_mask: column_mask,
        ops.scale_features: scale_features,
        ops.scale_per_token: scale_per_token,
        ops.quantize_per_token: quantize_per_token,
        ops.pad_features: pad_features,
        ops.scaled_int8_mm: scaled_int8_mm,
        ops.gathered_mm: gathered_mm,
        ops.column_mm: column_mm,
    }


def _constant(value: np.ndarray | np.generic) -> ir.Value:
    return op.Constant(value=ir.tensor(np.asarray(value)))


def _float32(x: ir.Value, dtype: ir.DataType | None = None) -> ir.Value:
    """x in float32. dtype: that of x, where x is a value that this file made, which has none yet."""
    return x if (dtype or x.dtype) == ir.DataType.FLOAT else op.Cast(x, to=ir.DataType.FLOAT)


def _size(x: ir.Value, dimension: int) -> int:
    size = x.shape[dimension]  # an int, or a symbol that torch.export found to be one: "32"
    return size if isinstance(size, int) else int(size.value)


def _first_outputs(x: ir.Value, w_q: ir.Value, w_scale: ir.Value) -> ir.Value:
    """x[..., N]: of what was computed from w_q, without the outputs that it is padded with."""
    outputs = _size(w_scale, 0)
    if _size(w_q, 1) == outputs:
        return x
    return op.Slice(x, _constant(np.array([0])), _constant(np.array([outputs])), _constant(_FEATURES))


def _any_row(mask: ir.Value, rank: int) -> ir.Value:
    """bool[K]: the features at which any row of a bool[..., K] is true."""
    if rank == 1:
        return mask
    leading = _constant(np.arange(rank - 1, dtype=np.int64))
    count = op.ReduceSum(op.Cast(mask, to=ir.DataType.INT32), leading, keepdims=0)
    return op.Greater(count, _constant(np.int32(0)))
