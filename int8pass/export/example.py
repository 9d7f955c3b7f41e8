"""The commands' MODEL to an ONNX file, with batch and length that may change from call to call."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from int8pass.config import Int8MixedConfig
from int8pass.export.decoder import is_decoder, with_past
from int8pass.export.onnx import export_onnx
from int8pass.export.shapes import dynamic_example
from int8pass.models import LoadedModel


def export_loaded(
    loaded: LoadedModel,
    output: Path,
    config: Int8MixedConfig,
    *,
    target: str,
    outlier_columns: str | None = None,
    opset: int | None = None,
    static: bool = False,
    past: bool = True,
) -> Path:
    """Write a loaded MODEL, saying so on a terminal, and return the path. Raises what `export_onnx` raises.

    static: the example's sizes; past: a decoder takes its past keys and values.
    """
    example, shapes = _example(loaded, static=static, past=past)
    with Console(stderr=True).status(f"writing {escape(str(output))}"):
        return export_onnx(
            example.model,
            example.args,
            output,
            kwargs=example.kwargs,
            dynamic_shapes=shapes,
            options=config,
            target=target,
            outlier_columns=outlier_columns,
            opset=opset,
        )


def _example(loaded: LoadedModel, *, static: bool, past: bool) -> tuple[LoadedModel, Any]:
    if past and not static and is_decoder(loaded.model):
        wrapped, kwargs, shapes = with_past(loaded.model)
        return LoadedModel(wrapped, (), kwargs), shapes
    return (loaded, None) if static else dynamic_example(loaded)


def with_past_if_decoder(loaded: LoadedModel) -> LoadedModel | None:
    """A decoder as its file takes it, with past keys and values among its inputs; None for another model."""
    return _example(loaded, static=False, past=True)[0] if is_decoder(loaded.model) else None
