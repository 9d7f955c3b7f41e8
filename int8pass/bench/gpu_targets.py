"""What int8mixed owes its user on a GPU, as lines that pass or fail."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from int8pass.bench.gpu_contestants import FLOAT_EAGER
from int8pass.bench.results import BASELINE, Case, Verdict
from int8pass.bench.targets import Target, peer, without_branch

_DECODE_WIDTH = 4096


def _prefill(least_width: int, most_width: int | None = None) -> Callable[[Case], bool]:
    """Linears of many rows whose K is at least `least_width`, and at most `most_width`."""
    most = math.inf if most_width is None else most_width
    return lambda case: case.facts.get("M", 0) >= 2048 and least_width <= case.facts["K"] <= most


def _decode(case: Case) -> bool:
    """Few rows of a K whose weights take longer to read than a graph's node to launch: see bench/README.md."""
    return 1 <= case.facts.get("M", 0) <= 16 and case.facts["K"] >= _DECODE_WIDTH


def _decode_narrow(case: Case) -> bool:
    return 1 <= case.facts.get("M", 0) <= 16 and case.facts["K"] < _DECODE_WIDTH


def _share(case: Case) -> float:
    """int8mixed's share of the measured limit; NaN where it was not measured."""
    return case.facts["rates"].get(BASELINE, {}).get("share", math.nan)


# int8mixed finds its outlier columns' weights in the cache, as a model does whose outlier features stay the same;
# int8mixed-moving, in the same tables, finds none and is not judged.
TARGETS = (
    Target("1.0x 16-bit cuBLAS, Table 5, width >= 1024", peer(FLOAT_EAGER), 1.0, "worst", _prefill(1024)),
    Target("1.5x 16-bit cuBLAS, Table 5, width >= 4096", peer(FLOAT_EAGER), 1.5, "worst", _prefill(4096)),
    Target("1.7x 16-bit cuBLAS, Table 5, width 12288", peer(FLOAT_EAGER), 1.7, "worst", _prefill(12288)),
    Target("0.85 of the bare int8 product's rate, M >= 2048", peer("bare-int_mm"), 0.85, "worst", _prefill(0)),
    Target("4x bitsandbytes, M >= 2048", peer("bitsandbytes"), 4.0, "worst", _prefill(0)),
    Target("1.6x 16-bit cuBLAS, M <= 16, width >= 4096", peer(FLOAT_EAGER), 1.6, "worst", _decode),
    Target("0.75 of measured memory bandwidth, M <= 16, width >= 4096", _share, 0.75, "worst", _decode),
    Target("branch <= 5%, 8 columns, K = 4096", without_branch(BASELINE), 1 / 1.05, "worst", _prefill(4096, 4096)),
    Target("branch <= 15%, 64 columns, K = 4096", without_branch("int8mixed-64"), 1 / 1.15, "worst",
           _prefill(4096, 4096)),
)  # fmt: skip
# shown beside them, and not judged
SHOWN = (
    Target("16-bit cuBLAS, M <= 16, width < 4096", peer(FLOAT_EAGER), 1.6, "worst", _decode_narrow),
    Target("share of measured memory bandwidth, M <= 16, width < 4096", _share, 0.75, "worst", _decode_narrow),
)


def judge(cases: Sequence[Case]) -> tuple[Verdict, ...]:
    """All targets, in order, then what is shown beside them: `passed` is None."""
    shown = (dataclasses.replace(target.judge(cases), rule="shown only", passed=None) for target in SHOWN)
    return (*(target.judge(cases) for target in TARGETS), *shown)
