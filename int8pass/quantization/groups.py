"""Weight scales by group: each output has one scale for every `size` neighbouring features, float32[N, K / size]."""

import torch
from torch import Tensor

from int8pass.kernels.integer_matmul import integer_matmul


def scale_of_each(scale: Tensor, columns: int) -> Tensor:
    """The scales of a weight [N, K], to multiply it by: [N, 1] of scale [N], or [N, K] of scale [N, groups]."""
    return scale.unsqueeze(1) if scale.dim() == 1 else scale.repeat_interleave(columns // scale.shape[1], dim=1)


def grouped_integer_matmul(
    x: Tensor, zero_point: Tensor | None, weight: Tensor, weight_scale: Tensor, code_sums: Tensor | None
) -> Tensor:
    """Return the sum over groups g of weight_scale[:, g] * (x[:, g] @ weight[:, g].T - zero_point * code_sums[:, g]).

    x: int8[M, K]; weight: int8[N, K]; weight_scale: float32[N, groups]. zero_point: int32[M, 1] or int32[1], with
    code_sums int32[N, groups] of the weight; None: 0. Each group is exact in int32. Result: float32[M, N].
    """
    groups = weight_scale.shape[1]
    total = torch.zeros((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
    parts = zip(x.chunk(groups, 1), weight.chunk(groups, 1), weight_scale.unbind(1), strict=True)
    for group, (part, weight_part, scale) in enumerate(parts):
        sums = integer_matmul(part.contiguous(), weight_part.contiguous())
        if zero_point is not None:
            sums -= zero_point * code_sums[:, group]
        total += sums.to(torch.float32) * scale
    return total
