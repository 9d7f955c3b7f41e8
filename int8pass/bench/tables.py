"""Results as rich tables: one a case, one of geometric means, one of targets."""

import math
from collections.abc import Iterable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from int8pass.bench.results import BASELINE, Case, Measurement, Run, Verdict
from int8pass.bench.scaling import seconds, slope
from int8pass.bench.timing import geometric_mean, median

NOTHING = "-"
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def duration(seconds: float) -> str:
    """Three digits and a unit: "1.23 ms"; "-" for NaN."""
    if math.isnan(seconds):
        return NOTHING
    scale, unit = next((pair for pair in _UNITS if seconds >= pair[0]), _UNITS[-1])
    return f"{seconds / scale:.3g} {unit}"


def times(value: float) -> str:
    """A ratio: "1.50x"; "-" for NaN."""
    return NOTHING if math.isnan(value) else f"{value:.2f}x"


def case_table(case: Case) -> Table:
    """Every contestant of a case: time, time over int8mixed's (above 1: int8mixed is faster), error."""
    has_warm = any(found.warm for found in case.measurements)
    table = Table(title=f"{case.name}  [dim]{_facts(case)}[/]", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("contestant", no_wrap=True)
    warm = ["warm", "/ warm"] if has_warm else []
    for heading in (
        f"time a {case.facts.get('unit', 'layer')}",
        f"/ {BASELINE}",
        *warm,
        str(case.facts.get("error", "error")),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for found in case.measurements:
        table.add_row(*_cells(case, found, has_warm), style="bold" if found.name == BASELINE else None)
    return table


def _cells(case: Case, found: Measurement, has_warm: bool) -> Iterable[str]:
    if found.failure:
        blank = [""] * (5 if has_warm else 3)
        return (found.name, *blank, f"[yellow]{escape(found.failure)}[/]")
    warm = (duration(median(found.warm)), times(case.warm_ratio(found.name))) if has_warm else ()
    error = NOTHING if math.isnan(found.error) else f"{found.error:.1e}"
    return (
        found.name,
        duration(median(found.seconds)),
        times(case.ratio(found.name)),
        *warm,
        error,
        f"[dim]{escape(found.note)}[/]",
    )


def _facts(case: Case) -> str:
    return ", ".join(f"{key} {value}" for key, value in case.facts.items() if key in ("dtype", "copies", "model"))


def names(cases: Sequence[Case]) -> list[str]:
    """Every contestant of the cases, in order."""
    return list(dict.fromkeys(found.name for case in cases for found in case.measurements))


def mean_table(cases: Sequence[Case], by: str) -> Table:
    """Geometric means of time over int8mixed's, for each value of the fact `by` and over all cases."""
    groups = list(dict.fromkeys(case.facts[by] for case in cases))
    title = f"time / {BASELINE}'s, geometric means: above 1, {BASELINE} is faster"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("contestant", no_wrap=True)
    for group in (*groups, "overall", "worst"):
        table.add_column(f"{by} {group}" if group in groups else str(group), justify="right", no_wrap=True)
    for name in names(cases):
        values = [case.ratio(name) for case in cases]
        means = [geometric_mean(case.ratio(name) for case in cases if case.facts[by] == group) for group in groups]
        worst = min((value for value in values if not math.isnan(value)), default=math.nan)
        table.add_row(name, *map(times, (*means, geometric_mean(values), worst)))
    return table


def growth_table(axis: str, cases: Sequence[Case]) -> Table:
    """Seconds of each contestant along one axis of the scaling benchmark, and the slope."""
    table = Table(title=f"time over {axis}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("contestant", no_wrap=True)
    for heading in (*(str(case.facts["size"]) for case in cases), "slope"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in names(cases):
        value = slope(cases, name)
        cells = (duration(seconds(case, name)) for case in cases)
        table.add_row(name, *cells, NOTHING if math.isnan(value) else f"{value:.2f}")
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A line a target: pass, fail, or nothing to judge."""
    table = Table(title="targets", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("target", "rule", "mean", "worst", ""):
        table.add_column(heading, no_wrap=heading != "target")
    shown = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]not measured[/]"}
    for found in verdicts:
        values = (NOTHING if math.isnan(value) else f"{value:.3f}" for value in (found.value, found.worst))
        judged = found.passed is not None or math.isnan(found.worst)
        table.add_row(found.target, found.rule, *values, shown[found.passed] if judged else "")
    return table


def machine_line(run: Run) -> str:
    """One line: CPU, instruction sets, threads, versions."""
    machine = run.machine
    cache = f"{machine['last_level_cache_bytes'] / 2**20:.0f} MiB last-level cache"
    installed = (f"{name} {version}" for name, version in machine["versions"].items() if version != "not installed")
    sets = " ".join(machine["instruction_sets"])
    return f"{machine['cpu']} ({sets}), {machine['threads']} threads, {cache}\n{', '.join(installed)}"
