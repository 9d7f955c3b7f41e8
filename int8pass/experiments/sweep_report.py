"""A sweep on the terminal and as a picture of error against speed."""

from pathlib import Path

from rich import box
from rich.table import Table

from int8pass.bench.charts import figure, save
from int8pass.bench.tables import duration
from int8pass.experiments.sweep import Sweep, SweepRow

_MARKERS = "osD^vP*X<>"
_LEAST_ERROR = 1e-12  # where a logarithmic axis can still show it


def table(sweep: Sweep) -> Table:
    """A row a candidate; those that no other beats in both error and time are marked."""
    best = sweep.best
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("scheme", no_wrap=True)
    for heading in ("threshold", "relative error", "1 - cosine", "time/float", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in sweep.rows:
        shown.add_row(
            row.scheme,
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
    """Mean 1 - cosine over time: a line for each scheme with thresholds, a point for each other one."""
    made, (axis,) = figure(10.0, 6.0)
    for scheme, marker in zip(dict.fromkeys(row.scheme for row in sweep.rows), _MARKERS, strict=False):
        rows = [row for row in sweep.rows if row.scheme == scheme]
        axis.plot([row.time for row in rows], [_height(row) for row in rows], marker=marker, label=scheme, linewidth=1)
        for row in rows:
            if row.threshold is not None:
                axis.annotate(
                    f"{row.threshold:g}", (row.time, _height(row)), (6, 4), textcoords="offset points", fontsize=9
                )
    axis.axvline(1.0, color="black", linewidth=1, linestyle="--")
    axis.set_yscale("log")
    axis.margins(0.08)
    axis.set_xlabel("time / float model's (dashed: as fast as float); numbers: thresholds", fontsize=11)
    axis.set_ylabel("mean 1 - cosine of the outputs to float", fontsize=11)
    axis.set_title(f"{title}: error against speed, lower left is better", fontsize=12)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(made, path)


def _height(row: SweepRow) -> float:
    return max(row.cosine_error, _LEAST_ERROR)
