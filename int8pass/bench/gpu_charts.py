"""Charts of the GPU benchmark: speed over 16-bit cuBLAS against width, beside the paper's."""

import math
from collections.abc import Sequence
from pathlib import Path

from int8pass.bench.charts import figure, save
from int8pass.bench.gpu_cases import WIDTHS
from int8pass.bench.gpu_contestants import FLOAT_EAGER
from int8pass.bench.results import Case
from int8pass.bench.tables import names

# LLM.int8() (arXiv 2208.07339), Table 5: its speed over 16-bit, at WIDTHS
PAPER = (0.14, 0.20, 0.36, 0.51, 0.64, 0.86, 1.22, 1.81)
_FEW_ROWS = 16


def width_chart(cases: Sequence[Case], title: str, path: Path) -> Path:
    """One panel for each number of rows: speed of each contestant over eager 16-bit, against the input width."""
    rows = list(dict.fromkeys(case.facts["M"] for case in cases))
    made, axes = figure(6.0 * len(rows), 5.0, len(rows))
    made.suptitle(title, fontsize=13)
    for axis, count in zip(axes, rows, strict=True):
        here = sorted((case for case in cases if case.facts["M"] == count), key=lambda case: case.facts["K"])
        widths = [case.facts["K"] for case in here]
        for name in names(here):
            speeds = [1 / case.ratio(name, FLOAT_EAGER) for case in here]
            if not all(math.isnan(speed) for speed in speeds):
                axis.plot(widths, speeds, marker="o", label=name)
        if count > _FEW_ROWS:
            axis.plot(WIDTHS, PAPER, color="black", linestyle=":", label="the paper's LLM.int8()")
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [str(width) for width in widths], fontsize=8)
        axis.minorticks_off()
        axis.set_title(f"M = {count}", fontsize=11)
        axis.set_xlabel("K, input features (N = 4 K)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("speed / 16-bit cuBLAS")
    axes[0].legend(fontsize=8)
    return save(made, path)
