"""A report of an ONNX file that int8pass exported: what its metadata, its weights and its graph tell, without a run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from int8pass.config import Int8MixedConfig
from int8pass.errors import OnnxFileError
from int8pass.inspection.observation import Details, level_counts, levels
from int8pass.inspection.onnx_stage import file_stage
from int8pass.inspection.report import Report, Row

if TYPE_CHECKING:
    import onnx_ir as ir

    from int8pass.export.tensorrt.onnx_graph import OnnxGraph

_COLUMN_BYTES = 2  # columns of a profile are kept in 16 bits
SUFFIX = ".onnx"
STAGE = "file"  # the one stage that a file has


class Int8Weight(NamedTuple):
    """Tensors of a file. codes: int8[K, N], or padded; scale: float32[N]."""

    codes: "ir.TensorProtocol"
    scale: "ir.TensorProtocol"


def is_onnx_file(spec: str | Path) -> bool:
    """Whether a MODEL argument names an ONNX file."""
    return Path(spec).suffix == SUFFIX


@dataclass(frozen=True)
class FileContents:
    """What is read of a file. weights: of each row of the report, in its order; None where it is not int8.

    target: the runtime that it was exported for, see export/targets.py.
    """

    path: Path
    graph: "OnnxGraph"
    report: Report
    weights: tuple[Int8Weight | None, ...]
    options: dict[str, Any]
    target: str

    @property
    def config(self) -> Int8MixedConfig:
        """The options that the file was exported with, without its profile."""
        return Int8MixedConfig.from_options({name: value for name, value in self.options.items() if name != "profile"})


def explain_file(path: Path) -> Report:
    """The decisions, outlier columns, bytes and weights of a file of `export_onnx`, and its graph as one stage.

    What only a run tells is absent: errors, magnitudes, times, and columns that are found in each call. Raises
    OnnxFileError where it is no ONNX file or was not exported by this int8pass; MissingDependencyError.
    """
    return read_file(path).report


def read_file(path: Path) -> FileContents:
    """A file with its report. Raises as `explain_file` does."""
    from int8pass.export.tensorrt.onnx_graph import load_graph

    graph = load_graph(path)
    facts = _facts(graph, path)
    weights = _int8_weights(facts["linears"], graph)
    rows = list(map(_row, facts["linears"], weights))
    stage = file_stage(STAGE, graph, {row.weight for row in rows if row.weight})
    places = {node.module: place for place, node in reversed(list(enumerate(stage.nodes))) if node.kind == "call"}
    order = sorted(range(len(rows)), key=lambda number: places.get(rows[number].module, len(stage.nodes)))
    report = Report(
        tuple(rows[number] for number in order),
        threshold=facts["options"]["threshold"],
        outliers=facts["options"]["outliers"],
        scheme=facts["options"]["scheme"],
        profile=facts["options"]["profile"] or "",
        file=path.name,
        stages=((stage,),),
        details=tuple(_details(rows[number], weights[number]) for number in order),
    )
    held = tuple(weights[number] for number in order)
    return FileContents(path, graph, report, held, facts["options"], facts["target"])


def _facts(graph: "OnnxGraph", path: Path) -> dict[str, Any]:
    from int8pass.export.metadata import PREFIX, SCHEMA_VERSION

    found = graph.model.metadata_props
    texts = {name.removeprefix(PREFIX): text for name, text in found.items() if name.startswith(PREFIX)}
    if "linears" not in texts:
        raise OnnxFileError(
            f"{str(path)!r} was not exported by int8pass, so it does not say what became of its Linears; `int8pass "
            "export onnx` writes files that do, and `int8pass check` takes any ONNX file"
        )
    if texts.get("schema") != str(SCHEMA_VERSION):
        raise OnnxFileError(
            f"{str(path)!r} was exported by another version of int8pass (schema {texts.get('schema')}, and this one "
            f"reads {SCHEMA_VERSION}): export it again"
        )
    return {name: json.loads(text) for name, text in texts.items()}


def _int8_weights(linears: list[dict[str, Any]], graph: "OnnxGraph") -> list[Int8Weight | None]:
    """Of each Linear, its int8 weight. Views of one weight are numbered in the order in which they were rewritten."""
    tensors = {name: value.const_value for name, value in graph.model.graph.initializers.items()}
    views: dict[str, list[str]] = {}
    found: list[Int8Weight | None] = []
    for linear in linears:
        seen = views.setdefault(linear["weight"], [])
        if not linear["reason"] and linear["view"] not in seen:
            seen.append(linear["view"])
        number = seen.index(linear["view"]) if linear["view"] in seen else 0
        names = (f"{linear['weight']}_{part}" + (f"_{number}" if number else "") for part in ("inputs_first", "scale"))
        codes, scale = map(tensors.get, names)
        is_int8 = not linear["reason"] and codes is not None and scale is not None
        found.append(Int8Weight(codes, scale) if is_int8 else None)
    return found


def _row(linear: dict[str, Any], weight: Int8Weight | None) -> Row:
    rewritten, columns = not linear["reason"], linear["outlier_columns"]
    shape = None if linear["weight_shape"] is None else tuple(linear["weight_shape"])
    size = linear["weight_bytes"]
    if rewritten:
        int8 = linear["int8_bytes"] if weight is None else weight.codes.nbytes + weight.scale.nbytes
        size = int8 + _COLUMN_BYTES * len(columns or ()) * shape[0]
    return Row(
        module=linear["module"],
        operation=linear["operation"],
        weight_shape=shape,
        dtype=linear["dtype"],
        rewritten=rewritten,
        reason=linear["reason"],
        outlier_columns=None if columns is None else tuple(columns),
        snr_db=None,
        bytes_before=linear["weight_bytes"],
        bytes_after=size,
        bytes_peak=size,
        keeps_float=not rewritten,
        weight=linear["weight"],
        view=linear["view"],
    )


def _details(row: Row, weight: Int8Weight | None) -> Details:
    if weight is None:
        return Details(0, "")
    outputs, features = row.weight_shape
    codes = torch.from_numpy(weight.codes.numpy()[:features, :outputs].copy())  # without padding
    return Details(0, "", weights=levels(level_counts(codes), torch.from_numpy(weight.scale.numpy().copy())))
