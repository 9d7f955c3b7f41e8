"""Outlier columns that a profile names are kept in 16 bits, in the backend and in files alike.

Those of a float16 or bfloat16 weight stay as they are. Those of a float32 weight become float16, in units of the
weight's int8 scale: they lie within -128 to 128 there, however large or small the weight is, and are at most 1/32 of a
unit off, where int8 is up to 1/2 off. bfloat16, which needs no units, would be up to 1/4 off.
"""

import torch
from torch import Tensor


def kept_columns(columns: Tensor, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is kept of columns [N, J] of a weight with int8 scale float32[N]: 16-bit [N, J], and its unit float32[N].

    The unit is None where the columns are 16-bit already. A row of scale 0 has the unit 1.
    """
    if columns.dtype != torch.float32:
        return columns, None
    unit = scale.masked_fill(scale == 0, 1.0)
    return (columns / unit.unsqueeze(1)).to(torch.float16), unit
