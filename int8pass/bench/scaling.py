"""`int8pass bench scaling`: how the cost of a Linear grows with M, N, K, and that of a graph with its number of layers.

Each axis varies alone; the others stay at 1024 x 1024 and 64 rows. The slope is that of a straight line through
(log size, log seconds) over the larger half of the sizes, where the fixed cost of a call no longer hides the growth:
1.0 is linear growth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from int8pass.bench.linear import run_point
from int8pass.bench.linear_case import Point, copies_needed
from int8pass.bench.linear_peers import CONTESTANTS
from int8pass.bench.measure import Progress, chosen
from int8pass.bench.results import BASELINE, Case, Verdict

WIDTH = 1024
ROWS = 64
AXES = {
    "M": (1, 4, 16, 64, 256, 1024),
    "N": (256, 512, 1024, 2048, 4096, 8192),
    "K": (256, 512, 1024, 2048, 4096, 8192),
    "layers": (1, 2, 4, 8, 16, 32),
}
QUICK_AXES = {"M": (1, 4), "layers": (1, 2)}
QUICK_WIDTH = 64
PEERS = ("float32-inductor",)
_LINEAR_SLOPE = 1.15  # a slope measured on a busy machine is not exact


@dataclass(frozen=True)
class ScalingSettings:
    """axes: sizes of each; width: N and K where they stay; peers: globs of linear_peers.CONTESTANTS."""

    axes: Mapping[str, Sequence[int]]
    width: int = WIDTH
    rounds: int = 10
    dtype: torch.dtype = torch.float32
    threads: int = 1
    peers: Sequence[str] = PEERS


def run_scaling(settings: ScalingSettings, progress: Progress = lambda message: None) -> tuple[Case, ...]:
    """Measure every size of every axis; facts: axis and size. Raises ConfigError for a glob without match."""
    contestants = chosen(CONTESTANTS, settings.peers, always=[BASELINE])
    cases = []
    for axis, sizes in settings.axes.items():
        for size in sizes:
            at = f"{axis}={size}"
            found = run_point(
                _point(axis, size, settings),
                contestants,
                settings.rounds,
                lambda text, at=at: progress(f"{at}: {text}"),
            )
            facts = {**found.facts, "axis": axis, "size": size}
            cases.append(Case(at, facts, found.measurements))
    return tuple(cases)


def _point(axis: str, size: int, settings: ScalingSettings) -> Point:
    varied = {axis: size}
    in_features, out_features = varied.get("K", settings.width), varied.get("N", settings.width)
    layers = varied.get("layers", 4)
    copies = max(layers, copies_needed(in_features, out_features, largest=32))
    rows = varied.get("M", ROWS)
    return Point(in_features, out_features, rows, settings.dtype, copies, settings.threads, layers, warm=False)


def seconds(case: Case, name: str) -> float:
    """Median seconds of a Linear, or on the axis of layers of the whole graph."""
    return case.median(name) * (case.facts["layers_a_call"] if case.facts["axis"] == "layers" else 1)


def slope(cases: Sequence[Case], name: str) -> float:
    """Slope of log seconds over log size, over the larger half of the cases of one axis; NaN without figures."""
    upper = sorted(cases, key=lambda case: case.facts["size"])[len(cases) // 2 - 1 :]
    values = np.array([[case.facts["size"], seconds(case, name)] for case in upper])
    if len(upper) < 2 or np.isnan(values).any():
        return float("nan")
    return float(np.polyfit(*np.log(values).T, 1)[0])


def by_axis(cases: Sequence[Case]) -> dict[str, list[Case]]:
    axes = dict.fromkeys(case.facts["axis"] for case in cases)
    return {axis: [case for case in cases if case.facts["axis"] == axis] for axis in axes}


def judge(cases: Sequence[Case]) -> tuple[Verdict, ...]:
    """Whether int8mixed's cost grows no faster than linearly along each axis."""
    verdicts = []
    for axis, found in by_axis(cases).items():
        value = slope(found, BASELINE)
        passed = None if np.isnan(value) else value <= _LINEAR_SLOPE
        verdicts.append(Verdict(f"linear growth with {axis}", f"slope <= {_LINEAR_SLOPE}", value, value, passed))
    return tuple(verdicts)
