"""The 16/32-bit product over outlier features: x[:, O] @ W[:, O].T."""

import torch
from torch import Tensor

from int8pass.quantization.columns import kept_columns


def outlier_product(x: Tensor, mask: Tensor, weight: Tensor, weight_scale: Tensor | None) -> Tensor:
    """Return the product over masked entries only, in float32.

    x: [M, K] floating; mask: bool[K] or bool[M, K]; weight: [N, K] floating, or int8 with weight_scale float32[N] or
    [N, groups]. A floating weight with weight_scale is read in 16 bits, as `kept_columns` keeps it.
    Result: float32[M, N].
    """
    result = torch.zeros((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
    per_token = mask.dim() == 2
    columns = (mask.any(0) if per_token else mask).nonzero().flatten()
    if columns.numel() == 0 or result.numel() == 0:
        return result
    outliers = x.index_select(1, columns).float()
    if per_token:
        outliers = outliers.masked_fill(~mask.index_select(1, columns), 0.0)
    weight_columns = _weight_columns(weight, weight_scale, columns)
    # in place is not autocast, so an enclosing autocast region cannot round the product
    return result.addmm_(outliers, weight_columns.t())


def _weight_columns(weight: Tensor, scale: Tensor | None, columns: Tensor) -> Tensor:
    """The chosen columns, as they are multiplied: float32[N, J]."""
    chosen = weight.index_select(1, columns)
    if scale is None:
        return chosen.float()
    if weight.is_floating_point():
        chosen, unit = kept_columns(chosen, scale if scale.dim() == 1 else scale.amax(1))
        return chosen.float() if unit is None else chosen.float() * unit.unsqueeze(1)
    if scale.dim() == 2:
        return chosen.float() * scale.index_select(1, columns // (weight.shape[1] // scale.shape[1]))
    return chosen.float() * scale.unsqueeze(1)
