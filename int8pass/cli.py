"""The command line: `int8pass report MODEL`; the other verbs are in the commands.py of inspection, export and bench."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from int8pass.arguments import (
    Activations,
    Against,
    BreakEven,
    Model,
    NoSkipModulesDefault,
    Outliers,
    OutlierWeights,
    Profile,
    SchemeName,
    SkipModules,
    Threshold,
    config_of,
)
from int8pass.bench.commands import bench
from int8pass.errors import ConfigError, Int8PassError
from int8pass.experiments.commands import sweep
from int8pass.export.commands import calibrate, export
from int8pass.export.tensorrt.commands import check_command, engine_command
from int8pass.files import write_text
from int8pass.inspection.commands import STAGES, debug, diff, dump
from int8pass.inspection.loading import explain_model
from int8pass.inspection.report import Report, Row
from int8pass.inspection.report_text import columns_text
from int8pass.quantization.scheme import DEFAULT, SCHEMES
from int8pass.version import VERSION

__all__ = ["STAGES", "app", "main"]

_FAILURE = 2
_COLUMNS_SHOWN = 12

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an unexpected error shows Python's own traceback
    help="LLM.int8() as a compiler pass: what it does to a model, as a report, as graphs or as a file, and how fast "
    "that is.",
)
app.add_typer(bench, name="bench")
app.command()(dump)
app.command()(diff)
app.command()(debug)
app.add_typer(export, name="export")
app.command()(calibrate)
app.command("check")(check_command)
app.command()(sweep)
export.command("engine")(engine_command)


def _print_version(shown: bool) -> None:
    if shown:
        typer.echo(f"int8pass {VERSION}")
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
    html: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the report as one page, to open in a browser.")
    ] = None,
    timings: Annotated[
        bool,
        typer.Option(
            "--timings", help="Time each Linear, in int8 part by part and in float; of an ONNX file, in ONNX Runtime."
        ),
    ] = False,
    schemes: Annotated[
        bool, typer.Option("--schemes", help="Also print the error that each scheme would make in each Linear.")
    ] = False,
    against: Against = None,
    scheme: SchemeName = DEFAULT.name,
    threshold: Threshold = None,
    outliers: Outliers = "column",
    outlier_weights: OutlierWeights = None,
    skip_modules: SkipModules = None,
    no_skip_modules_default: NoSkipModulesDefault = False,
    profile: Profile = None,
    activations: Activations = "dynamic",
    break_even: BreakEven = "off",
) -> None:
    """Run MODEL once in float and print what int8 would do to each of its Linears: decision, outliers, SNR, bytes.

    MODEL may also be an ONNX file of `int8pass export onnx`: its decisions, outlier columns and bytes. It is run in
    ONNX Runtime with --against, on the inputs of that model, or with --timings alone, on inputs made up.
    """
    if json not in (None, "-") and Path(json).exists() and not Path(json).is_file():
        raise ConfigError(f"--json {json}: not a file; '--json -' writes to the output")
    if html is not None and html.is_dir():
        raise ConfigError(f"--html {html}: a folder; name the file to write")
    config = config_of(
        threshold,
        outliers,
        outlier_weights,
        skip_modules,
        no_skip_modules_default,
        profile=profile,
        activations=activations,
        scheme=scheme,
        break_even=break_even,
    )
    result = explain_model(model, config, timings, tuple(SCHEMES) if schemes else (), against)
    if html is not None:
        result.to_html(html, title=f"int8pass report of {Path(model).name}")
    if json == "-":
        typer.echo(result.to_json())
        return
    if json is not None:
        write_text(Path(json), result.to_json() + "\n")
    _print_report(result)


def main() -> None:
    """The entry point: errors that int8pass raises on purpose become one message and exit code 2."""
    try:
        app()
    except Int8PassError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] [red]{escape(str(error))}[/]", highlight=False)
        sys.exit(_FAILURE)


def _print_report(result: Report) -> None:
    console = Console()
    if not console.is_terminal:
        typer.echo(str(result))
        return
    console.print(_table(result))
    rest = str(result).partition("\n\n")[2]
    console.print(rest, highlight=False, markup=False)


def _table(result: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("module", overflow="fold")
    table.add_column("weight", no_wrap=True)
    table.add_column("decision", overflow="fold")
    table.add_column("outliers", overflow="fold")
    timed = any(row.timing for row in result.rows)
    for name in ("SNR dB", "MB float", "MB int8", *(("us int8", "us float") if timed else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        times = [f"{1e6 * each:.0f}" for each in (row.timing.int8, row.timing.float)] if row.timing else []
        table.add_row(*_cells(row), *times)
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        escape(row.module or "(root)"),
        "x".join(map(str, row.weight_shape or ())),
        "[green]int8[/]" if row.rewritten else f"[yellow]{escape(row.reason)}[/]",
        columns_text(row, _COLUMNS_SHOWN) if row.rewritten else "",
        "" if row.snr_db is None else f"{row.snr_db:.1f}",
        f"{row.bytes_before / 1e6:.2f}",
        f"{row.bytes_after / 1e6:.2f}",
    )
