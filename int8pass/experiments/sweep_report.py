"""A sweep on the terminal and as a picture of error against speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from int8pass.bench.charts import figure, save
from int8pass.bench.tables import duration
from int8pass.experiments.sweep import Sweep, SweepRow

_MARKERS, _COLORS = "osD^vP*X<>", 10
_LEAST_ERROR = 1e-12  # where a logarithmic axis can still show it


def table(sweep: Sweep) -> Table:
    """A row a candidate; those that no other beats in both error and time are marked."""
    best = sweep.best
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("scheme", no_wrap=True)
    shown.add_column("activations", no_wrap=True)
    for heading in ("threshold", "relative error", "1 - cosine", "time/float", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in sweep.rows:
        shown.add_row(
            row.scheme,
            row.activations,
            "" if row.threshold is None else f"{row.threshold:g}",
            f"{row.relative_error:.2e}",
            f"{max(row.cosine_error, 0.0):.2e}",
            f"{row.time:.2f}",
            "best for its time" if row in best else "",
        )
    return shown


def summary(sweep: Sweep) -> str:
    """What the columns are, and what was measured."""
    return (
        f"errors: of the outputs, against float. time: lowering {sweep.lowering!r}, median over "
        f"{len(sweep.float_seconds)} interleaved rounds; the float model took {duration(sweep.float_time)}"
    )


def plot(sweep: Sweep, path: Path, title: str) -> Path:
    """Mean 1 - cosine over time: a line for each scheme with thresholds, a point for each other one.

    Static activations: the scheme's marker and colour, hollow, with a dashed line.
    """
    made, (axis,) = figure(10.0, 6.0)
    schemes = list(dict.fromkeys(row.scheme for row in sweep.rows))
    for activations, style in (("dynamic", {}), ("static", {"linestyle": "--", "markerfacecolor": "none"})):
        for number, scheme in enumerate(schemes):
            rows = [row for row in sweep.rows if (row.scheme, row.activations) == (scheme, activations)]
            if rows:
                marker, color = _MARKERS[number % len(_MARKERS)], f"C{number % _COLORS}"
                label = scheme if activations == "dynamic" else f"{scheme}, static"
                _line(axis, rows, {"marker": marker, "color": color, "label": label, "linewidth": 1, **style})
    axis.axvline(1.0, color="black", linewidth=1, linestyle=":")
    axis.set_yscale("log")
    axis.margins(0.08)
    axis.set_xlabel("time / float model's (dotted: as fast as float); numbers: thresholds", fontsize=11)
    axis.set_ylabel("mean 1 - cosine of the outputs to float", fontsize=11)
    axis.set_title(f"{title}: error against speed, lower left is better", fontsize=12)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(made, path)


def _line(axis: Any, rows: Sequence[SweepRow], style: dict[str, Any]) -> None:
    axis.plot([row.time for row in rows], [_height(row) for row in rows], **style)
    for row in rows:
        if row.threshold is not None:
            place = (row.time, _height(row))
            axis.annotate(f"{row.threshold:g}", place, (6, 4), textcoords="offset points", fontsize=9)


def _height(row: SweepRow) -> float:
    return max(row.cosine_error, _LEAST_ERROR)
