"""The command line's verbs for looking at what the pass did: dump, diff and debug."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from int8pass import pipeline
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
from int8pass.errors import ConfigError
from int8pass.export.example import export_loaded
from int8pass.export.onnx import file_config
from int8pass.export.targets import target_named
from int8pass.files import write_text
from int8pass.inspection.debug import diagnose
from int8pass.inspection.diff import REPORT_FILE, TOLERANCE_DB, compare, graph_differences, kind_of
from int8pass.inspection.dump import FORMATS, rendered, write_stages
from int8pass.inspection.loading import (
    explain_loaded,
    explain_model,
    loaded_model,
    require_no_against,
    require_no_options,
)
from int8pass.inspection.onnx_debug import diagnose_file
from int8pass.inspection.onnx_file import STAGE as FILE_STAGE
from int8pass.inspection.onnx_file import is_onnx_file
from int8pass.inspection.stages import Stage
from int8pass.quantization.scheme import DEFAULT

MODEL_FILE = "model.onnx"  # of --format onnx, beside the stages
STAGES = ("captured", *(step.name for step in pipeline.PASSES))


def dump(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write every stage of every graph, their differences, and the report."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Print the graph after this stage: {', '.join(STAGES)}.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}; Graphviz draws dot, Netron onnx.")
    ] = "text",
    target: Annotated[
        str,
        typer.Option(help="Of the model.onnx that `--out` with `--format onnx` also writes, as `export onnx` does."),
    ] = "onnxruntime-cpu",
    module: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Only the modules that match, with all below them: 'encoder.layer.0'."),
    ] = None,
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
    """Run the pass on MODEL and show its graph after every stage.

    MODEL may also be an ONNX file of `int8pass export onnx`, which has one stage: it is printed without --out.
    """
    is_file = is_onnx_file(model)
    stages = (FILE_STAGE,) if is_file else STAGES
    stage = FILE_STAGE if is_file and out is None and stage is None else stage
    if out is None and stage is None:
        raise ConfigError("say where the stages go (--out FOLDER), or which of them to print (--stage NAME)")
    if stage is not None and stage not in stages:
        raise ConfigError(f"there is no stage {stage!r}; the stages are: {', '.join(stages)}")
    if form not in FORMATS:
        raise ConfigError(f"there is no format {form!r}; the formats are: {', '.join(FORMATS)}")
    chosen = target_named(target)
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
    writes_file = form == "onnx" and out is not None and not is_file
    if writes_file:
        file_config(config, chosen)  # what no file can hold is refused before anything is loaded or written
    loaded = None if is_file else loaded_model(model)
    report = explain_model(model, config) if loaded is None else explain_loaded(loaded, config)
    if not report.stages:
        typer.echo("the model ran no graph", err=True)
        return
    graphs = _selected(report.stages, module)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        file = [export_loaded(loaded, out / MODEL_FILE, config, target=chosen.name)] if writes_file else []
        folders = [*(write_stages(out, stages, form) for stages in graphs), *file]
        write_text(out / REPORT_FILE, report.to_json() + "\n")
        if stage is None:
            typer.echo("\n".join(map(str, folders)))
    if stage is not None:
        _print_stage([next(each for each in stages if each.name == stage) for stages in graphs], form)


def _selected(graphs: Iterable[Sequence[Stage]], module: str | None) -> list[list[Stage]]:
    """The stages of each graph that has one of the modules. Raises ConfigError where none has."""
    if module is None:
        return list(map(list, graphs))
    found = [[stage.of_modules(module) for stage in stages] for stages in graphs]
    if any(stage.nodes for stages in found for stage in stages):
        return [stages for stages in found if any(stage.nodes for stage in stages)]
    known = sorted({node.module for stages in graphs for node in stages[0].nodes if node.module})
    raise ConfigError(f"no module matches {module!r}; the graph has: {', '.join(known)}")


def _print_stage(stages: list[Stage], form: str) -> None:
    """Several graphs: JSON as one array, ONNX not at all, each other format under a comment. Raises ConfigError."""
    if form == "onnx" and len(stages) > 1:
        raise ConfigError(
            f"the model is {len(stages)} graphs, and an ONNX file holds one: write a folder (--out FOLDER)"
        )
    if form == "json" and len(stages) > 1:
        typer.echo(json.dumps([json.loads(stage.to_json()) for stage in stages], indent=2))
        return
    for number, stage in enumerate(stages):
        if len(stages) > 1:
            heading = f"graph-{number:03}"
            typer.echo({"svg": f"<!-- {heading} -->", "dot": f"// {heading}"}.get(form, f"# {heading}"))
        typer.echo(rendered(stage, form), nl=False)


def diff(
    a: Annotated[
        Path,
        typer.Argument(
            metavar="A", help="A folder of `dump --out`, a file of `report --json`, or an exported ONNX file."
        ),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="What it is compared with: another of the same kind.")],
    tolerance: Annotated[
        float, typer.Option(metavar="DB", min=0.0, help="Errors that differ by no more count as equal.")
    ] = TOLERANCE_DB,
    text: Annotated[
        bool, typer.Option("--text", help="Of folders and ONNX files, print the graphs' differences too.")
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 where anything differs.")] = False,
) -> None:
    """Say which layers changed decision, outliers or error between A and B."""
    changes = compare(a, b, tolerance)
    typer.echo("\n".join(map(str, changes)) if changes else "no differences")
    if text and kind_of(a) != "JSON report":
        typer.echo(graph_differences(a, b), nl=False)
    if exit_code and changes:
        raise typer.Exit(1)


def debug(
    model: Model,
    want: Annotated[
        float | None,
        typer.Option(metavar="DB", help="Propose skip_modules with which the output is this near to float (20: 10 %)."),
    ] = None,
    against: Against = None,
    no_compile: Annotated[
        bool,
        typer.Option(
            "--no-compile", help="Leave out the run of the compiled model, or of the whole file, which is not op by op."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    scheme: SchemeName = DEFAULT.name,
    threshold: Threshold = None,
    outliers: Outliers = "column",
    outlier_weights: OutlierWeights = None,
    skip_modules: SkipModules = None,
    no_skip_modules_default: NoSkipModulesDefault = False,
    profile: Profile = None,
    activations: Activations = "dynamic",
) -> None:
    """Find the layer where MODEL in int8 leaves its float results, and what would repair that.

    MODEL may also be an ONNX file of `int8pass export onnx`, with the float model that it was made from as --against.
    """
    config = config_of(
        threshold,
        outliers,
        outlier_weights,
        skip_modules,
        no_skip_modules_default,
        profile=profile,
        scheme=scheme,
        activations=activations,
    )
    is_file = is_onnx_file(model)
    if is_file:
        require_no_options(model, config)
        if against is None:
            raise ConfigError(f"{model!r} is an ONNX file: name the model that it was made from (--against MODEL)")
    else:
        require_no_against(model, against)
    loaded = loaded_model(against if is_file else model)
    with Console(stderr=True).status("running the model") as status:

        def progress(text: str) -> None:
            status.update(f"running the model: {escape(text)}")

        if is_file:
            found = diagnose_file(Path(model), loaded, wanted_db=want, whole=not no_compile, progress=progress)
        else:
            found = diagnose(
                loaded.model,
                loaded.args,
                loaded.kwargs,
                options=config,
                wanted_db=want,
                compiled=not no_compile,
                progress=progress,
            )
    typer.echo(found.to_json() if as_json else str(found))
