"""Scales of weights: what range of a row the 255 codes are spread over.

Every estimator takes rows of a weight, [R, C] floating, and returns float32[R], range / 127: NaN for a row that holds
NaN or infinity, 0 for one whose scale falls below the smallest normal float32. A code past the range is clamped.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from int8pass.quantization.absmax import INT8_MAX, SMALLEST_NORMAL, absmax_codes, absmax_scale

_CANDIDATES = tuple(step / 100 for step in range(100, 39, -1))  # of the full range; ties go to the widest


def absmax(rows: Tensor, percentile: float) -> Tensor:
    """The largest magnitude (LLM.int8(), section 3.1)."""
    return absmax_scale(rows)


def percentile(rows: Tensor, percentile: float) -> Tensor:
    """The smallest magnitude that `percentile` % of the row's do not exceed (nearest rank)."""
    rank = max(1, math.ceil(percentile / 100 * rows.shape[1]))
    scale = rows.to(torch.float32).abs().kthvalue(rank, dim=1).values / INT8_MAX
    scale = scale.masked_fill(scale < SMALLEST_NORMAL, 0.0)
    return scale.masked_fill(absmax_scale(rows).isnan(), torch.nan)  # it may leave out just what is not finite


def mse(rows: Tensor, percentile: float) -> Tensor:
    """Of the full range and its shares down to 0.40, in steps of 0.01, that with the least squared error."""
    full = absmax_scale(rows)
    values = rows.to(torch.float32)
    best, least = full, torch.full_like(full, torch.inf)
    for share in _CANDIDATES:
        scale = full * share
        scale = scale.masked_fill(scale < SMALLEST_NORMAL, 0.0)
        error = (values - absmax_codes(values, scale) * scale.unsqueeze(1)).square().sum(1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


# (rows, percentile) -> scale; only the percentile estimator reads the second
ESTIMATORS: dict[str, Callable[[Tensor, float], Tensor]] = {"absmax": absmax, "percentile": percentile, "mse": mse}
