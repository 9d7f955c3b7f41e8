"""OpenVINO in int8, in the two forms that its compression library nncf writes; for single Linears without nncf.

weights: int8 constants, Convert, Multiply by a scale per channel; the CPU plugin decides whether it quantizes
activations too (on AVX2 it was seen to multiply in float32). static: FakeQuantize on the activations as well, with one
scale for the whole tensor, calibrated here on the very input that is timed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from int8pass.bench.linear_case import Inputs, Point
from int8pass.quantization.absmax import INT8_MAX, absmax_codes, absmax_scale

_LEVELS = 256

Builder = Callable[[list[nn.Linear]], Callable[[Inputs], list[np.ndarray]]]


def weights_builder(point: Point) -> Builder:
    return lambda layers: _stack(point, layers, largest=None)


def static_builder(point: Point) -> Builder:
    largest = float(point.moving[0].abs().max())
    return lambda layers: _stack(point, layers, largest)


def _stack(point: Point, layers: list[nn.Linear], largest: float | None) -> Callable[[Inputs], list[np.ndarray]]:
    import openvino
    from openvino import opset13

    constants: dict[int, tuple] = {}
    inputs, outputs = [], []
    for layer in layers:
        if id(layer) not in constants:
            constants[id(layer)] = _constants(opset13, layer)
        weight, bias = constants[id(layer)]
        x = opset13.parameter([point.rows, layer.in_features], np.float32)
        quantized = x if largest is None else _fake_quantize(opset13, x, largest)
        outputs.append(opset13.add(opset13.matmul(quantized, weight, False, True), bias))
        inputs.append(x)
    request = compiled(openvino.Model(outputs, inputs), point.threads, point.dtype).create_infer_request()

    def run(xs: Inputs) -> list[np.ndarray]:
        arrays = {index: x.numpy() for index, x in enumerate(xs)}
        return list(request.infer(arrays, share_inputs=True, share_outputs=True).values())

    return run


def compiled(model: Any, threads: int, dtype: torch.dtype) -> Any:
    """An openvino.Model compiled for the CPU, for the shortest time of one request, its float parts in `dtype`."""
    import openvino

    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def _constants(opset: Any, layer: nn.Linear) -> tuple:
    scale = absmax_scale(layer.weight)
    codes = opset.constant(absmax_codes(layer.weight, scale).numpy())
    weight = opset.multiply(opset.convert(codes, "f32"), opset.constant(scale.unsqueeze(1).numpy()))
    return weight, opset.constant(layer.bias.float().numpy())


def _fake_quantize(opset: Any, x: Any, largest: float) -> Any:
    low, high = (np.float32(limit) for limit in (-largest * (INT8_MAX + 1) / INT8_MAX, largest))
    return opset.fake_quantize(x, low, high, low, high, _LEVELS)
