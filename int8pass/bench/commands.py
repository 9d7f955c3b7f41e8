"""`int8pass bench linear | models | scaling`: options, progress on standard error, tables, and files under --out."""

import datetime
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from int8pass.bench import charts, linear, linear_peers, machine, model_peers, models, scaling, tables, targets
from int8pass.bench.console import wide_console
from int8pass.bench.results import Case, Run, Verdict
from int8pass.errors import ConfigError
from int8pass.files import write_text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_HINT = (
    "this machine is busy, and OpenMP threads that wait by spinning then make the times of every OpenMP library "
    "meaningless: use an idle one, or OMP_WAIT_POLICY=passive int8pass bench ..., which costs each call a wake-up."
)
_BUSY_SHARE = 0.5  # of the processors

bench = typer.Typer(
    no_args_is_help=True,
    help="Compare int8mixed with other libraries on this machine, all in one run, interleaved: bitsandbytes, torchao, "
    "PyTorch, ONNX Runtime, OpenVINO, llama.cpp, and the bare int8 product. How it measures and how to read it: "
    "int8pass/bench/README.md.",
)

Rounds = Annotated[int | None, typer.Option(min=1, help="Every contestant runs once a round (default: 10; quick: 2).")]
Dtype = Annotated[str, typer.Option(help="Of the model and its activations: float32 or bfloat16.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of every library (default: as many as PyTorch takes).")
]
Peers = Annotated[
    str | None,
    typer.Option(metavar="GLOBS", help="Only contestants whose names match, e.g. 'bare-*,torchao'; int8mixed always."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Write the results as JSON, with all raw times, and charts (PNG).")
]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes and two rounds: a check that all runs, no figures.")]


@bench.command("linear")
def linear_command(
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="KxN,...", help="in_features x out_features (default: 768x3072,3072x768,4096x4096,4096x11008)."
        ),
    ] = None,
    rows: Annotated[str | None, typer.Option(metavar="M,...", help="Rows of x (default: 1,16,128,512).")] = None,
    rounds: Rounds = None,
    dtype: Dtype = "float32",
    threads: Threads = None,
    peers: Peers = None,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Single Linears with outliers in x: time with weights from memory and from cache, error, and the targets."""
    settings = linear.LinearSettings(
        shapes=_shapes(shapes) if shapes else linear.QUICK_SHAPES if quick else linear.SHAPES,
        rows=_numbers(rows, "--rows") if rows else linear.QUICK_ROWS if quick else linear.ROWS,
        rounds=_rounds(rounds, quick),
        dtype=_dtype(dtype),
        threads=_threads(threads),
        peers=_globs(peers),
        copies=linear.QUICK_COPIES if quick else None,
    )
    with _reporting("linear", settings, out) as (progress, report):
        cases = linear.run_linear(settings, progress)
        result = report(cases, targets.judge(cases))
    _print_cases(result, by="rows", legend=linear_peers.CONTESTANTS)
    wide_console().print(tables.verdict_table(result.verdicts))
    if out is not None:
        for row in dict.fromkeys(case.facts["rows"] for case in cases):
            chosen = [case for case in cases if case.facts["rows"] == row]
            path = out / f"linear-{dtype}-rows-{row}.png"
            charts.ratio_chart(chosen, f"One Linear, {dtype}, M = {row}, weights from memory", path)


@bench.command("models")
def models_command(
    only: Annotated[str | None, typer.Option("--models", metavar="NAME,...", help="Of gpt2, opt, minilm.")] = None,
    rounds: Rounds = None,
    threads: Threads = None,
    peers: Peers = None,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """GPT-2 and OPT (random weights, outlier features): prefill, one token, generation; trained MiniLM: embeddings."""
    settings = models.ModelSettings(
        models=_models(only) if only else models.MODELS,
        rounds=_rounds(rounds, quick),
        threads=_threads(threads),
        peers=_globs(peers),
        quick=quick,
    )
    with _reporting("models", settings, out) as (progress, report):
        result = report(models.run_models(settings, progress))
    _print_cases(result, by="model", legend=model_peers.CONTESTANTS)
    if out is not None:
        for name in settings.models:
            chosen = [case for case in result.cases if case.facts["model"] == name]
            charts.ratio_chart(chosen, f"{name}: time of the whole model", out / f"models-{name}.png")


@bench.command("scaling")
def scaling_command(
    rounds: Rounds = None,
    dtype: Dtype = "float32",
    threads: Threads = None,
    peers: Peers = None,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """How cost grows with M, N, K and the number of layers: a line in a log-log plot, and its slope."""
    settings = scaling.ScalingSettings(
        axes=scaling.QUICK_AXES if quick else scaling.AXES,
        width=scaling.QUICK_WIDTH if quick else scaling.WIDTH,
        rounds=_rounds(rounds, quick),
        dtype=_dtype(dtype),
        threads=_threads(threads),
        peers=_globs(peers) or scaling.PEERS,
    )
    with _reporting("scaling", settings, out) as (progress, report):
        cases = scaling.run_scaling(settings, progress)
        result = report(cases, scaling.judge(cases))
    console = wide_console()
    console.print(tables.machine_line(result), markup=False, highlight=False, style="dim")
    for axis, found in scaling.by_axis(cases).items():
        console.print(tables.growth_table(axis, found))
    console.print(tables.verdict_table(result.verdicts))
    if out is not None:
        title = f"Cost of a Linear of {settings.width}x{settings.width}, {scaling.ROWS} rows, {dtype}, one size varied"
        charts.growth_chart(cases, title, out / f"scaling-{dtype}.png")


@contextmanager
def _reporting(kind: str, settings: Any, out: Path | None) -> Iterator[tuple[Callable, Callable]]:
    """Gives `progress(text)`, and `report(cases, verdicts)`, which makes the Run and writes its JSON."""
    if out is not None:
        charts.require_matplotlib()
    start, started = time.perf_counter(), datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    errors = Console(stderr=True)
    load = os.getloadavg()
    described = {**machine.describe(), "load": load}
    status = errors.status("starting")
    if "OMP_WAIT_POLICY" not in os.environ and load[0] > _BUSY_SHARE * (os.cpu_count() or 1):
        errors.print(_HINT, style="yellow", highlight=False)

    def progress(text: str) -> None:
        line = f"{time.perf_counter() - start:.0f} s {text}"
        if errors.is_terminal:
            status.update(escape(line))
        else:
            errors.print(line, markup=False, highlight=False)

    def report(cases: Sequence[Case], verdicts: Sequence[Verdict] = ()) -> Run:
        seconds = time.perf_counter() - start
        run = Run(kind, _plain(settings), described, tuple(cases), tuple(verdicts), started, seconds)
        if out is not None:
            name = "-".join(filter(None, (kind, run.settings.get("dtype"))))
            write_text(out / f"{name}.json", run.to_json() + "\n")
        return run

    with status:
        yield progress, report


def _print_cases(run: Run, by: str, legend: Sequence[Any]) -> None:
    console = wide_console()
    console.print(tables.machine_line(run), markup=False, highlight=False, style="dim")
    for case in run.cases:
        console.print(tables.case_table(case))
    if len(run.cases) > 1:
        console.print(tables.mean_table(run.cases, by))
    for contestant in legend:
        if contestant.name in tables.names(run.cases):
            console.print(f"{contestant.name}: {contestant.about}", markup=False, highlight=False, style="dim")


def _rounds(rounds: int | None, quick: bool) -> int:
    return rounds or (2 if quick else 10)


def _plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON takes them."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}
    return {name: str(value).removeprefix("torch.") if name == "dtype" else value for name, value in values.items()}


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    found = [re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", part) for part in text.split(",")]
    if not all(found):
        raise ConfigError(f"--shapes {text!r}: expected in_features x out_features, such as 768x3072,4096x4096")
    return tuple((int(match[1]), int(match[2])) for match in found)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", text):
        raise ConfigError(f"{option} {text!r}: expected whole numbers from 1, such as 1,16,128")
    return tuple(int(part) for part in text.split(","))


def _models(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in models.MODELS:
            raise ConfigError(f"--models {name!r}: there are {', '.join(models.MODELS)}")
    return names


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name!r}: expected {' or '.join(DTYPES)}")
    return DTYPES[name]


def _globs(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _threads(count: int | None) -> int:
    if count is not None:
        torch.set_num_threads(count)
        os.environ["OMP_NUM_THREADS"] = str(count)  # bitsandbytes brings its own OpenMP, loaded later
    return torch.get_num_threads()
