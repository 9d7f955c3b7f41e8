"""Error-compensated rounding: what one column's rounding does to the output, the columns after it make up for.

Source: GPTQ, Frantar et al. 2022 (arXiv 2210.17323), algorithm 1: fixed scales, columns in one order for all rows,
lazy batches of columns, the Cholesky factor of the inverse Hessian, damping. Columns are taken in the order of falling
diagonal of the Hessian, the most used features first (the "act-order" of GPTQ's code). All of it is float64.
"""

import torch
from torch import Tensor

from int8pass.quantization.absmax import INT8_MAX

DAMPING = 0.01  # of the mean diagonal of the Hessian, added to it (section 3.3, step 3)
_COLUMNS_AT_ONCE = 128  # columns of a lazy batch (section 3.3, step 2)


def compensated_codes(weight: Tensor, scale: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """Codes int8[N, K] of weight [N, K] for scale float32[N], with small |X W.T - X (codes * scale).T|.

    hessian: [K, K] X.T @ X of the inputs, up to a factor. kept: bool[K]; a column that is left out, since it is
    multiplied in 16 bit, is rounded to nearest and compensates nothing. Codes are within -127 and 127; those of a row
    of scale 0 are 0.
    """
    divisor = scale.double().masked_fill(scale == 0, torch.inf).unsqueeze(1)
    codes = nearest(weight.double(), divisor)
    columns = kept.nonzero().flatten()
    columns = columns[hessian.diagonal()[columns].argsort(descending=True, stable=True)]
    if len(columns):
        factor = _inverse_factor(hessian[columns][:, columns].double())
        codes[:, columns] = _compensated(weight[:, columns].double(), divisor, factor)
    return codes.to(torch.int8)


def nearest(weight: Tensor, divisor: Tensor) -> Tensor:
    """round(weight / divisor) within -127 and 127, half to even."""
    return (weight / divisor).round().clamp(-INT8_MAX, INT8_MAX)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper U with U.T @ U = inverse of the damped Hessian."""
    mean = float(hessian.diagonal().mean())
    damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype) * (DAMPING * mean or 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _compensated(weight: Tensor, divisor: Tensor, factor: Tensor) -> Tensor:
    """Algorithm 1 over weight [N, K], which it overwrites; divisor: [N, 1]; factor: [K, K], upper. float64 codes."""
    codes = torch.empty_like(weight)
    scale = divisor.masked_fill(divisor == torch.inf, 0.0)
    for start in range(0, weight.shape[1], _COLUMNS_AT_ONCE):
        end = min(start + _COLUMNS_AT_ONCE, weight.shape[1])
        errors = torch.empty((len(weight), end - start), dtype=weight.dtype)
        for column in range(start, end):
            values = weight[:, column : column + 1]
            codes[:, column : column + 1] = rounded = nearest(values, divisor)
            error = (values - rounded * scale) / factor[column, column]
            weight[:, column:end] -= error * factor[column, column:end]
            errors[:, column - start] = error[:, 0]
        weight[:, end:] -= errors @ factor[start:end, end:]
    return codes
