"""`debug` of an ONNX file: its Linears, as ONNX Runtime computes them, in the float model that it was made from."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from int8pass.config import Int8MixedConfig
from int8pass.errors import OnnxFileError, ProfileError
from int8pass.export.targets import TARGETS
from int8pass.inspection.debug import Candidates, Doctor, Progress, option_candidates
from int8pass.inspection.diagnosis import Diagnosis
from int8pass.inspection.float_run import float_runs
from int8pass.inspection.onnx_file import FileContents, read_file
from int8pass.inspection.onnx_inputs import example_for
from int8pass.inspection.onnx_report import opened, require_same_linears
from int8pass.models import LoadedModel
from int8pass.quantization.profile import Profile, ProfiledLayer, weight_fingerprint


def diagnose_file(
    path: Path,
    against: LoadedModel,
    *,
    wanted_db: float | None = None,
    whole: bool = True,
    progress: Progress = lambda text: None,
) -> Diagnosis:
    """As `diagnose`, where a Linear's int8 form is the file's own nodes, run in ONNX Runtime.

    against: the float model that the file was made from. whole: also run the file itself. Options to repair a layer are
    computed by the ops of the rewrite; they take a new export. Raises OnnxFileError, also where the model is another
    one; MissingDependencyError, CaptureError.
    """
    contents = read_file(path)
    with opened(contents) as run:
        model, feed = example_for(against, run.session)
        config = _config(contents, model)
        with float_runs(model.model, model.args, model.kwargs, config, run.int8) as runs:
            try:
                doctor = Doctor(runs, config, progress, _candidates(contents.target))
            except ProfileError as error:  # the profile is made here, of the file's columns
                raise OnnxFileError(f"{str(path)!r} was made from another model: {error}") from error
            require_same_linears(path, [each.row.module for each in run.linears], doctor.modules)
            found = doctor.diagnosis(wanted_db)
        if whole:
            progress("the whole file")
            linears = zip(run.linears, run.taps(feed, [each.y for each in run.linears]), strict=True)
            output = run.outputs(feed)
            if not doctor.returns_like(output):
                raise OnnxFileError(f"{str(path)!r} returns other tensors than the model")
            found = doctor.with_compiled(found, output, [(each.row.module, y) for each, y in linears])
    return dataclasses.replace(found, file=path.name)


def _config(contents: FileContents, model: LoadedModel) -> Int8MixedConfig:
    """The options of the file, with its outlier columns as a profile of the float model where it has one."""
    if not contents.options["profile"]:
        return contents.config
    found = model.model.state_dict
    tensors = found() if callable(found) else found  # an ExportedProgram has it as a property
    rows = [row for row in contents.report.rows if row.rewritten]
    layers = {
        (row.weight, row.weight_shape[1]): ProfiledLayer(
            row.weight, row.weight_shape, 0.0, row.outlier_columns or (), weight_fingerprint(tensors[row.weight])
        )
        for row in rows
        if row.weight in tensors
    }
    return dataclasses.replace(
        contents.config, profile=Profile(tuple(layers.values()), contents.config.threshold, batches=1)
    )


def _candidates(target: str) -> Candidates:
    """What a file can be exported with, as its profile or its lack of one allows.

    Without a profile it keeps no float columns, and one for a target that finds no columns in a call has a profile.
    """
    unwanted = {"profile"} if TARGETS[target].runtime_columns else {"profile", "outliers", "threshold", "scheme"}

    def found(config: Int8MixedConfig) -> Iterator[tuple[str, Any]]:
        left_out = unwanted if config.profile is not None else unwanted | {"outlier_weights"}
        return (each for each in option_candidates(config) if each[0] not in left_out)

    return found
