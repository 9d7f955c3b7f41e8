"""Static quantization of activations: one scale and zero point for all tokens of all calls, from a calibrated range.

The formulas are those of absmax.py and zeropoint.py over the range's two ends; values past it are clamped to the
outermost codes. Written for tensors and fx proxies alike, as in absmax.py.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from int8pass.quantization.absmax import INT8_MAX, absmax_scale
from int8pass.quantization.zeropoint import range_scale, range_zero_point


class StaticScale(NamedTuple):
    """x ~ scale * (code - zero_point). scale: a float32 value, 0.0 for a range of zeros; zero_point: the code of 0."""

    scale: float
    zero_point: int


def static_scale(minimum: float, maximum: float, symmetric: bool) -> StaticScale:
    """What codes stand for that cover a range of activations. Symmetric: -m to m for the larger magnitude m of both."""
    ends = torch.tensor([minimum, maximum], dtype=torch.float32)
    if symmetric:
        return StaticScale(float(absmax_scale(ends)), 0)
    scale = range_scale(ends, None, "per_token")
    return StaticScale(float(scale), int(range_zero_point(ends, scale, None, "per_token")))


def static_codes(x: Tensor, scale: float, zero_point: int, mask: Tensor | None = None) -> Tensor:
    """Return round(x / scale) + zero_point in [-127, 127]; masked entries and NaN have the code of 0.0.

    x: [..., K] floating; mask: bool[K] or bool[..., K]. Result: int8[..., K].
    """
    values = x.to(torch.float32)
    if mask is not None:
        values = values.masked_fill(mask, 0.0)
    codes = (values / (scale or math.inf)).round().nan_to_num(0.0) + zero_point
    return codes.clamp(-INT8_MAX, INT8_MAX).to(torch.int8).contiguous()


def static_token_scale(x: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Return the scale of each row: `scale`, but NaN for a row that holds NaN or an infinity that is not masked.

    x: [..., K] floating; mask: bool[K] or bool[..., K]. Result: float32[...].
    """
    values = x.to(torch.float32)
    if mask is not None:
        values = values.masked_fill(mask, 0.0)
    return (values - values).sum(-1) + scale  # x - x is 0, or NaN


def count_clamped(x: Tensor, static: StaticScale, mask: Tensor | None = None) -> int:
    """How many entries of x that are not masked have no code of their own, as they lie past the range."""
    values = x.to(torch.float32)
    if mask is not None:
        values = values.masked_fill(mask, 0.0)
    codes = (values / (static.scale or math.inf)).round() + static.zero_point
    return int((codes.abs() > INT8_MAX).sum())
