"""What each int8pass op is in TensorRT's layers: a plugin, or natively row-normalised QDQ, as in ONNX files.

    r       = max |x| of each row, outliers left out                 [..., 1]
    q       = Quantize(x / r, scale 1/127)                           [..., K] int8
    product = MatrixMultiply(Dequantize(q, 1/127), Dequantize(W_q, one scale for each column))
    y       = product * r + outlier part + bias

All of the latter is float32, with casts outside. Sources: TensorRT documentation, "Explicit Quantization"; the Python
API of INetworkDefinition. Not yet run on a GPU.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorrt as trt
import torch
from torch import Tensor
from torch_tensorrt import dtype as trt_dtype
from torch_tensorrt.dynamo.conversion import ConversionContext
from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor
from torch_tensorrt.dynamo.utils import extract_var_range_info

from int8pass import ops
from int8pass.graph import value_of
from int8pass.kernels.cuda import fused
from int8pass.lower.tensorrt import plugin
from int8pass.quantization.absmax import INT8_MAX, SMALLEST_NORMAL
from int8pass.torch_private import OpOverload, without_fake_tensors

STEP = 1.0 / INT8_MAX
_DIV, _PROD, _SUM, _LESS = (getattr(trt.ElementWiseOperation, name) for name in ("DIV", "PROD", "SUM", "LESS"))


class _Layers:
    """Adds layers to a network, under names that begin with that of the node."""

    def __init__(self, ctx: ConversionContext, name: str) -> None:
        self._ctx, self._net, self._name, self._count = ctx, ctx.net, name, 0

    def add(self, layer: Any) -> Any:
        """The output of a layer that was just added."""
        layer.name = self._next()
        return layer.get_output(0)

    def constant(self, value: Tensor, rank: int | None = None) -> Any:
        """A constant; with a rank, of so many dimensions, the first ones 1, since TensorRT broadcasts equal ranks."""
        shaped = value if rank is None else value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
        return get_trt_tensor(self._ctx, shaped.contiguous(), self._next())

    def number(self, value: float, rank: int) -> Any:
        return self.constant(torch.tensor(value, dtype=torch.float32), rank)

    def given(self, value: Any) -> Any:
        """An activation or a constant as it is."""
        return self.constant(value) if isinstance(value, Tensor) else value

    def float32(self, x: Any) -> Any:
        return x if x.dtype == trt.float32 else self.add(self._net.add_cast(x, trt.float32))

    def elementwise(self, first: Any, second: Any, operation: Any) -> Any:
        return self.add(self._net.add_elementwise(first, second, operation))

    def over_features(self, x: Any, operation: Any, keep: bool = True) -> Any:
        """Reduce the last dimension."""
        return self.add(self._net.add_reduce(x, operation, 1 << (len(x.shape) - 1), keep))

    def regular(self, x: Any, mask: Any | None) -> Any:
        """x in float32 with 0 for outliers."""
        x, rank = self.float32(x), len(x.shape)
        return x if mask is None else self.add(self._net.add_select(mask, self.number(0.0, rank), x))

    def normalised(self, regular: Any, scale: Any, unit: Any) -> Any:
        """regular / unit, and 0 where the scale is below the smallest normal float32."""
        rank = len(regular.shape)
        too_small = self.elementwise(scale, self.number(SMALLEST_NORMAL, rank), _LESS)
        divisor = self.add(self._net.add_select(too_small, self.number(math.inf, rank), unit))
        return self.elementwise(regular, divisor, _DIV)

    def dequantized(self, codes: Any, scale: Any, axis: int | None = None) -> Any:
        layer = self._net.add_dequantize(codes, scale, trt.float32)
        if axis is not None:
            layer.axis = axis
        return self.add(layer)

    def product(self, x: Any, weight: Any) -> Any:
        """x [..., K] times weight [1, ..., K, N]."""
        kind = trt.MatrixOperation.NONE if len(x.shape) > 1 else trt.MatrixOperation.VECTOR
        return self.add(self._net.add_matrix_multiply(x, kind, weight, trt.MatrixOperation.NONE))

    def squeezed(self, x: Any) -> Any:
        """Without its last dimension, of size 1."""
        return self.over_features(x, trt.ReduceOperation.SUM, keep=False)

    def unsqueezed(self, x: Any) -> Any:
        axes = torch.tensor([len(x.shape)], dtype=torch.int32)
        return self.add(self._net.add_unsqueeze(x, get_trt_tensor(self._ctx, axes, self._next())))

    def gathered(self, x: Any, columns: list[int]) -> Any:
        positions = self.constant(torch.tensor(columns, dtype=torch.int32))
        return self.add(self._net.add_gather(x, positions, len(x.shape) - 1))

    def quantized(self, x: Any) -> Any:
        return self.add(self._net.add_quantize(x, self.step(), trt.int8))

    def step(self) -> Any:
        return self.number(STEP, 0)

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        wanted = trt_dtype._from(dtype).to(trt.DataType)
        return x if x.dtype == wanted else self.add(self._net.add_cast(x, wanted))

    def value(self, given: Any, rank: int) -> Any:
        """An activation as it is, a constant in so many dimensions; both in float32."""
        return self.constant(given.float(), rank) if isinstance(given, Tensor) else self.float32(given)

    def _next(self) -> str:
        self._count += 1
        return f"{self._name}_{self._count}"


def column_mask(ctx: ConversionContext, target: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """bool[1, ..., K], a constant."""
    x, columns = args
    mask = torch.zeros(x.shape[-1], dtype=torch.bool)
    mask[list(columns)] = True
    return _Layers(ctx, name).constant(mask, len(x.shape))


def scale_per_token(ctx: ConversionContext, target: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """r / 127 of each row; NaN where the row holds NaN or infinity, which a maximum may hide."""
    layers, (x, mask) = _Layers(ctx, name), args
    regular = layers.regular(x, mask)
    rank = len(regular.shape)
    magnitude = layers.add(ctx.net.add_unary(regular, trt.UnaryOperation.ABS))
    largest = layers.over_features(magnitude, trt.ReduceOperation.MAX)
    scale = layers.elementwise(largest, layers.number(INT8_MAX, rank), _DIV)
    rows = layers.normalised(regular, scale, largest)
    total = layers.over_features(rows, trt.ReduceOperation.SUM)
    zero_or_nan = layers.elementwise(total, layers.number(0.0, rank), _PROD)
    return layers.squeezed(layers.elementwise(scale, zero_or_nan, _SUM))


def quantize_per_token(ctx: ConversionContext, target: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """The codes of each row, int8."""
    layers, (x, scale, mask) = _Layers(ctx, name), args
    regular, scale = layers.regular(x, mask), layers.unsqueezed(scale)
    unit = layers.elementwise(scale, layers.number(INT8_MAX, len(regular.shape)), _PROD)
    return layers.quantized(layers.normalised(regular, scale, unit))


def scaled_int8_mm(ctx: ConversionContext, target: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """The int8 product between two Dequantize layers, times r, plus outlier part and bias, cast once."""
    layers, (x_q, x_scale, w_q, w_scale, outlier, bias, dtype) = _Layers(ctx, name), args
    rank = len(x_q.shape)
    matrix = max(rank, 2)
    weight = layers.dequantized(layers.constant(w_q, matrix), layers.constant(w_scale), axis=matrix - 1)
    product = layers.product(layers.dequantized(x_q, layers.step()), weight)
    unit = layers.elementwise(layers.unsqueezed(x_scale), layers.number(INT8_MAX, rank), _PROD)
    y = layers.elementwise(product, unit, _PROD)
    for part in (outlier, bias):
        if part is not None:
            y = layers.elementwise(y, layers.value(part, rank), _SUM)
    return layers.cast(y, dtype)


def column_mm(ctx: ConversionContext, target: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """The product over outlier columns known beforehand, in float32."""
    layers, (x, columns, w) = _Layers(ctx, name), args  # `to_scaled_int8_mm` gives no scale and no bias
    return layers.product(layers.float32(layers.gathered(x, columns)), layers.constant(w.float(), max(len(x.shape), 2)))


def cuda_int8_linear(ctx: ConversionContext, target: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """One plugin: outliers found in each call, quantization, product, outlier part and bias. See plugin.py."""
    layers, (x, w_codes, w_scale, bias, weight, _, threshold, per_token, dtype, *columns) = _Layers(ctx, name), args
    codes = layers.constant(w_codes)
    added = torch.zeros(w_scale.shape[0]) if bias is None else bias
    kept = codes if weight is None else layers.constant(weight)
    tensors = (layers.given(x), codes, layers.constant(w_scale), layers.given(added), kept)
    sizes = _largest_sizes(ctx, x)
    return layers.add(plugin.add_layer(ctx.net, tensors, sizes, threshold, per_token, dtype, *columns or (None,)))


def _largest_sizes(ctx: ConversionContext, x: Any) -> list[int | None]:
    """The largest sizes that x may have; None where there is no bound, or torch-tensorrt (before 2.13) tells none."""
    node = getattr(ctx, "current_node", None)
    symbolic = [None] * len(x.shape) if node is None else value_of(node.args[0]).shape
    bounds = [extract_var_range_info(size)["max"] if isinstance(size, torch.SymInt) else size for size in symbolic]
    return [bound if size == -1 else size for size, bound in zip(x.shape, bounds, strict=True)]


def _on_real_tensors(converter: Callable) -> Callable:
    """torch-tensorrt converts under a fake tensor mode, in which a new constant would have no values."""

    @functools.wraps(converter)
    def convert(*arguments: Any) -> Any:
        with without_fake_tensors():
            return converter(*arguments)

    return convert


_WRITTEN: dict[OpOverload, Callable] = {
    ops.column_mask: column_mask,
    ops.scale_per_token: scale_per_token,
    ops.quantize_per_token: quantize_per_token,
    ops.scaled_int8_mm: scaled_int8_mm,
    ops.column_mm: column_mm,
    fused.cuda_int8_linear: cuda_int8_linear,
}
CONVERTERS = {op: _on_real_tensors(converter) for op, converter in _WRITTEN.items()}
