"""Observers: which range of magnitudes int8 is to cover, chosen from a histogram of the values that were met.

Each is a function from a Histogram to a limit: magnitudes above it are clamped. Sources: absmax, LLM.int8() section 2;
percentile and entropy (TensorRT's calibrator), S. Migacz, "8-bit inference with TensorRT", GTC 2017; percentile and
mean squared error compared in Wu et al. 2020 (arXiv 2004.09602), section 4.
"""

import math

import torch
from torch import Tensor

from int8pass.quantization.absmax import INT8_MAX

OBSERVERS = ("absmax", "percentile", "mse", "entropy")
BINS = 2048
LEVELS = INT8_MAX + 1  # magnitudes of a code: 0 to 127
_LIMITS_AT_ONCE = 64


class Histogram:
    """Counts of magnitudes in 2048 equal bins from 0 to `largest`, whatever the number of values.

    counts: int64[2048]; a magnitude above `largest` counts in the last bin.
    """

    def __init__(self, largest: float) -> None:
        self.largest = largest
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    @property
    def width(self) -> float:
        """Of a bin, in units of the values."""
        return self.largest / BINS

    def add(self, values: Tensor) -> None:
        """Count |values|, any shape, floating and finite."""
        if self.largest:
            bins = (values.detach().double().abs() * (BINS / self.largest)).long().clamp_(max=BINS - 1)
            self.counts += torch.bincount(bins.flatten(), minlength=BINS).cpu()


def limit(observer: str, histogram: Histogram, percent: float) -> float:
    """The largest magnitude that `observer`, of OBSERVERS, lets int8 cover. percent: of the percentile observer."""
    if observer == "absmax" or not bool(histogram.counts.any()):
        return histogram.largest
    if observer == "percentile":
        return percentile_limit(histogram, percent)
    return {"mse": mse_limit, "entropy": entropy_limit}[observer](histogram)


def percentile_limit(histogram: Histogram, percent: float) -> float:
    """The upper edge of the first bin up to which at least `percent` percent of the values lie."""
    reached = histogram.counts.cumsum(0)
    rank = math.ceil(percent / 100 * int(reached[-1]))
    return (int(torch.searchsorted(reached, max(rank, 1))) + 1) * histogram.width


def mse_limit(histogram: Histogram) -> float:
    """The bin edge at which codes of scale limit / 127 have the least squared error; each bin counts at its centre.

    Edges from the 128th on are tried: below, a step of the scale is narrower than a bin.
    """
    counts = histogram.counts.double()
    centres = torch.arange(BINS, dtype=torch.float64) + 0.5  # in bins
    errors = [_squared_errors(centres, counts, edges) for edges in _edges().split(_LIMITS_AT_ONCE)]
    return int(_edges()[torch.cat(errors).argmin()]) * histogram.width


def _squared_errors(centres: Tensor, counts: Tensor, edges: Tensor) -> Tensor:
    """Of quantizing centres [B], each `counts` [B] times, with each limit in `edges` [E]: float64[E]."""
    scale = edges.double()[:, None] / INT8_MAX
    rounded = (centres / scale).round().clamp(max=INT8_MAX) * scale
    return ((rounded - centres).square() * counts).sum(1)


def entropy_limit(histogram: Histogram) -> float:
    """The bin edge that loses the least information (Migacz 2017, slides 35 to 38): KL divergence of the clamped
    histogram, whose last bin takes all above it, from the same bins merged to 128 levels.
    """
    counts = histogram.counts.double()
    divergences = [_divergence(counts, int(edge)) for edge in _edges()]
    return int(_edges()[torch.tensor(divergences).argmin()]) * histogram.width


def _divergence(counts: Tensor, edge: int) -> float:
    """KL(P || Q) in nats; infinite where Q lacks a value that P has."""
    kept = counts[:edge]
    clamped = kept.clone()
    clamped[-1] += counts[edge:].sum()
    level = torch.arange(edge) * LEVELS // edge
    filled = kept > 0
    sums = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, kept)
    bins = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, filled.double())
    merged = torch.where(filled, (sums / bins.clamp(min=1))[level], 0.0)
    p, q = clamped / clamped.sum(), merged / merged.sum()
    present = p > 0
    return float((p[present] * (p[present] / q[present]).log()).sum()) if bool(filled.any()) else math.inf


def _edges() -> Tensor:
    """The limits that are tried, in bins."""
    return torch.arange(LEVELS, BINS + 1)
