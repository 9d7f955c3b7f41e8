"""Symmetric absmax quantization along the last dimension, for activations and weights, or over a whole tensor.

Source: LLM.int8(), Dettmers et al. 2022 (arXiv 2208.07339), section 3.1. All arithmetic is float32 with IEEE division
and round-half-even. Written in operations that act on tensors and on fx proxies alike, so that one text is both the
reference implementation of an op and its decomposition in a lowering.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

INT8_MAX = 127
SMALLEST_NORMAL = torch.finfo(torch.float32).smallest_normal


def absmax_scale(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return max |x| / 127 over the last dimension, leaving out masked entries.

    x: [..., K] floating; mask: bool[K] or bool[..., K]. Result: float32[...]. A row that holds NaN or an unmasked
    infinity has scale NaN, one whose scale falls below the smallest normal float32 has scale 0.
    """
    magnitude = x.to(torch.float32).abs()
    if mask is not None:
        magnitude = magnitude.masked_fill(mask, 0.0)
    largest = magnitude.amax(-1)
    scale = largest / largest.new_full((), INT8_MAX)  # by a number, CUDA would multiply by its rounded reciprocal
    scale = scale.masked_fill(scale == torch.inf, torch.nan)
    return scale.masked_fill(scale < SMALLEST_NORMAL, 0.0)


def absmax_tensor_scale(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same over the whole tensor: float32[]. One NaN, or one infinity that is not masked, makes it NaN."""
    return largest(absmax_scale(x, mask))


def largest(values: Tensor) -> Tensor:
    """The largest of values >= 0 of any shape, NaN if there is one, 0.0 if there are none: a scalar tensor."""
    return F.pad(values.reshape(-1), (0, 1)).amax()


def absmax_codes(x: Tensor, scale: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return round(x / scale) in [-127, 127]; masked entries and rows of scale 0 or NaN have code 0.

    x: [..., K] floating; scale: float32[...] or float32[]; mask: bool[K] or bool[..., K]. Result: int8[..., K].
    """
    divisor = scale.unsqueeze(-1)
    codes = (x.to(torch.float32) / divisor).round().clamp(-INT8_MAX, INT8_MAX)
    codes = codes.masked_fill(torch.logical_not(divisor > 0), 0.0)
    if mask is not None:
        codes = codes.masked_fill(mask, 0.0)
    return codes.to(torch.int8).contiguous()
