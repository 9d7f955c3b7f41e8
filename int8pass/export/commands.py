"""`int8pass export onnx MODEL -o PATH` and `int8pass calibrate MODEL -o PATH`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from int8pass.arguments import (
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
from int8pass.export.example import export_loaded
from int8pass.export.targets import TARGETS
from int8pass.files import require_writable
from int8pass.inspection.loading import loaded_model
from int8pass.models import LoadedModel, python_function
from int8pass.quantization.calibrate import calibrate as calibrate_model
from int8pass.quantization.scheme import DEFAULT

export = typer.Typer(no_args_is_help=True, help="Write a model with its Linears in int8 to a file.")

_NOT_YET_RUN = ", ".join(target.name for target in TARGETS.values() if target.not_yet_run)

Output = Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The file to write.")]


@export.callback()
def _export() -> None:
    """Write a model with its Linears in int8 to a file."""


@export.command()
def onnx(
    model: Model,
    output: Output,
    target: Annotated[
        str, typer.Option(help=f"{', '.join(TARGETS)}. Not yet run on the real thing: {_NOT_YET_RUN}.")
    ] = "onnxruntime-cpu",
    profile: Profile = None,
    outlier_columns: Annotated[
        str | None,
        typer.Option(
            help="'profile': those of --profile, as constants; 'runtime': found in each call. [default: 'profile' "
            "with --profile, else 'runtime']"
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set, 18 or later. [default: torch.onnx's]")] = None,
    static: Annotated[
        bool, typer.Option("--static", help="Keep the example's batch size and length in place of dynamic ones.")
    ] = False,
    no_past: Annotated[
        bool, typer.Option("--no-past", help="Write a decoder without inputs and outputs for past keys and values.")
    ] = False,
    scheme: SchemeName = DEFAULT.name,
    threshold: Threshold = None,
    outliers: Outliers = "column",
    outlier_weights: OutlierWeights = None,
    skip_modules: SkipModules = None,
    no_skip_modules_default: NoSkipModulesDefault = False,
) -> None:
    """Write MODEL to an ONNX file of standard operators, with its Linears in int8.

    Batch size and length (the first two dimensions of each input) may change from call to call. A transformers decoder
    takes input_ids, attention_mask and its past keys and values, and gives logits and the present ones.
    """
    config = config_of(
        threshold, outliers, outlier_weights, skip_modules, no_skip_modules_default, profile=profile, scheme=scheme
    )
    require_writable(output)
    export_loaded(
        loaded_model(model),
        output,
        config,
        target=target,
        outlier_columns=outlier_columns,
        opset=opset,
        static=static,
        past=not no_past,
    )
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def calibrate(
    model: Model,
    output: Output,
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Returns what MODEL is run on: an iterable of mappings (keyword arguments), tuples (arguments) or "
            "tensors. [default: MODEL's one example input]",
        ),
    ] = None,
    min_batches: Annotated[
        int, typer.Option(help="How many batches must show an outlier for its column to count.")
    ] = 1,
    observer: Annotated[
        str,
        typer.Option(
            help="How far each input's range goes, outlier columns left out: 'absmax', 'percentile', 'mse' or "
            "'entropy'. All but absmax run the batches twice."
        ),
    ] = "absmax",
    percentile: Annotated[
        float, typer.Option(help="Percent of the values within the percentile observer's range.")
    ] = 99.99,
    rounding: Annotated[
        str,
        typer.Option(help="'nearest', or 'gptq': int8 weights whose errors make up for each other, kept beside PATH."),
    ] = "nearest",
    migration: Annotated[
        bool, typer.Option("--migration", help="Let features of the inputs give some of their scale to the weights.")
    ] = False,
    threshold: Threshold = None,
    skip_modules: SkipModules = None,
    no_skip_modules_default: NoSkipModulesDefault = False,
) -> None:
    """Run MODEL in float on batches and write a profile, as JSON: each Linear's outlier columns and input range."""
    config = config_of(threshold, "column", None, skip_modules, no_skip_modules_default)
    require_writable(output)
    loaded = loaded_model(model)
    profile = calibrate_model(
        loaded.model,
        _batches(batches, loaded),
        options=config,
        min_batches=min_batches,
        observer=observer,
        percentile=percentile,
        rounding=rounding,
        migration=migration,
    )
    profile.save(output)
    with_outliers = [layer for layer in profile.layers if layer.outlier_columns]
    typer.echo(f"{output}: {len(with_outliers)} of {len(profile.layers)} weights have outlier columns")
    if profile.rounded is not None:
        rounded = profile.rounded.weights.values()
        factors = sum(each.input_factor is not None for each in rounded)
        typer.echo(f"{output.with_suffix('.safetensors')}: {len(rounded)} int8 weights, {factors} with an input factor")


def _batches(spec: str | None, loaded: LoadedModel) -> Iterable[Any]:
    if spec is None:
        return [loaded.kwargs] if not loaded.args else [(loaded.args, loaded.kwargs)]
    return python_function(spec)()
