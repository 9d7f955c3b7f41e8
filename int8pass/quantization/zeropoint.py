"""Asymmetric quantization of activations: a scale and an integer zero point, for each token or for the whole tensor.

    low = min(x, 0), high = max(x, 0)                     the range always holds 0, so 0 has a code of its own
    scale = high / 254 - low / 254                        254 steps between -127 and 127
    zero_point = round(-127 - low / scale)                in [-127, 127]
    code = clamp(round(x / scale) + zero_point, -127, 127)
    x ~ scale * (code - zero_point)

Source: LLM.int8(), Dettmers et al. 2022 (arXiv 2208.07339), section 2, equations 1 to 3 (their normalized dynamic range
is 1 / scale), with the sign of the zero point that PyTorch and ONNX use. All arithmetic is float32 with IEEE division
and round-half-even; two divisions, so that a range does not overflow. Written for tensors and fx proxies alike, as in
absmax.py. A range that holds NaN or an unmasked infinity has scale NaN, one whose scale falls below the smallest normal
float32 has scale 0; both have zero point 0 and codes 0.
"""

import torch
from torch import Tensor

from int8pass.quantization.absmax import INT8_MAX, SMALLEST_NORMAL, largest

STEPS = 2 * INT8_MAX


def range_scale(x: Tensor, mask: Tensor | None, granularity: str) -> Tensor:
    """Return (max(x, 0) - min(x, 0)) / 254, masked entries left out. Result: float32[...], or float32[] per tensor."""
    scale = _high(x, mask, granularity) / STEPS - _low(x, mask, granularity) / STEPS
    scale = scale.masked_fill(scale == torch.inf, torch.nan)
    return scale.masked_fill(scale < SMALLEST_NORMAL, 0.0)


def range_zero_point(x: Tensor, scale: Tensor, mask: Tensor | None, granularity: str) -> Tensor:
    """Return the code of 0.0, an int32 like `scale`."""
    point = (-INT8_MAX - _low(x, mask, granularity) / scale).round().clamp(-INT8_MAX, INT8_MAX)
    return point.masked_fill(torch.logical_not(scale > 0), 0.0).to(torch.int32)


def asymmetric_codes(x: Tensor, scale: Tensor, zero_point: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return round(x / scale) + zero_point in [-127, 127]; masked entries have the code of 0.0.

    x: [..., K] floating; scale: float32[...] or float32[]; zero_point: int32 like it. Result: int8[..., K].
    """
    divisor = scale.unsqueeze(-1)
    values = x.to(torch.float32)
    if mask is not None:
        values = values.masked_fill(mask, 0.0)
    codes = ((values / divisor).round() + zero_point.unsqueeze(-1)).clamp(-INT8_MAX, INT8_MAX)
    return codes.masked_fill(torch.logical_not(divisor > 0), 0.0).to(torch.int8).contiguous()


def _high(x: Tensor, mask: Tensor | None, granularity: str) -> Tensor:
    values = x.to(torch.float32)
    if mask is not None:
        values = values.masked_fill(mask, 0.0)
    high = values.amax(-1).clamp_min(0.0)
    return largest(high) if granularity == "per_tensor" else high


def _low(x: Tensor, mask: Tensor | None, granularity: str) -> Tensor:
    return -_high(-x, mask, granularity)
