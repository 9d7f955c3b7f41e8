"""What better rounding needs to know of a Linear's input: the second moments of its rows, and some rows."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class InputMoments:
    """Of rows x [..., K], those with infinity or NaN left out.

    kept: bool[K]; the other columns count as zeros. gram: float64[K, K], X.T @ X of all rows. rows_a_batch: how many of
    each batch, evenly spaced, are samples.
    """

    kept: Tensor
    rows_a_batch: int
    samples: list[Tensor] = field(default_factory=list)
    gram: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.gram = torch.zeros((len(self.kept), len(self.kept)), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).float().masked_fill(~self.kept.to(x.device), 0.0)
        rows = rows[rows.isfinite().all(1)]
        self.gram += (rows.t() @ rows).double().cpu()
        spaced = rows[:: max(1, len(rows) // self.rows_a_batch)]
        self.samples.append(spaced[: self.rows_a_batch].cpu())

    @property
    def sample(self) -> Tensor:
        """The samples: float32[M, K]."""
        return torch.cat([*self.samples, torch.zeros((0, len(self.kept)))])


def moments_bytes(features: int) -> int:
    """What the second moments of K features take."""
    return torch.float64.itemsize * features**2
