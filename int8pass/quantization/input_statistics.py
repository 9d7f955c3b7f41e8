"""What the Linears that read one weight met in their inputs: outlier columns, ranges, histograms."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from int8pass import ops
from int8pass.program import ModuleTensor
from int8pass.quantization.float_batches import Key, LinearInput
from int8pass.quantization.observers import Histogram
from int8pass.weight_expression import WeightExpression


@dataclass
class InputStatistics:
    """Of the input x [..., K] of the Linears that read one parameter through weights [N, K].

    minimum, maximum: float32[K], the finite extremes of each column (infinite where it met no finite value);
    batches: by column, how many showed an outlier in it. expressions: the views that are these weights, by name.
    sharers: of which other Linears' inputs it is one, once for each different set of them.
    """

    source: ModuleTensor
    shape: tuple[int, int]
    minimum: Tensor
    maximum: Tensor
    last: dict[int, int] = field(default_factory=dict)  # column -> number of the last batch that it was counted in
    batches: Counter = field(default_factory=Counter)
    expressions: dict[str, WeightExpression] = field(default_factory=dict)
    sharers: set[frozenset[Key]] = field(default_factory=set)

    @classmethod
    def empty(cls, shown: LinearInput) -> "InputStatistics":
        unmet = torch.full((shown.shape[1],), torch.inf)
        return cls(shown.source, shown.shape, unmet, -unmet)

    def add(self, shown: LinearInput, threshold: float, batch: int) -> None:
        x = shown.x
        self.expressions.setdefault(shown.expression.key, shown.expression)
        self.sharers.add(shown.sharers)
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
    def key(self) -> Key:
        return self.source.name, self.shape[1]

    @property
    def magnitudes(self) -> Tensor:
        """The largest finite |x| of each column, 0.0 where there was none: float32[K]."""
        return torch.maximum(-self.minimum, self.maximum).clamp_min(0.0)

    @property
    def absmax(self) -> float:
        """The largest finite |x|, 0.0 where there was none."""
        minimum, maximum = self.range(())
        return max(abs(minimum), abs(maximum))

    def range(self, left_out: tuple[int, ...]) -> tuple[float, float]:
        """The least and the largest finite x outside some columns; zeros where there was none."""
        kept = columns_outside(self.shape[1], left_out) & (self.minimum <= self.maximum)
        if not bool(kept.any()):
            return 0.0, 0.0
        return float(self.minimum[kept].min()), float(self.maximum[kept].max())


def columns_outside(features: int, left_out: tuple[int, ...]) -> Tensor:
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
