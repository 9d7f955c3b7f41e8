"""Whether quantization pays behind a norm: the one CUDA kernel beside Inductor's norm and the kernels that quantize."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from int8pass.bench.gpu_cases import LinearShape
from int8pass.bench.gpu_check import NORM, QUANTIZE, Check, why_not
from int8pass.bench.gpu_contestants import compiled
from int8pass.bench.gpu_graphs import captured, device_clock, nothing
from int8pass.bench.measure import Prepared, Unavailable, compiling, measure
from int8pass.bench.tables import duration, times
from int8pass.bench.timing import median, ratio
from int8pass.kernels.cuda import fused, norms
from int8pass.kernels.cuda.comparisons import Comparison

APART, TOGETHER = "apart", "in one"
_EPS, _THRESHOLD, _OUTLIERS, _MOST_COPIES = 1e-5, 6.0, 8, 64

Operands = tuple[Tensor, Tensor | None, Tensor, Tensor | None]  # x, residual, weight, bias


@dataclass(frozen=True)
class NormKind:
    """centered: LayerNorm, else RMSNorm; added: a residual before it; outliers: as `fused.outlier_kind` counts them."""

    centered: bool
    added: bool
    outliers: int

    def __str__(self) -> str:
        norm = "LayerNorm" if self.centered else "RMSNorm"
        return f"{'add, ' if self.added else ''}{norm}, {norms.OUTLIERS[self.outliers]}"

    def rule(self, features: int) -> tuple:
        """threshold, per_token and the columns of a profile, as the ops take them."""
        if self.outliers == fused.LISTED:
            return 0.0, False, tuple(range(0, features, max(1, features // _OUTLIERS)))[:_OUTLIERS]
        return 0.0 if self.outliers == fused.NONE else _THRESHOLD, self.outliers == fused.TOKEN


KINDS = tuple(NormKind(*each) for each in itertools.product((False, True), (True, False), range(len(norms.OUTLIERS))))


class Apart(nn.Module):
    """What a model runs without the one kernel."""

    def __init__(self, kind: NormKind, features: int) -> None:
        super().__init__()
        self.centered, self.rule = kind.centered, kind.rule(features)

    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        total = x if residual is None else x + residual
        norm = functools.partial(F.layer_norm, bias=bias) if self.centered else F.rms_norm
        y = norm(total, x.shape[-1:], weight=weight, eps=_EPS)
        parts = (y, *fused.cuda_quantize(y, *self.rule))
        return parts if residual is None else (*parts, total)


@dataclass(frozen=True)
class _Way:
    name: str
    call: Callable[..., object]


class Stopwatch:
    """Times both ways as CUDA graphs, interleaved, on inputs of which so many go round that they come from memory.

    checks: of the kernels; what is wrong is not timed.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, rounds: int, checks: Sequence[Check] = ()) -> None:
        self.device, self.dtype, self._rounds = device, dtype, rounds
        self._wrong = {APART: why_not(checks, dtype, (QUANTIZE,)), TOGETHER: why_not(checks, dtype, (NORM,))}
        self._cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0

    def __call__(self, rows: int, features: int, kind: NormKind) -> tuple:
        """The measurements of APART and TOGETHER: seconds a norm, or why there are none."""
        held = functools.cache(lambda: self._operands(rows, features, kind))

        def together(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
            rest = (weight, bias, _EPS, kind.centered, *kind.rule(features))
            return fused.cuda_norm_quantize(x, residual, *rest)

        def prepare(way: _Way) -> Prepared:
            def run() -> None:
                for operands in held():
                    way.call(*operands)

            if self._wrong[way.name]:
                raise Unavailable(self._wrong[way.name])
            way.call(*held()[0])
            return Prepared(captured(run, self.device), len(held()))

        with compiling():
            ways = (_Way(APART, compiled()(Apart(kind, features))), _Way(TOGETHER, together))
            return measure(ways, prepare, self._rounds, clock=device_clock(self.device), before=nothing)

    def _operands(self, rows: int, features: int, kind: NormKind) -> list[Operands]:
        x = LinearShape(rows, features, features).input(_OUTLIERS, self.device, self.dtype)
        ones, zeros = torch.ones_like(x[0]), torch.zeros_like(x[0]) if kind.centered else None
        copies = max(1, min(_MOST_COPIES, -(-2 * self._cache_bytes // (x.numel() * x.itemsize))))
        return [(x.clone(), x.clone() if kind.added else None, ones, zeros) for _ in range(copies)]


def measure_norms(
    stopwatch: Stopwatch, sizes: Sequence[tuple[int, int]], console: Console, kinds: Sequence[NormKind] = KINDS
) -> list[Comparison]:
    """Time both ways for each M and K of `sizes`, print and keep which is faster.

    What is kept, after each comparison, is used from then on; one of which a way failed is left out.
    Raises OutputError.
    """
    compared, kept = [], None
    for rows, features in sizes:
        table = Table(title=f"{features} features, M={rows}: a norm and the quantization of it", title_justify="left",
                      box=box.SIMPLE_HEAD)  # fmt: skip
        for heading in ("norm, outliers", APART, TOGETHER, f"speed / {APART}"):
            table.add_column(heading, no_wrap=True)
        table.add_column("", overflow="fold")
        for kind in kinds:
            found = stopwatch(rows, features, kind)
            speed = ratio(*(way.seconds for way in found))
            failures = "; ".join(f"{way.name}: {way.failure}" for way in found if way.failure)
            seconds = [duration(median(way.seconds)) for way in found]
            table.add_row(str(kind), *seconds, times(speed), escape(failures))
            if not failures:
                size = norms.Size.of(rows, features, stopwatch.dtype, kind.outliers, kind.centered, kind.added)
                compared.append(Comparison(size, speed))
                kept = norms.COMPARISONS.save(stopwatch.device, compared[-1:])
        console.print(table)
    if kept:
        console.print(f"kept in {kept}, and used from now on", highlight=False)
    return compared
