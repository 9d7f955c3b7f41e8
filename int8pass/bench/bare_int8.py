"""The int8 product alone, by each library that PyTorch brings: what quantizing and outliers are to cost nothing beside.

Inputs are quantized before the clock starts, with one scale for the whole x. On CPUs without VNNI or AMX the u8 x s8
kernels of oneDNN and FBGEMM add pairs of products in 16 bits, which can saturate: their error then shows it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from int8pass.bench.linear_case import Inputs, Point
from int8pass.quantization.absmax import INT8_MAX, absmax_codes, absmax_scale

ZERO_POINT = 128

Builder = Callable[[list[nn.Linear]], Callable[[Inputs], list[Tensor]]]


def onednn(point: Point) -> Builder:
    """torch.ops.onednn.qlinear_pointwise: uint8 activations, zero point 128, float output in x's dtype."""
    x_scale, codes = _activation(point)
    unsigned = (codes + ZERO_POINT).to(torch.uint8)
    zero_points = torch.zeros(point.out_features, dtype=torch.int64)

    def layer(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        weight, scale = _weight(linear)
        packed = torch.ops.onednn.qlinear_prepack(weight, [point.rows, point.in_features])
        run = torch.ops.onednn.qlinear_pointwise.default
        fixed = (scale, zero_points, None, 1.0, 0, point.dtype, "none", [], "")
        return lambda x: run(unsigned, x_scale, ZERO_POINT, packed, *fixed)

    return lambda layers: _loop(layers, layer)


def fbgemm(point: Point) -> Builder:
    """torch.ops.quantized.linear: uint8 to uint8, as a statically quantized model calls it."""
    x_scale, codes = _activation(point)
    x = torch._make_per_tensor_quantized_tensor((codes + ZERO_POINT).to(torch.uint8), x_scale, ZERO_POINT)
    largest = float((point.moving[0].float() @ point.stacks[0][0].weight.float().t()).abs().max())
    zero_points = torch.zeros(point.out_features, dtype=torch.int64)

    def layer(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        weight, scale = _weight(linear)
        quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zero_points, 0)
        packed = _packed_by_fbgemm(quantized)
        run = torch.ops.quantized.linear.default
        return lambda _: run(x, packed, largest / INT8_MAX, ZERO_POINT)

    return lambda layers: _loop(layers, layer)


def int_mm(point: Point) -> Builder:
    """torch._int_mm: int8 x int8 to int32."""
    codes = _activation(point)[1].to(torch.int8)

    def layer(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        transposed = _weight(linear)[0].t()
        return lambda _: torch._int_mm(codes, transposed)

    return lambda layers: _loop(layers, layer)


def as_float(point: Point, output: Tensor) -> Tensor:
    """What a product of the first layer stands for, float [M, N], without bias."""
    if output.is_quantized:
        return output.dequantize()
    if output.dtype is torch.int32:
        return output * _weight(point.stacks[0][0])[1] * _activation(point)[0]
    return output


def _loop(layers: list[nn.Linear], build: Callable) -> Callable[[Inputs], list[Tensor]]:
    calls = {id(layer): build(layer) for layer in layers}
    ordered = [calls[id(layer)] for layer in layers]
    return lambda xs: [call(x) for call, x in zip(ordered, xs, strict=False)]


def _activation(point: Point) -> tuple[float, Tensor]:
    """One scale for the whole x, and its codes as whole numbers [M, K]."""
    x = point.moving[0].float()
    scale = float(x.abs().max()) / INT8_MAX
    return scale, (x / scale).round().clamp(-INT8_MAX, INT8_MAX)


def _weight(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """int8[N, K] contiguous and float32[N]."""
    scale = absmax_scale(linear.weight)
    return absmax_codes(linear.weight, scale).contiguous(), scale


def _packed_by_fbgemm(weight: Tensor) -> object:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = engine
