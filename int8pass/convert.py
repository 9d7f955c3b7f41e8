"""`convert`: run the pass on a model or program, and get the same kind back, rewritten."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.export import ExportedProgram

from int8pass import pipeline
from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError
from int8pass.exported import exported_from_program, program_from_exported
from int8pass.inspection.dump import Dump
from int8pass.notices import warn_where_nothing_happened

T = TypeVar("T", nn.Module, ExportedProgram)


def convert(
    model_or_program: T,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    dynamic_shapes: Any = None,
) -> T:
    """Return the model or program with its Linears rewritten in int8pass ops, for inference.

    model_or_program: an nn.Module or fx.GraphModule, captured by torch.export with example `args` and `kwargs` (and
    torch.export's `dynamic_shapes`: without them, the shapes of the examples); or an ExportedProgram, which needs none.
    A module gives a GraphModule, an ExportedProgram an ExportedProgram: torch.export.save, load and AOTInductor take it
    (the process that runs it imports int8pass, which defines the ops). options: see Int8MixedConfig; `lowering`,
    `mode` and `inductor` concern the backend and have no effect here.

    Raises CaptureError where example inputs are missing or torch.export fails; ConfigError.
    """
    config = Int8MixedConfig.from_options(options)
    config.require_break_even_off("convert")
    exported = as_exported(model_or_program, args, kwargs, dynamic_shapes)
    program = pipeline.run(program_from_exported(exported, config), Dump.for_config(config.dump_dir))
    warn_where_nothing_happened(program)
    converted = exported_from_program(program, exported)
    return converted if isinstance(model_or_program, ExportedProgram) else converted.module()


def as_exported(
    model: nn.Module | ExportedProgram, args: tuple | None, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any = None
) -> ExportedProgram:
    """The model as an ExportedProgram; one that is given is returned as it is. Raises CaptureError."""
    if isinstance(model, ExportedProgram):
        return model
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected an nn.Module, a GraphModule or an ExportedProgram, not {type(model).__name__}")
    if args is None and kwargs is None:
        raise CaptureError("a module is captured with example inputs: pass args=(...), kwargs={...}, or both")
    try:
        with torch.no_grad():
            return torch.export.export(model, tuple(args or ()), dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    except Exception as error:
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}: {error}\n"
            "torch.compile(model, backend='int8mixed') takes models that torch.export does not."
        ) from error
