"""`int8pass check PATH` and `int8pass export engine ONNX`: options, tables, JSON."""

import dataclasses
import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from int8pass.export.tensorrt.build import build_engine
from int8pass.export.tensorrt.check import check, rules_of
from int8pass.export.tensorrt.operators import operator_list
from int8pass.export.tensorrt.rule import Finding
from int8pass.export.tensorrt.shapes import parse_shapes
from int8pass.files import write_text

SCHEMA_VERSION = 1
_BROKEN = 1
_WIDTH = 150  # columns, where the output is not a terminal


def check_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An ONNX file, written by int8pass or by anything else.")
    ],
    target: Annotated[str, typer.Option(help="Whose rules: tensorrt.")] = "tensorrt",
    json: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Write the findings as JSON to a file, or with '-' to the output."),
    ] = None,
) -> None:
    """Check an ONNX file, node by node, against the rules of TensorRT's parser and of its explicit quantization.

    Needs neither TensorRT nor a GPU, and asks neither. Exit code: 0 if every rule holds, 1 if one is broken, 2 for a
    file that cannot be read.
    """
    findings = check(path, target)
    if json is not None:
        text = _to_json(path, target, findings)
        typer.echo(text) if json == "-" else write_text(Path(json), text + "\n")
    if json != "-":
        _print(path, target, findings)
    raise typer.Exit(_BROKEN if findings else 0)


def engine_command(
    onnx: Annotated[Path, typer.Argument(metavar="ONNX", help="An ONNX file, such as `int8pass check` passes.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ENGINE", help="The engine to write.")],
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="NAME=MIN,TYPICAL,MAX",
            help="Shapes of an input with dynamic dimensions, such as input_ids=1x1,8x128,32x512. Repeatable. "
            "(default: 1 to 32, typically 8, for a first dimension, 1 to 512, typically 128, for others)",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="'file': types as the file says. TensorRT 10 also: 'float16', 'bfloat16', where faster."),
    ] = "file",
    workspace: Annotated[
        float | None,
        typer.Option(metavar="MIB", min=1, help="The most scratch memory of a layer. (default: the GPU's)"),
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=0, max=5, help="0: fast build; 5: fast engine. (default: TensorRT's own, 3)")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Kernel timings: read where the file exists, written after.")
    ] = None,
    layers: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the layers and their types as JSON.")
    ] = None,
) -> None:
    r"""Build a TensorRT engine of an ONNX file, on and for the GPU of this machine, and list which layers read int8.

    Needs TensorRT 10 or 11 and an NVIDIA GPU: pip install 'int8pass\[tensorrt]'. Not yet run: no engine has been built
    with this command so far; only its use of TensorRT's API has been checked.
    """
    report = build_engine(
        onnx,
        output,
        shapes=dict(map(parse_shapes, shapes or ())),
        precision=precision,
        workspace_bytes=None if workspace is None else int(workspace * 2**20),
        optimization_level=level,
        timing_cache=timing_cache,
    )
    if layers is not None:
        write_text(layers, report.to_json() + "\n")
    typer.echo(str(report))


def _to_json(path: Path, target: str, findings: list[Finding]) -> str:
    rules = [{"id": rule.id, "statement": rule.statement, "citation": rule.citation} for rule in rules_of(target)]
    fields = ("rule", "node", "operator", "message")
    document = {
        "schema": SCHEMA_VERSION,
        "path": str(path),
        "target": target,
        "operator_list": {"source": operator_list().source, "tensorrt": operator_list().tensorrt},
        "passed": not findings,
        "rules": rules,
        "findings": [{name: dataclasses.asdict(finding)[name] for name in fields} for finding in findings],
    }
    return jsonlib.dumps(document, indent=2)


def _print(path: Path, target: str, findings: list[Finding]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    count = len(rules_of(target))
    if not findings:
        console.print(f"[green]{escape(str(path))} keeps all {count} rules of {target}[/]", highlight=False)
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("rule", "node", "operator", "what is wrong"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        cells = map(escape, (finding.node, finding.operator, finding.message))
        table.add_row(f"[red]{finding.rule}[/]", *cells)
    console.print(table)
    for finding in {finding.rule: finding for finding in findings}.values():
        console.print(f"[bold]{finding.rule}[/]: {escape(finding.statement)}", highlight=False)
        console.print(f"    {escape(finding.citation)}", highlight=False)
    broken = len({finding.rule for finding in findings})
    console.print(f"\n{escape(str(path))} breaks {broken} of {count} rules of {target}", highlight=False)
