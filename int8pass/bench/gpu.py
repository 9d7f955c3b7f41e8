"""The GPU benchmark: check every kernel against float64, then time int8mixed beside its peers, in one run.

It runs on any CUDA machine, without a network. `quick` needs no GPU: there it only checks, in Triton's interpreter.
"""

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from int8pass.bench import gpu_targets, machine, tables
from int8pass.bench.charts import ratio_chart, require_matplotlib
from int8pass.bench.gpu_cases import DECODE_ROWS, PREFILL_ROWS, WIDTHS, BlockShape, LinearShape
from int8pass.bench.gpu_charts import width_chart
from int8pass.bench.gpu_check import Check, tasks, why_not
from int8pass.bench.gpu_check_processes import CHECK_SECONDS, Record, check_kernels, exit_on_sigterm
from int8pass.bench.gpu_contestants import CONTESTANTS, FLOAT_EAGER, Contestant
from int8pass.bench.gpu_limits import measure_limits
from int8pass.bench.gpu_measure import Bench
from int8pass.bench.measure import Unavailable, chosen
from int8pass.bench.results import BASELINE, Case, Run
from int8pass.errors import Int8PassError, MissingDependencyError, UnsupportedDeviceError
from int8pass.experiments.progress import progress_bar
from int8pass.files import write_text
from int8pass.kernels.cuda import fused

_PAST = 512  # tokens in the cache while one more is decoded
_LINEARS_ONLY = ("bare-int_mm", "int8mixed-64", "int8mixed-moving")  # blocks have outlier columns of their own


@dataclass(frozen=True)
class Plan:
    """What to run. folder: where JSON and charts go; peers: globs of contestants' names, none for all."""

    folder: Path
    widths: tuple[int, ...] = WIDTHS
    prefill_rows: tuple[int, ...] = PREFILL_ROWS
    decode_rows: tuple[int, ...] = DECODE_ROWS
    blocks: BlockShape | None = field(default_factory=BlockShape)
    dtype: torch.dtype = torch.float16
    rounds: int = 7
    peers: tuple[str, ...] = ()
    limits_side: int = 8192


class KernelCheckError(Int8PassError, AssertionError):
    """A kernel's result is not the float64 reference's; it was not timed."""


def require_cuda() -> torch.device:
    """The device to run on. Raises UnsupportedDeviceError without one."""
    if not torch.cuda.is_available():
        raise UnsupportedDeviceError(
            "this benchmark needs an NVIDIA GPU and a CUDA build of PyTorch; here torch.cuda.is_available() is False. "
            "--quick checks the kernels without one, in Triton's interpreter"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    fused.require_device(device)
    return device


def check(device: torch.device, large: bool, console: Console, seconds: float = CHECK_SECONDS) -> list[Check]:
    """Find, and print, how far each kernel is from float64. What is found is printed too where the check is ended.

    seconds: how long it may take on a GPU.
    """
    record = Record(tasks(large))
    try:
        with exit_on_sigterm(), progress_bar("checking", len(record.todo)) as advance:
            check_kernels(record, device, seconds, advance)
    finally:
        checks = record.checks()
        console.print(_check_table(checks))
    return checks


def require_right(checks: Sequence[Check]) -> None:
    """Raise KernelCheckError where a kernel is out of its bound, or raised an error."""
    if wrong := [each for each in checks if each.failure]:
        raise KernelCheckError("; ".join(f"{each.name} is wrong at {each.failure}" for each in wrong))


def _check_table(found: Iterable[Check]) -> Table:
    table = Table(title="kernels against float64", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("op", "cases", "largest error / bound"):
        table.add_column(heading, no_wrap=True)
    table.add_column("", overflow="fold")
    for each in found:
        table.add_row(each.name, str(each.cases), f"{each.worst:.2g}", escape(each.failure) or "right")
    return table


def run(plan: Plan, device: torch.device, console: Console, checks: Sequence[Check] | None = None) -> Run:
    """Measure everything in the plan and print it. gpu.json is in its folder after each case, gpu-*.png at the end.

    checks: of the kernels, None where they were not made: where one is wrong, int8mixed is a row with that reason.
    """
    wrong = why_not(checks or (), plan.dtype)
    contestants = [_refused(each, wrong) for each in chosen(CONTESTANTS, plan.peers, always=(BASELINE, FLOAT_EAGER))]
    began, started = time.perf_counter(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    limits = measure_limits(device, plan.dtype, plan.limits_side, copied=16 * plan.limits_side**2)
    console.print(
        f"measured limits: int8 {limits.int8_ops / 1e12:.4g} TOP/s, {plan.dtype} {limits.float_ops / 1e12:.4g} TOP/s, "
        f"memory {limits.bandwidth / 1e9:.4g} GB/s",
        highlight=False,
    )
    facts = {
        "device": _device_facts(device), "limits": vars(limits), "checked": _check_facts(checks), **machine.describe()
    }  # fmt: skip
    settings = {"widths": plan.widths, "rounds": plan.rounds, "dtype": str(plan.dtype)}
    with console.status("") as status:
        bench = Bench(device, plan.dtype, limits, plan.rounds, lambda message: status.update(message))
        cases: list[Case] = []
        for measure_case in _cases(plan, bench, contestants):
            cases.append(measure_case())
            seconds = time.perf_counter() - began
            result = Run("gpu", settings, facts, tuple(cases), gpu_targets.judge(cases), started, seconds)
            write_text(plan.folder / "gpu.json", result.to_json() + "\n")
            console.print(case_table(cases[-1]), f"[dim]after {seconds:.0f} s[/]")
    console.print(tables.verdict_table(result.verdicts))
    draw(result, plan.folder, console)
    return result


def _refused(contestant: Contestant, wrong: str) -> Contestant:
    """Of this package's, one that says what is wrong with its kernels, if anything is."""
    if not wrong or not contestant.name.startswith(BASELINE):
        return contestant

    def refuse(model: torch.nn.Module) -> Callable:
        raise Unavailable(wrong)

    return dataclasses.replace(contestant, build=refuse)


def _check_facts(checks: Sequence[Check] | None) -> Any:
    """For JSON, which has no infinity."""
    if checks is None:
        return "not in this run: --no-check"
    return [{**vars(each), "worst": each.worst if math.isfinite(each.worst) else str(each.worst)} for each in checks]


def draw(result: Run, folder: Path, console: Console) -> None:
    """Write the charts of a run to a folder, or print what is missing for them."""
    try:
        require_matplotlib()
    except MissingDependencyError as error:
        console.print(f"no charts: {error}; --draw makes them from gpu.json elsewhere", markup=False, highlight=False)
        return
    name = result.machine["device"]["name"]
    linears = [case for case in result.cases if "M" in case.facts]
    if linears:
        width_chart(linears, f"int8mixed on {name}: Linears of K to 4 K features", folder / "gpu-linears.png")
    if blocks := [case for case in result.cases if "blocks" in case.facts]:
        ratio_chart(blocks, f"int8mixed on {name}: decoder blocks", folder / "gpu-blocks.png")


def _cases(plan: Plan, bench: Bench, contestants: list) -> Iterable[Callable[[], Case]]:
    for rows in (*plan.prefill_rows, *plan.decode_rows):
        for width in plan.widths:
            shape = LinearShape(rows, width, 4 * width)
            yield lambda shape=shape: bench.linear(shape, contestants)
    whole = [each for each in contestants if each.name not in _LINEARS_ONLY]
    if plan.blocks is not None:
        for rows in plan.prefill_rows:
            yield lambda rows=rows: bench.blocks(plan.blocks, 1, rows, 0, whole)
        for batch in plan.decode_rows:
            yield lambda batch=batch: bench.blocks(plan.blocks, batch, 1, _PAST, whole)


def case_table(case: Case) -> Table:
    """Every contestant: device time, speed over eager float, roofline figures, error."""
    title = f"{case.name}  [dim]{case.facts['dtype']}, medians[/]"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("contestant", no_wrap=True)
    for heading in (f"time a {case.facts['unit']}", "speed / float", "TOP/s", "GB/s", "of limit", case.facts["error"]):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for found in case.measurements:
        if found.failure:
            table.add_row(found.name, *[""] * 6, escape(found.failure))
            continue
        rates = case.facts["rates"][found.name]
        speed = 1 / case.ratio(found.name, FLOAT_EAGER)
        table.add_row(
            found.name, tables.duration(case.median(found.name)), tables.times(speed), f"{rates['TOP/s']:.4g}",
            f"{rates['GB/s']:.4g}", f"{rates['share']:.0%}", f"{found.error:.1e}", found.note,
            style="bold" if found.name == BASELINE else None,
        )  # fmt: skip
    return table


def _device_facts(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": "the CPU"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": list(torch.cuda.get_device_capability(device)),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def interpret_kernels() -> None:
    """Have Triton interpret kernels on the CPU. Only before anything imports Triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # NumPy's, of 0 / 0
