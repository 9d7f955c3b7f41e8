"""Scale migration: features of x are divided, and the weight's columns multiplied, so that rows of x lose less to int8.

Source: SmoothQuant, Xiao et al. 2022 (arXiv 2211.10438), equations 3 and 4: s_j = max|X_j|^a / max|W_j|^(1 - a), here
with `a` searched for each input, and s = 1 at outlier columns, which are multiplied in 16 bit.
"""

import torch
from torch import Tensor

from int8pass.quantization.absmax import absmax_codes, absmax_scale

ALPHAS = tuple(step / 10 for step in range(11))
LEAST_GAIN = 0.1  # of the output error; for less, an input is left as it is
_LARGEST = 2.0**8  # and its inverse bound s, so that x / s and W * s stay far from the ends of float16
_SMALLEST_MAXIMUM = 1e-5  # SmoothQuant's own floor


def input_factor(x: Tensor, weight: Tensor, magnitudes: Tensor, kept: Tensor, rounding_share: float) -> Tensor | None:
    """1 / s, float32[K], which x is to be multiplied with: the one of least output error; None where it gains little.

    x: float32[M, K], rows to measure on, zeros at outlier columns; weight: float32[N, K], of all Linears that read x;
    magnitudes: float32[K], the largest |x| met; kept: bool[K], False at outlier columns. rounding_share: see
    `output_error`.
    """
    if not bool(kept.any()) or not len(x):
        return None
    weight = weight.masked_fill(~kept, 0.0)
    factors = [1 / _scales(magnitudes, weight, alpha, kept) for alpha in ALPHAS]
    errors = [output_error(x, weight, factor, rounding_share) for factor in factors]
    best = min(range(len(factors)), key=errors.__getitem__)
    unchanged = output_error(x, weight, torch.ones(len(kept)), rounding_share)
    return factors[best] if errors[best] < (1 - LEAST_GAIN) * unchanged else None


def _scales(magnitudes: Tensor, weight: Tensor, alpha: float, kept: Tensor) -> Tensor:
    """Equation 4, with a geometric mean of 1 over the kept columns and 1 at the others: float32[K]."""
    exponents = alpha * _log2(magnitudes) - (1 - alpha) * _log2(weight.abs().amax(0))
    exponents = exponents - exponents[kept].mean()
    return torch.exp2(exponents).clamp(1 / _LARGEST, _LARGEST).masked_fill(~kept, 1.0)


def _log2(maximum: Tensor) -> Tensor:
    return maximum.clamp_min(_SMALLEST_MAXIMUM).log2()


def output_error(x: Tensor, weight: Tensor, factor: Tensor, rounding_share: float) -> float:
    """Mean over rows of the squared error of x @ W.T, where rows of x * factor and of W / factor are in int8.

    rounding_share: what remains of the weight's part of it: 1.0 for rounding to nearest, less where errors compensate
    each other. That part takes rounding errors for independent from feature to feature.
    """
    scaled, weight = x * factor, weight / factor
    from_rows = ((_dequantized(scaled) - scaled) @ weight.t()).square().sum(1).mean()
    from_weight = (_dequantized(weight) - weight).square().sum(0) @ scaled.square().mean(0)
    return float(from_rows + rounding_share * from_weight)


def _dequantized(rows: Tensor) -> Tensor:
    scale = absmax_scale(rows)
    return absmax_codes(rows, scale).float() * scale.unsqueeze(-1)
