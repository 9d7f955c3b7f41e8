"""`export_onnx`: a model with its Linears in int8, as an ONNX file of standard operators."""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from int8pass import pipeline
from int8pass.config import Int8MixedConfig
from int8pass.convert import as_exported
from int8pass.errors import ConfigError, ExportError, MissingDependencyError
from int8pass.export.dequantize_to_scaled_int8_mm import dequantize_to_scaled_int8_mm
from int8pass.export.pad_quantized_features import pad_quantized_features
from int8pass.export.runtime import require_one_onnxruntime
from int8pass.export.streamed_program import StreamedProgram
from int8pass.export.targets import Target, target_named
from int8pass.exported import exported_from_program, program_from_exported
from int8pass.files import require_writable, staged
from int8pass.inspection.dump import Dump
from int8pass.notices import warn_where_nothing_happened
from int8pass.pipeline import Pass
from int8pass.quantization.scheme import SCHEMES

OUTLIER_COLUMNS = (None, "profile", "runtime")
PASSES: tuple[Pass, ...] = (
    Pass("dequantize_to_scaled_int8_mm", dequantize_to_scaled_int8_mm),
    Pass("pad_quantized_features", pad_quantized_features),
)


def export_onnx(
    model_or_program: nn.Module | ExportedProgram,
    args: tuple | None,
    path: str | os.PathLike,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    target: str = "onnxruntime-cpu",
    outlier_columns: str | None = None,
    opset: int | None = None,
) -> Path:
    """Write the model to an ONNX file with its Linears in int8, and return the path.

    model_or_program, args, kwargs, dynamic_shapes: as in `convert`. options: see Int8MixedConfig. The file holds each
    weight once, as int8 [K, N] with float32 scales; past 2 GB the weights lie beside it, in `path` + ".data".
    target: "onnxruntime-cpu", "onnxruntime-cuda" (not yet run) or "tensorrt" (not yet run).
    outlier_columns: "profile", those of options["profile"], as constants with 16-bit weight columns; "runtime", found
    in each call as the backend does, with columns dequantized from int8. None: "profile" where options name one.
    threshold 0.0: no outlier branch. opset: of the ONNX standard operators, 18 or later; None: torch.onnx's default.

    Raises ConfigError, ProfileError, CaptureError, ExportError, OutputError, MissingDependencyError; no part of a file
    is left then.
    """
    path = Path(path)
    chosen = target_named(target)
    config = file_config(Int8MixedConfig.from_options(options), chosen, outlier_columns)
    _require_opset(opset)
    _require_packages(chosen)
    require_writable(path)
    exported = as_exported(model_or_program, args, kwargs, dynamic_shapes)
    program = _program(exported, config, chosen)
    tap = Dump.for_config(config.dump_dir)
    pipeline.run(program, tap)
    warn_where_nothing_happened(program)
    pipeline.run(program, tap, PASSES)
    model = _onnx_model(exported_from_program(program, exported), program, chosen, opset)

    from int8pass.export import metadata, model_file

    metadata.describe(model, program, chosen)
    with staged(path) as folder:
        model_file.write(model, folder / path.name)
        _require_rules(folder / path.name, chosen)
    return path


def file_config(config: Int8MixedConfig, target: Target, outlier_columns: str | None = None) -> Int8MixedConfig:
    """The options as a file for a target can keep them. Raises ConfigError."""
    if config.activations == "static":
        raise ConfigError("a file finds the ranges of activations in each call: leave activations 'dynamic'")
    config.require_break_even_off("export_onnx")
    if not config.scheme.has_default_form:
        names = ", ".join(repr(scheme.name) for scheme in SCHEMES.values() if scheme.has_default_form)
        raise ConfigError(
            f"a file holds one symmetric scale for each row of activations, which scheme {config.scheme.name!r} has "
            f"not: the schemes of files are {names}"
        )
    if outlier_columns not in OUTLIER_COLUMNS:
        raise ConfigError(f"outlier_columns must be 'profile' or 'runtime', not {outlier_columns!r}")
    mode = outlier_columns or ("profile" if config.profile is not None else "runtime")
    if mode == "profile":
        if config.profile is None and config.threshold:
            raise ConfigError(
                "outlier_columns='profile' needs options={'profile': ...}: make one with int8pass.calibrate, or pass "
                "outlier_columns='runtime' to find the columns in each call"
            )
        return dataclasses.replace(config, free_weights=False)
    if config.threshold and not target.runtime_columns:
        raise ConfigError(
            f"target {target.name!r} cannot find outlier columns in each call: pass options={{'profile': ...}}, made "
            "with int8pass.calibrate, or threshold 0.0 for no outlier branch"
        )
    if config.profile is not None and config.profile.rounded is not None:
        raise ConfigError(
            "outlier_columns='runtime' would leave out the profile, and with it its rounded weights: use 'profile', or "
            "a profile with rounding='nearest'"
        )
    if config.threshold and config.outlier_weights == "original":
        raise ConfigError(
            "outlier_weights='original' with outlier_columns='runtime' would keep every float weight in the file "
            "beside its int8 form; use 'dequantized', or calibrate a profile, whose columns are kept in 16 bits"
        )
    columns = "dequantized" if config.scheme.decomposition else None
    return dataclasses.replace(config, free_weights=False, profile=None, outlier_weights=columns)


def _require_opset(opset: int | None) -> None:
    if opset is not None and (not isinstance(opset, int) or isinstance(opset, bool) or opset < 18):
        raise ConfigError(f"opset must be an int of at least 18, not {opset!r}")


def _require_packages(target: Target) -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"ONNX files need {' and '.join(missing)}: pip install 'int8pass[onnx]'")
    if target.onnxruntime:
        require_one_onnxruntime()


def _require_rules(path: Path, target: Target) -> None:
    """Raises ExportError where a file breaks a rule of its target's."""
    from int8pass.export.tensorrt.check import check

    findings = check(path, target.rules) if target.rules else []
    if findings:
        broken = "\n".join(f"- {each.rule}: {each.node} {each.operator}: {each.message}" for each in findings)
        raise ExportError(f"the file for {target.name} was not written, as it would break rules of it:\n{broken}")


def _program(exported: ExportedProgram, config: Int8MixedConfig, target: Target) -> StreamedProgram:
    program = program_from_exported(exported, config)
    return StreamedProgram(program.graph_module, program.tensors, config, multiple=target.multiple)


def _onnx_model(converted: ExportedProgram, program: StreamedProgram, target: Target, opset: int | None) -> Any:
    """The onnx_ir model of a converted program. Raises ExportError."""
    from int8pass.export import after_passes, translations

    with _quiet():
        try:
            written = torch.onnx.export(
                converted,
                dynamo=True,
                custom_translation_table=translations.translations(target),
                opset_version=opset,
                verbose=False,
                optimize=False,
            )
            _optimize(written, program.constants)
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"torch.onnx could not write this model: {_root_cause(error)}") from error
    names = converted.graph_signature.inputs_to_buffers
    weights = {
        names[node]: program.quantized(wanted.expression)
        for node, wanted in program.weight_inputs.items()
        if wanted.field == "inputs_first" and program.quantized(wanted.expression).is_streamed
    }
    after_passes.run(written.model, weights)
    return written.model


def _optimize(written: torch.onnx.ONNXProgram, kept: Iterable[str]) -> None:
    """torch.onnx's own optimizer, which computes what depends on small constants alone; `kept` stay as they are."""
    initializers = written.model.graph.initializers
    hidden = {initializers[name]: initializers[name].const_value for name in kept if name in initializers}
    for value in hidden:
        value.const_value = None
    written.optimize()
    for value, tensor in hidden.items():
        value.const_value = tensor


def _root_cause(error: BaseException) -> str:
    """The innermost two causes: what failed, and at which node. torch.onnx's own text advises its developers."""
    causes = []
    while error is not None:
        causes.append(f"{type(error).__name__}: {error}".strip().partition("\n\n")[0])
        error = error.__cause__
    return "; ".join(causes[1:][-2:] or causes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx logs that it cannot read annotations of translation functions, and packages that it misses.

    onnx_ir logs each initializer whose value its optimizer does not see.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
