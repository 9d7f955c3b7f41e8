"""A report of an ONNX file that is run: activations, times, and errors against the float model it was made from."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from int8pass import ops
from int8pass.composition import call_op, outlier_mask, quantize_activation
from int8pass.config import Int8MixedConfig
from int8pass.errors import OnnxFileError
from int8pass.inspection.float_run import LinearCall, float_runs
from int8pass.inspection.observation import Details, Observation
from int8pass.inspection.onnx_file import FileContents, Int8Weight, read_file
from int8pass.inspection.onnx_inputs import BATCH, LENGTH, example_for, made_up
from int8pass.inspection.onnx_linears import FileLinear, linears_of
from int8pass.inspection.onnx_run import Feed, FileRun, file_run
from int8pass.inspection.onnx_timing import time_linears
from int8pass.inspection.report import Report, Row
from int8pass.models import LoadedModel

MADE_UP = f"made-up inputs (sizes that are open: {BATCH} first, then {LENGTH})"


def explain_run(path: Path, against: LoadedModel | None, against_name: str = "", timings: bool = False) -> Report:
    """The report of a file that runs once in ONNX Runtime, with what its Linears meet there.

    against: the float model that the file was made from, whose example inputs it is run on, and which gives each
    Linear's error: on its float input, in the file's own nodes. None: the file is run on made-up inputs, and has no
    errors. Raises OnnxFileError, MissingDependencyError; CaptureError of the model.
    """
    contents = read_file(path)
    with opened(contents) as run:
        if against is None:
            inputs, feed = MADE_UP, made_up(run.session)
            _require_runnable(run, feed)
            errors: dict[tuple[str, str], Observation] = {}
        else:
            model, feed = example_for(against, run.session)
            inputs, errors = f"the inputs of {against_name}", _errors(run, model, contents.config)
        return dataclasses.replace(_with_inputs(contents, run, feed, errors, timings), inputs=inputs)


def _require_runnable(run: FileRun, feed: Feed) -> None:
    try:
        run.outputs(feed)
    except OnnxFileError as error:
        raise OnnxFileError(f"{error}; those were made-up inputs: give the model of the file with --against") from error


@contextlib.contextmanager
def opened(contents: FileContents) -> Iterator[FileRun]:
    """A file with its int8 Linears, to run. Raises OnnxFileError where their nodes cannot be told."""
    held = [pair for pair in zip(contents.report.rows, contents.weights, strict=True) if pair[1] is not None]
    linears = linears_of(contents.graph, [row for row, _ in held], [weight.codes.name for _, weight in held])
    with file_run(contents.graph, contents.path, linears) as run:
        yield run


def _errors(run: FileRun, model: LoadedModel, config: Int8MixedConfig) -> dict[tuple[str, str], Observation]:
    """By weight and view, the energies of the float output and of the error of the file's own nodes."""
    found: dict[tuple[str, str], Observation] = {}

    def at_linear(call: LinearCall) -> Tensor:
        key = (call.graph.program.tensors[call.expression.root].name, call.expression.key)
        found.setdefault(key, Observation()).add_error(call.y, call.int8())
        return call.y

    with float_runs(model.model, model.args, model.kwargs, config, run.int8) as runs:
        runs.run(at_linear)
    in_file = [each.row.module for each in run.linears]
    require_same_linears(run.path, in_file, [each.row.module for each in run.linears if each.key in found])
    return found


def require_same_linears(path: Path, in_file: Sequence[str], in_model: Sequence[str]) -> None:
    """Raise OnnxFileError where a model does not run the int8 Linears of a file, each as often."""
    for module, count in (Counter(in_file) - Counter(in_model)).items():
        raise OnnxFileError(
            f"{str(path)!r} runs {module!r} {count} times more than the model does: it was made from another model"
        )
    for module, count in (Counter(in_model) - Counter(in_file)).items():
        raise OnnxFileError(
            f"the model runs {module!r} {count} times more than {str(path)!r} does: it was made from another model"
        )


def _with_inputs(
    contents: FileContents, run: FileRun, feed: Feed, errors: dict[tuple[str, str], Observation], timings: bool
) -> Report:
    report, weights = contents.report, dict(zip(map(id, contents.report.rows), contents.weights, strict=True))
    met = run.taps(feed, [linear.x for linear in run.linears])
    times = [None] * len(met)
    if timings:
        times = time_linears(run, feed, [_float_weight(linear.row, weights[id(linear.row)]) for linear in run.linears])
    rows, details = list(report.rows), list(report.details)
    places = {id(row): place for place, row in enumerate(report.rows)}
    for linear, x, timing in zip(run.linears, met, times, strict=True):
        place = places[id(linear.row)]
        observed = _observed(linear, x, contents.config)
        error = errors.get(linear.key)
        rows[place] = dataclasses.replace(
            linear.row,
            timing=timing,
            snr_db=None if error is None else error.snr_db,
            outlier_columns=tuple(sorted(observed.columns)),
            missed_columns=tuple(sorted(observed.missed)),
        )
        details[place] = _filled(details[place], observed)
    return dataclasses.replace(report, rows=tuple(rows), details=tuple(details))


def _observed(linear: FileLinear, x: Tensor, config: Int8MixedConfig) -> Observation:
    """What a Linear meets in the file. With columns of a profile, those are its outlier columns, met or not."""
    found, named = Observation(), linear.row.outlier_columns
    mask = outlier_mask(call_op, x, config.threshold, config.outliers, named)
    found.add_input(x, mask, quantize_activation(call_op, config.scheme.activations, x, mask))
    if named is not None and config.threshold:
        reached = ops.outlier_mask(x, config.threshold, "column").nonzero().flatten().tolist()
        found.missed = set(reached) - set(named)
    return found


def _filled(details: Details, observed: Observation) -> Details:
    """The details of a file's Linear, with those of its inputs."""
    empty = torch.zeros(0, dtype=torch.int8)
    met = observed.details(details.graph, details.node, empty, torch.zeros(0))
    return dataclasses.replace(met, weights=details.weights)


def _float_weight(row: Row, weight: Int8Weight) -> np.ndarray:
    """float32[K, N] of the codes of a file, without padding."""
    outputs, features = row.weight_shape
    return weight.codes.numpy()[:features, :outputs].astype("float32") * weight.scale.numpy()
