"""The plugin form: all of an int8 Linear becomes the op `cuda_int8_linear`, whose plugin bears its name.

before:
    %outlier_mask : bool[64] = int8pass.outlier_mask(%x, 6.0)
    %scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
    %quantize_per_token : i8[4, 64] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
    %int8_mm : i32[4, 32] = int8pass.int8_mm(%quantize_per_token, %codes)
    %outlier_mm : f32[4, 32] = int8pass.outlier_mm(%x, %outlier_mask, %weight)
    %dequantize : f32[4, 32] = int8pass.dequantize(%int8_mm, %scale_per_token, %scale, %outlier_mm, %bias, float32)
after:
    %cuda_int8_linear : f32[4, 32] = int8pass.cuda_int8_linear(%x, %codes, %scale, %bias, %weight, None, 6.0, False,
        float32)

None: no cache of outlier columns, which would be memory of the engine's. A profile's columns follow as a last argument.
"""

import torch
from torch import fx

from int8pass.errors import EngineError
from int8pass.graph import insert, value_of
from int8pass.kernels.cuda import fused
from int8pass.lower.rewritten_linear import match_rewritten_linear
from int8pass.lower.tensorrt.constants import constant


def to_cuda_int8_linear(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """What stands for a `dequantize`. Raises EngineError, and what `fused.require_device` does for the device."""
    match = match_rewritten_linear(node, value_of(node).device.type)
    if match is None:
        raise EngineError(f"{node.name} is no Linear that the plugin {fused.cuda_int8_linear.name()} computes")
    device = value_of(match.x).device
    if device.type == "cuda" and torch.cuda.is_available():  # a program may be converted on the CPU
        fused.require_device(device)
    _, _, scale, _, bias, dtype = node.args
    for weight in filter(None, (match.codes, scale, match.weight)):
        constant(graph_module, weight)
    return insert(
        node, fused.cuda_int8_linear, match.x, match.codes, scale, bias, match.weight, None, *match.outlier_rule,
        dtype, *match.known_columns,
    )  # fmt: skip
