"""What the Linears that read one weight met in their inputs: outlier columns, ranges, histograms."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from int8pass import ops
from int8pass.program import ModuleTensor
from int8pass.quantization.observers import Histogram

Key = tuple[str, int]  # dotted name of the weight, K


@dataclass
class InputStatistics:
    """Of the input x [..., K] of the Linears that read one parameter through weights [N, K].

    minimum, maximum: float32[K], the finite extremes of each column (infinite where it met no finite value);
    batches: by column, how many showed an outlier in it.
    """

    source: ModuleTensor
    shape: tuple[int, int]
    minimum: Tensor
    maximum: Tensor
    last: dict[int, int] = field(default_factory=dict)  # column -> number of the last batch that it was counted in
    batches: Counter = field(default_factory=Counter)

    @classmethod
    def empty(cls, source: ModuleTensor, weight: Tensor) -> "InputStatistics":
        rows, columns = map(int, weight.shape)
        unmet = torch.full((columns,), torch.inf)
        return cls(source, (rows, columns), unmet, -unmet)

    def add(self, x: Tensor, threshold: float, batch: int) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if not rows.numel():
            return
        finite = rows.isfinite()
        self.minimum = torch.minimum(self.minimum, rows.masked_fill(~finite, torch.inf).amin(0).cpu())
        self.maximum = torch.maximum(self.maximum, rows.masked_fill(~finite, -torch.inf).amax(0).cpu())
        columns = ops.outlier_mask(x, threshold, "column").nonzero().flatten().tolist() if threshold else ()
        for column in columns:
            if self.last.get(column) != batch:
                self.last[column] = batch
                self.batches[column] += 1

    def outlier_columns(self, min_batches: int) -> tuple[int, ...]:
        return tuple(sorted(column for column, count in self.batches.items() if count >= min_batches))

    @property
    def absmax(self) -> float:
        """The largest finite |x|, 0.0 where there was none."""
        minimum, maximum = self.range(())
        return max(abs(minimum), abs(maximum))

    def range(self, left_out: tuple[int, ...]) -> tuple[float, float]:
        """The least and the largest finite x outside some columns; zeros where there was none."""
        kept = kept_columns(self.shape[1], left_out) & (self.minimum <= self.maximum)
        if not bool(kept.any()):
            return 0.0, 0.0
        return float(self.minimum[kept].min()), float(self.maximum[kept].max())


def kept_columns(features: int, left_out: tuple[int, ...]) -> Tensor:
    """bool[K]: False at the columns that are left out."""
    kept = torch.ones(features, dtype=torch.bool)
    kept[list(left_out)] = False
    return kept


@dataclass
class KeptHistogram:
    """The Histogram of a Linear's finite inputs outside its outlier columns. kept: bool[K]."""

    kept: Tensor
    histogram: Histogram

    def add(self, x: Tensor) -> None:
        values = x.detach().reshape(-1, x.shape[-1])[:, self.kept.to(x.device)]
        self.histogram.add(values[values.isfinite()])
