"""The command line: `int8pass report MODEL`, `int8pass dump MODEL`, `int8pass check PATH`, ..."""

import importlib.metadata
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from int8pass import pipeline
from int8pass.bench.commands import bench
from int8pass.config import Int8MixedConfig
from int8pass.errors import ConfigError, Int8PassError
from int8pass.export.tensorrt.commands import check_command, engine_command
from int8pass.files import write_text
from int8pass.inspection.explain import explain
from int8pass.inspection.report import Report, Row
from int8pass.models import load_model

STAGES = ("captured", *(step.name for step in pipeline.PASSES))
_FAILURE = 2
_COLUMNS_SHOWN = 12

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an unexpected error shows Python's own traceback
    help="LLM.int8() as a compiler pass: what it does to a model, as a report or as the graphs, and how fast that is.",
)
app.add_typer(bench, name="bench")
app.command("check")(check_command)
export = typer.Typer(no_args_is_help=True, help="Write a model as a file for another runtime: a TensorRT engine.")
export.command("engine")(engine_command)
app.add_typer(export, name="export")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="MODULE:FACTORY (a function that returns model, args, kwargs), a Hugging Face model folder "
        "(.safetensors), or a .pt2 file of torch.export.save.",
    ),
]
Threshold = Annotated[
    float, typer.Option(help="|x| at and above which a feature is an outlier; 0 means no outlier branch.")
]
Outliers = Annotated[
    str, typer.Option(help="'column': a feature is an outlier for the whole call; 'token': for each row on its own.")
]
OutlierWeights = Annotated[
    str | None,
    typer.Option(
        help="What the outlier branch multiplies with: the 'original' float columns, or columns 'dequantized' from "
        "int8. [default: original]"
    ),
]
SkipModules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A module to leave in float, with all below it; `*` makes a glob, `re:` a regular expression. Repeatable.",
    ),
]
NoSkipModulesDefault = Annotated[
    bool,
    typer.Option(
        "--no-skip-modules-default", help="Do not skip `lm_head` and the weights tied to an embedding by default."
    ),
]


def _print_version(shown: bool) -> None:
    if shown:
        typer.echo(f"int8pass {importlib.metadata.version('int8pass')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def report(
    model: Model,
    json: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the report as JSON to a file, or with '-' to the output.")
    ] = None,
    threshold: Threshold = 6.0,
    outliers: Outliers = "column",
    outlier_weights: OutlierWeights = None,
    skip_modules: SkipModules = None,
    no_skip_modules_default: NoSkipModulesDefault = False,
) -> None:
    """Run MODEL once in float and print what int8 would do to each of its Linears: decision, outliers, SNR, bytes."""
    if json not in (None, "-") and Path(json).exists() and not Path(json).is_file():
        raise ConfigError(f"--json {json}: not a file; '--json -' writes to the output")
    config = _config(threshold, outliers, outlier_weights, skip_modules, no_skip_modules_default)
    result = _explain(model, config)
    if json == "-":
        typer.echo(result.to_json())
        return
    if json is not None:
        write_text(Path(json), result.to_json() + "\n")
    _print_report(result)


@app.command()
def dump(
    model: Model,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write every stage of every graph, and their differences.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Print the graph after this stage: {', '.join(STAGES)}.")
    ] = None,
    threshold: Threshold = 6.0,
    outliers: Outliers = "column",
    outlier_weights: OutlierWeights = None,
    skip_modules: SkipModules = None,
    no_skip_modules_default: NoSkipModulesDefault = False,
) -> None:
    """Run the pass on MODEL and show its graph after every stage, as text."""
    if out is None and stage is None:
        raise ConfigError("say where the stages go (--out FOLDER), or which of them to print (--stage NAME)")
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"there is no stage {stage!r}; the stages are: {', '.join(STAGES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        present = set(folder.glob("graph-*"))
        config = _config(threshold, outliers, outlier_weights, skip_modules, no_skip_modules_default, str(folder))
        _explain(model, config)
        graphs = sorted(set(folder.glob("graph-*")) - present)
        if stage is not None:
            _print_stage(graphs, stage)
        elif graphs:
            typer.echo("\n".join(str(graph) for graph in graphs))
        else:
            typer.echo("the model ran no graph", err=True)


def main() -> None:
    """The entry point: errors that int8pass raises on purpose become one message and exit code 2."""
    try:
        app()
    except Int8PassError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] [red]{escape(str(error))}[/]", highlight=False)
        sys.exit(_FAILURE)


def _config(
    threshold: float,
    outliers: str,
    outlier_weights: str | None,
    skip_modules: list[str] | None,
    no_skip_modules_default: bool,
    dump_dir: str | None = None,
) -> Int8MixedConfig:
    return Int8MixedConfig(
        threshold=threshold,
        outliers=outliers,
        outlier_weights=outlier_weights,
        skip_modules=tuple(skip_modules or ()),
        skip_modules_default=not no_skip_modules_default,
        dump_dir=dump_dir,
    )


def _explain(spec: str, config: Int8MixedConfig) -> Report:
    console = Console(stderr=True)
    with console.status(f"loading {escape(spec)}"):
        loaded = load_model(spec)
    with console.status("running the model in float, with each Linear's int8 form beside it"):
        return explain(loaded.model, loaded.args, loaded.kwargs, options=config)


def _print_stage(graphs: list[Path], stage: str) -> None:
    for graph in graphs:
        (file,) = graph.glob(f"*-{stage}.txt")
        if len(graphs) > 1:
            typer.echo(f"# {graph.name}")
        typer.echo(file.read_text(encoding="utf-8"), nl=False)


def _print_report(result: Report) -> None:
    console = Console()
    if not console.is_terminal:
        typer.echo(str(result))
        return
    console.print(_table(result))
    summary = str(result).rpartition("\n\n")[2]
    console.print(summary, highlight=False, markup=False)


def _table(result: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("module", overflow="fold")
    table.add_column("weight", no_wrap=True)
    table.add_column("decision", overflow="fold")
    table.add_column("outliers", overflow="fold")
    for name in ("SNR dB", "MB float", "MB int8"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        escape(row.module or "(root)"),
        "x".join(map(str, row.weight_shape or ())),
        "[green]int8[/]" if row.rewritten else f"[yellow]{escape(row.reason)}[/]",
        _columns(row) if row.rewritten else "",
        "" if row.snr_db is None else f"{row.snr_db:.1f}",
        f"{row.bytes_before / 1e6:.2f}",
        f"{row.bytes_after / 1e6:.2f}",
    )


def _columns(row: Row) -> str:
    shown = ", ".join(map(str, row.outlier_columns[:_COLUMNS_SHOWN])) or "none"
    hidden = len(row.outlier_columns) - _COLUMNS_SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown
