"""What one Linear meets while a model runs in float: outlier columns, the int8 form's error, the levels it uses."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from int8pass.composition import QuantizedActivation
from int8pass.inspection.float_run import LinearCall
from int8pass.inspection.timing import Timing
from int8pass.quantization.absmax import INT8_MAX

LEVELS = 2 * INT8_MAX + 1  # -127 ... 127
_PEAKS_KEPT = 64
_ELEMENTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Levels:
    """A histogram on the int8 grid. counts: how many values have each code, from -127 to 127; scales: the smallest, the
    median and the largest scale, so that code c stands for c times one of them.
    """

    counts: tuple[int, ...]
    scales: tuple[float, float, float]


@dataclass(frozen=True)
class Details:
    """What a report's page shows of one Linear beside its row.

    graph, node: where it was captured; activations, weights: None where it was not run or not rewritten.
    outlier_values: how many values of the input the float branch took. peaks: (column, largest |x|), largest first.
    """

    graph: int
    node: str
    activations: Levels | None = None
    weights: Levels | None = None
    outlier_values: int = 0
    peaks: tuple[tuple[int, float], ...] = ()


@dataclass
class Observation:
    """Sums over all calls of one Linear: energies of its float output and of the int8 form's error; its inputs."""

    columns: set[int] = field(default_factory=set)
    missed: set[int] = field(default_factory=set)
    signal: float = 0.0
    noise: float = 0.0
    outlier_values: int = 0
    clamped: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(LEVELS, dtype=torch.int64))
    scales: list[Tensor] = field(default_factory=list)
    peaks: Tensor | None = None
    timing: Timing | None = None
    scheme_noise: Counter[str] = field(default_factory=Counter)  # energy of the error, by scheme

    def add(self, call: LinearCall, y_int8: Tensor) -> None:
        """Take in one call, and the result of its int8 form."""
        self.add_error(call.y, y_int8)
        config = call.graph.program.config
        self.add_input(call.x, *call.quantized(config))
        self.clamped += call.clamped(config)

    def add_error(self, y: Tensor, y_int8: Tensor) -> None:
        """y: the float Linear's output; y_int8: that of its int8 form."""
        self.signal += float(y.double().square().sum())
        self.noise += float((y.double() - y_int8.double()).square().sum())

    def add_input(self, x: Tensor, mask: Tensor | None, quantized: QuantizedActivation) -> None:
        """x: [..., K]; mask: bool[K] or bool[..., K], True for outliers, or None."""
        rows = x.reshape(-1, x.shape[-1])
        inside = quantized.codes if mask is None else quantized.codes[torch.logical_not(mask).expand(x.shape)]
        self.counts += level_counts(inside)
        self.scales.append(quantized.scale.cpu())
        if mask is not None:
            self._add_outliers(rows, mask)
        if len(rows):
            peaks = rows.abs().amax(0).float().cpu()
            self.peaks = peaks if self.peaks is None else torch.maximum(self.peaks, peaks)

    def _add_outliers(self, rows: Tensor, mask: Tensor) -> None:
        taken = int(mask.sum()) * (len(rows) if mask.dim() == 1 else 1)
        self.columns |= set(mask.reshape(-1, mask.shape[-1]).any(0).nonzero().flatten().tolist())
        self.outlier_values += taken

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio of the output in dB; infinite without error, None without signal."""
        return decibels(self.signal, self.noise)

    def details(self, graph: int, node: str, codes: Tensor, weight_scale: Tensor) -> Details:
        """codes: int8[N, K] and weight_scale: float32[N] or [N, groups] of the quantized weight."""
        peaks = torch.zeros(0) if self.peaks is None else self.peaks
        kept = max(_PEAKS_KEPT // 4, min(len(self.columns), _PEAKS_KEPT))
        values, columns = peaks.sort(descending=True, stable=True)
        largest = zip(columns[:kept].tolist(), values[:kept].tolist(), strict=True)
        return Details(
            graph,
            node,
            levels(self.counts, torch.cat([part.flatten() for part in self.scales])),
            levels(level_counts(codes), weight_scale),
            self.outlier_values,
            tuple(largest),
        )


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise) of two energies; infinite without noise, None without signal."""
    if signal == 0.0:
        return None
    return float("inf") if noise == 0.0 else 10.0 * float(torch.tensor(signal / noise, dtype=torch.float64).log10())


def level_counts(codes: Tensor) -> Tensor:
    """How many int8 codes have each value from -127 to 127: int64[255]."""
    counts = torch.zeros(LEVELS, dtype=torch.int64)
    for part in codes.reshape(-1).split(_ELEMENTS_AT_ONCE):
        counts += torch.bincount(part.to(torch.int64) + INT8_MAX, minlength=LEVELS).cpu()
    return counts


def levels(counts: Tensor, scales: Tensor) -> Levels | None:
    """A histogram of int64[255] counts; None where no scale is finite."""
    scales = scales[scales.isfinite()]
    if not len(scales):
        return None
    low, middle, high = (float(value) for value in (scales.min(), scales.median(), scales.max()))
    return Levels(tuple(counts.tolist()), (low, middle, high))
