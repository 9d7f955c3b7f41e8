"""Charts of a run as PNG files, by matplotlib: bars of the ratios a case, lines over sizes for scaling."""

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from int8pass.bench.results import BASELINE, Case
from int8pass.bench.scaling import by_axis, seconds, slope
from int8pass.bench.tables import duration, names, times
from int8pass.errors import MissingDependencyError

_DPI = 100
_WIDTH = 12.0  # inches: 1200 px
_AXIS_LABELS = {
    "M": "M, rows of x",
    "N": "N, output features",
    "K": "K, input features",
    "layers": "layers in one graph",
}
_OURS, _PEER, _SLOWER = "#1f77b4", "#9a9a9a", "#d62728"


def require_matplotlib() -> None:
    """Raises MissingDependencyError, before a long run rather than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("charts need matplotlib: pip install 'int8pass[bench]'")


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure without a display, and its axes [1, columns]."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system

    made = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    return made, made.subplots(1, columns, squeeze=False)[0]


def save(made: Any, path: Path) -> Path:
    """Write a figure as PNG, whole and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    made.savefig(temporary, format="png")
    os.replace(temporary, path)
    return path


def ratio_chart(cases: Sequence[Case], title: str, path: Path) -> Path:
    """A row of bars a case: each contestant's time over int8mixed's, on a logarithmic axis from 1."""
    shown = [name for name in names(cases) if any(not math.isnan(case.ratio(name)) for case in cases)]
    height = max(3.0, 1.4 + 0.32 * len(shown))
    made, axes = figure(_WIDTH, height, len(cases))
    made.suptitle(f"{title}\ntime / {BASELINE}'s: grey is slower than {BASELINE}, red is faster", fontsize=13)
    for axis, case in zip(axes, cases, strict=True):
        _bars(axis, case, shown, labelled=axis is axes[0])
    return save(made, path)


def _bars(axis: Any, case: Case, shown: Sequence[str], labelled: bool) -> None:
    values = [case.ratio(name) for name in shown]
    drawn = [1.0 if math.isnan(value) else value for value in values]
    colors = [_color(name, value) for name, value in zip(shown, drawn, strict=True)]
    axis.barh(range(len(shown)), [value - 1 for value in drawn], left=1.0, color=colors, height=0.72)
    axis.set_xscale("log")
    low, high = min((*drawn, 0.8)), max((*drawn, 1.25))
    span = math.log(high / low)
    axis.set_xlim(low * math.exp(-0.4 * span), high * math.exp(0.45 * span))  # room for the numbers
    for position, (value, end) in enumerate(zip(values, drawn, strict=True)):
        side = "left" if end >= 1 else "right"
        text = "not run" if math.isnan(value) else times(value)
        axis.annotate(text, (end, position), (4 if side == "left" else -4, 0), textcoords="offset points", ha=side,
                      va="center", fontsize=9)  # fmt: skip
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_yticks(range(len(shown)), shown if labelled else [""] * len(shown), fontsize=10)
    axis.invert_yaxis()
    axis.set_title(f"{case.name}\n{BASELINE}: {duration(case.median(BASELINE))}", fontsize=10)
    axis.set_xlabel(f"time / {BASELINE}'s", fontsize=10)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    axis.spines[["top", "right"]].set_visible(False)


def growth_chart(cases: Sequence[Case], title: str, path: Path) -> Path:
    """Seconds over size, one panel an axis, both logarithmic, with the slope of each contestant."""
    axes_found = by_axis(cases)
    made, axes = figure(_WIDTH, 4.5, len(axes_found))
    made.suptitle(title, fontsize=13)
    for axis, (name, found) in zip(axes, axes_found.items(), strict=True):
        _lines(axis, name, found)
    axes[0].set_ylabel("milliseconds", fontsize=10)
    return save(made, path)


def _lines(axis: Any, name: str, cases: Sequence[Case]) -> None:
    sizes = [case.facts["size"] for case in cases]
    for contestant in names(cases):
        values = [seconds(case, contestant) * 1e3 for case in cases]
        if all(math.isnan(value) for value in values):
            continue
        label = f"{contestant}: slope {slope(cases, contestant):.2f}"
        axis.loglog(sizes, values, marker="o", label=label, base=10)
    axis.set_xticks(sizes, [str(size) for size in sizes], fontsize=9)
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel(_AXIS_LABELS[name], fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="upper left")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * 3)  # room for the legend


def _color(name: str, value: float) -> str:
    if name.startswith(BASELINE):
        return _OURS
    return _PEER if value >= 1 else _SLOWER
