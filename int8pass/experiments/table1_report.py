"""Table 1 in miniature on the terminal and as a picture."""

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from int8pass.bench.charts import figure, save
from int8pass.experiments.table1 import FLOAT32, STATEMENT, Table1
from int8pass.quantization.scheme import DEFAULT

_LEAST_INCREASE = 1e-5  # what the picture shows as no increase at all
_MARKERS = "osD^vPX*<>"


def table(found: Table1) -> RenderableType:
    """Perplexities, a row a scheme and a column a planting, and what they were measured on."""
    shown = Table(box=box.SIMPLE_HEAD, title="perplexity per byte on held-out source of the standard library")
    shown.add_column("(outlier features, times larger)")
    for planting in found.settings.plantings:
        shown.add_column(str(planting), justify="right", no_wrap=True)
    for row in found.rows:
        shown.add_row(row, *_cells(found, row))
    return Group(shown, Text(STATEMENT))


def _cells(found: Table1, row: str) -> Iterator[str]:
    """The increase stands below the perplexity, so that five columns fit 80 characters."""
    for planting in found.settings.plantings:
        value = f"{found.perplexity(row, planting):.4f}"
        yield value if row == FLOAT32.name else f"{value}\n[dim]{found.increase(row, planting):+.2%}[/]"


def plot(found: Table1, path: Path) -> Path:
    """Increase of perplexity over float32, in percent on a logarithmic axis, a line a scheme."""
    plantings = found.settings.plantings
    made, (axis,) = figure(12.0, 6.0)
    rows = [row for row in found.rows if row != FLOAT32.name]
    for row, marker in zip(rows, _MARKERS, strict=False):
        heights = [100 * max(found.increase(row, planting), _LEAST_INCREASE) for planting in plantings]
        bold = {"linewidth": 2.5, "markersize": 8} if row.startswith(DEFAULT.name) else {"linewidth": 1.2}
        axis.plot(range(len(plantings)), heights, marker=marker, label=row, **bold)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axis.set_xticks(range(len(plantings)), [_label(planting.features, planting.scale) for planting in plantings])
    axis.set_ylabel("perplexity above float32's", fontsize=11)
    axis.set_title(
        "Table 1 of LLM.int8() in miniature: planted outlier features, perplexity of each scheme\n"
        f"(what is below {100 * _LEAST_INCREASE:g} % is drawn there)", fontsize=12,
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(made, path)


def _label(features: int, scale: float) -> str:
    if not features:
        return "none planted"
    return f"{features} feature{'s' if features > 1 else ''}\n{scale:g} times larger"
