"""`int8pass sweep MODEL`: schemes x thresholds on a model and data of one's own."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from torch.export import ExportedProgram

from int8pass.arguments import Model, NoSkipModulesDefault, Outliers, OutlierWeights, SkipModules
from int8pass.bench.charts import require_matplotlib
from int8pass.call_arguments import call_arguments
from int8pass.config import Int8MixedConfig
from int8pass.errors import ConfigError
from int8pass.experiments import sweep_report
from int8pass.experiments.progress import progress_bar
from int8pass.experiments.sweep import ROUNDS, THRESHOLDS, Inputs, candidates, run_sweep
from int8pass.files import require_writable, write_text
from int8pass.models import load_model, python_function

_WIDTH = 120  # columns, where the output is not a terminal


def sweep(
    model: Model,
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Returns the data: an iterable of mappings (keyword arguments), tuples (arguments) or tensors. "
            "[default: MODEL's one example input]",
        ),
    ] = None,
    schemes: Annotated[str | None, typer.Option(metavar="NAME,...", help="Only these. [default: all]")] = None,
    thresholds: Annotated[
        str, typer.Option(metavar="T,...", help="Of the schemes that have an outlier branch.")
    ] = ",".join(f"{threshold:g}" for threshold in THRESHOLDS),
    rounds: Annotated[int, typer.Option(min=1, help="Each candidate runs all data once a round.")] = ROUNDS,
    lowering: Annotated[str, typer.Option(help="'inductor', or 'eager', which compiles nothing.")] = "inductor",
    json: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the figures as JSON to a file, or with '-' to the output.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw error against speed, as PNG; needs matplotlib.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Returns other data, as --batches does: each scheme is also tried with static activations, whose "
            "ranges come from it.",
        ),
    ] = None,
    outliers: Outliers = "column",
    outlier_weights: OutlierWeights = None,
    skip_modules: SkipModules = None,
    no_skip_modules_default: NoSkipModulesDefault = False,
) -> None:
    """Run MODEL under every scheme and threshold, and print how far each is from float, and its time."""
    static = calibration is not None
    tried = candidates(schemes.split(",") if schemes else None, _numbers(thresholds), static)
    config = Int8MixedConfig(
        outliers=outliers,
        outlier_weights=outlier_weights,
        lowering=lowering,
        skip_modules=tuple(skip_modules or ()),
        skip_modules_default=not no_skip_modules_default,
    )
    for path in (plot, Path(json) if json not in (None, "-") else None):
        if path is not None:
            require_writable(path)
    if plot is not None:
        require_matplotlib()
    with Console(stderr=True).status(f"loading {escape(model)}"):
        loaded = load_model(model)
    data = [(loaded.args, loaded.kwargs)] if batches is None else _data(batches)
    runnable = loaded.model.module() if isinstance(loaded.model, ExportedProgram) else loaded.model
    with progress_bar("sweep", len(tried) + rounds) as advance:
        found = run_sweep(runnable, data, tried, config, rounds, advance, _data(calibration) if static else ())
    if plot is not None:
        sweep_report.plot(found, plot, Path(model).name)
    if json == "-":
        typer.echo(found.to_json())
        return
    if json is not None:
        write_text(Path(json), found.to_json() + "\n")
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    console.print(sweep_report.table(found))
    console.print(sweep_report.summary(found), markup=False, highlight=False)


def _data(function: str) -> Iterator[Inputs]:
    return map(call_arguments, python_function(function)())


def _numbers(text: str) -> tuple[float, ...]:
    if not re.fullmatch(r"\s*\d+(\.\d+)?\s*(,\s*\d+(\.\d+)?\s*)*", text):
        raise ConfigError(f"--thresholds {text!r}: expected numbers above 0, such as 3,6,12")
    return tuple(float(part) for part in text.split(","))
