"""`int8pass bench linear`: single Linears of several shapes and numbers of rows, every contestant in one run."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from int8pass.bench import bare_int8
from int8pass.bench.linear_case import Inputs, Point, copies_needed
from int8pass.bench.linear_peers import CONTESTANTS, Contestant
from int8pass.bench.measure import LIMIT_SECONDS, Prepared, Progress, chosen, compiling, measure, timed
from int8pass.bench.results import BASELINE, Case

SHAPES = ((768, 3072), (3072, 768), (4096, 4096), (4096, 11008))  # in_features, out_features
ROWS = (1, 16, 128, 512)
QUICK_SHAPES = ((64, 128),)
QUICK_ROWS = (1, 4)
QUICK_COPIES = 2


@dataclass(frozen=True)
class LinearSettings:
    """shapes: (in_features, out_features); rows: M; peers: globs, none means all; copies: at most so many layers."""

    shapes: Sequence[tuple[int, int]] = SHAPES
    rows: Sequence[int] = ROWS
    rounds: int = 10
    dtype: torch.dtype = torch.float32
    threads: int = 1
    peers: Sequence[str] = ()
    copies: int | None = None


def run_linear(settings: LinearSettings, progress: Progress = lambda message: None) -> tuple[Case, ...]:
    """Measure every point. Raises ConfigError for a glob that matches no contestant."""
    contestants = chosen(CONTESTANTS, settings.peers, always=[BASELINE])
    points = list(itertools.product(settings.shapes, settings.rows))
    cases = []
    for number, ((in_features, out_features), rows) in enumerate(points):
        copies = copies_needed(in_features, out_features, settings.copies)
        point = Point(in_features, out_features, rows, settings.dtype, copies, settings.threads)
        place = f"[{number + 1}/{len(points)}] {point.name}"
        cases.append(run_point(point, contestants, settings.rounds, lambda text, at=place: progress(f"{at}: {text}")))
    return tuple(cases)


def run_point(point: Point, contestants: Sequence[Contestant], rounds: int, progress: Progress) -> Case:
    """Measure one point."""
    with compiling():
        found = measure(contestants, lambda contestant: _prepare(contestant, point), rounds, progress)
    return Case(point.name, point.facts(), found)


def _prepare(contestant: Contestant, point: Point) -> Prepared:
    build = contestant.builder(point)
    runs = [build(layers) for layers in point.stacks]
    inputs = point.inputs(contestant.inputs)
    if contestant.dtype is not None:
        inputs = [[x.to(contestant.dtype) for x in xs] for xs in inputs]
    if contestant.loops:  # a call of one layer shows whether all of them would take too long
        (output,), seconds = timed(lambda: runs[0](inputs[0][:1]))
        if seconds > LIMIT_SECONDS:
            return Prepared(runs[0], error=_error(contestant, point, output), seconds=seconds)
    outputs = [run(inputs[0]) for run in runs]
    error = _error(contestant, point, outputs[0][0])
    _, seconds = timed(lambda: runs[0](inputs[0]))
    if seconds > LIMIT_SECONDS:
        return Prepared(runs[0], error=error, seconds=seconds / point.stack)
    warm = None
    if point.has_warm:
        same = build([point.stacks[0][0]] * point.stack)
        same(inputs[0])
        warm = _in_turn([same], inputs)
    return Prepared(_in_turn(runs, inputs), point.stack, warm, error)


def _in_turn(runs: Sequence[Callable[[Inputs], object]], inputs: Sequence[Inputs]) -> Callable[[], object]:
    """Each call takes the next stack and the next input."""
    stacks, turns = itertools.cycle(runs), itertools.cycle(inputs)
    return lambda: next(stacks)(next(turns))


def _error(contestant: Contestant, point: Point, output: object) -> float:
    value = torch.as_tensor(output)
    x = point.clean if contestant.inputs == "clean" else point.moving[0]
    if contestant.bare:
        return point.error(bare_int8.as_float(point, value), x, bias=False)
    return point.error(value, x)
