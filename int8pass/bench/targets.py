"""The speed that this backend owes its user beside each peer on single Linears, as lines that pass or fail."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from int8pass.bench.results import BASELINE, Case, Verdict
from int8pass.bench.timing import geometric_mean

BARE = ("bare-onednn", "bare-fbgemm", "bare-int_mm")
_WIDE = 4096
_DECODE = 16  # rows


def _everywhere(case: Case) -> bool:
    return True


def _many_rows(case: Case) -> bool:
    return case.facts["rows"] >= 128


def _one_row(case: Case) -> bool:
    return case.facts["rows"] == 1


@dataclass(frozen=True)
class Target:
    """ratio: what is judged at a point, at least `least`; by: the geometric "mean", or the "worst" point."""

    text: str
    ratio: Callable[[Case], float]
    least: float
    by: str = "mean"
    where: Callable[[Case], bool] = _everywhere

    def judge(self, cases: Sequence[Case]) -> Verdict:
        """The verdict over the cases that the target is about; `passed` is None where none has figures."""
        found = [value for case in cases if self.where(case) and not math.isnan(value := self.ratio(case))]
        mean, worst = geometric_mean(found), min(found, default=math.nan)
        judged = mean if self.by == "mean" else worst
        rule = f"{'geometric mean' if self.by == 'mean' else 'every point'} >= {self.least:.3g}"
        return Verdict(self.text, rule, mean, worst, None if math.isnan(judged) else judged >= self.least)


def peer(name: str) -> Callable[[Case], float]:
    """Time of a peer over that of int8mixed."""
    return lambda case: case.ratio(name)


def bare(case: Case) -> float:
    """Time of the fastest bare int8 product at this point over that of int8mixed; NaN where none ran."""
    return min((value for name in BARE if not math.isnan(value := case.ratio(name))), default=math.nan)


def without_branch(name: str) -> Callable[[Case], float]:
    """Time at threshold 0 over that of a contestant with the branch."""
    return lambda case: case.ratio("int8mixed-t0", name)


TARGETS = (
    Target("2.0x bitsandbytes", peer("bitsandbytes"), 2.0),
    Target("never slower than bitsandbytes", peer("bitsandbytes"), 1.0, by="worst"),
    Target("1.3x torchao", peer("torchao"), 1.3),
    Target("1.1x torch quantize_dynamic", peer("quantize_dynamic"), 1.1),
    Target("4x Inductor float32", peer("float32-inductor"), 4.0),
    Target("1.6x Inductor bfloat16", peer("bfloat16-inductor"), 1.6),
    Target(
        "2.0x Inductor bfloat16, M <= 16",
        peer("bfloat16-inductor"),
        2.0,
        where=lambda case: case.facts["rows"] <= _DECODE,
    ),
    Target("0.9 of the bare int8 product's rate, M >= 128", bare, 0.9, by="worst", where=_many_rows),
    Target(
        "0.85 of the bare int8 product's rate, M = 1, width >= 4096",
        bare,
        0.85,
        by="worst",
        where=lambda case: _one_row(case) and min(case.facts["in_features"], case.facts["out_features"]) >= _WIDE,
    ),
    Target("outlier branch <= 5%, M >= 128", without_branch(BASELINE), 1 / 1.05, by="worst", where=_many_rows),
    Target("outlier branch <= 10%, M = 1", without_branch(BASELINE), 1 / 1.1, by="worst", where=_one_row),
    Target("outlier branch <= 3% where x has none", without_branch("int8mixed-clean"), 1 / 1.03, by="worst"),
)


def judge(cases: Sequence[Case]) -> tuple[Verdict, ...]:
    """All targets, in order."""
    return tuple(target.judge(cases) for target in TARGETS)
