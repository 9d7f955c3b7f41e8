"""A report of an ONNX file that int8pass exported: what its metadata, its weights and its graph tell, without a run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from int8pass.errors import OnnxFileError
from int8pass.inspection.observation import Details, Levels, level_counts, levels
from int8pass.inspection.onnx_stage import file_stage
from int8pass.inspection.report import Report, Row

if TYPE_CHECKING:
    from int8pass.export.tensorrt.onnx_graph import OnnxGraph

SUFFIX = ".onnx"
STAGE = "file"  # the one stage that a file has


def is_onnx_file(spec: str | Path) -> bool:
    """Whether a MODEL argument names an ONNX file."""
    return Path(spec).suffix == SUFFIX


def explain_file(path: Path) -> Report:
    """The decisions, outlier columns, bytes and weights of a file of `export_onnx`, and its graph as one stage.

    What only a run tells is absent: errors, magnitudes, times, and columns that are found in each call. Raises
    OnnxFileError where it is no ONNX file or was not exported by this int8pass; MissingDependencyError.
    """
    from int8pass.export.tensorrt.onnx_graph import load_graph

    graph = load_graph(path)
    facts = _facts(graph, path)
    rows = [_row(linear, facts["options"]["outlier_weights"]) for linear in facts["linears"]]
    stage = file_stage(STAGE, graph, {row.weight for row in rows if row.weight})
    places = {node.module: place for place, node in reversed(list(enumerate(stage.nodes))) if node.kind == "call"}
    rows.sort(key=lambda row: places.get(row.module, len(stage.nodes)))
    return Report(
        tuple(rows),
        threshold=facts["options"]["threshold"],
        outliers=facts["options"]["outliers"],
        profile=facts["options"]["profile"] or "",
        file=path.name,
        stages=((stage,),),
        details=_details(rows, graph),
    )


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


def _row(linear: dict[str, Any], outlier_weights: str | None) -> Row:
    rewritten, columns = not linear["reason"], linear["outlier_columns"]
    shape = None if linear["weight_shape"] is None else tuple(linear["weight_shape"])
    size = linear["weight_bytes"]
    if rewritten:
        float_size = 4 if outlier_weights == "dequantized" else linear["weight_bytes"] // (shape[0] * shape[1])
        size = linear["int8_bytes"] + len(columns or ()) * shape[0] * float_size
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


def _details(rows: Iterable[Row], graph: "OnnxGraph") -> tuple[Details, ...]:
    """The int8 weights of each row. Views of one weight are numbered in the order in which they were rewritten."""
    tensors = {name: value.const_value for name, value in graph.model.graph.initializers.items()}
    views: dict[str, list[str]] = {}
    found = []
    for row in rows:
        seen = views.setdefault(row.weight, [])
        if row.view not in seen:
            seen.append(row.view)
        number = f"_{seen.index(row.view)}" if seen.index(row.view) else ""
        codes, scale = (tensors.get(f"{row.weight}_{part}{number}") for part in ("inputs_first", "scale"))
        known = row.rewritten and codes is not None and scale is not None
        found.append(Details(0, "", weights=_levels(codes, scale) if known else None))
    return tuple(found)


def _levels(codes: Any, scale: Any) -> Levels | None:
    """Of ONNX tensors int8[K, N] and float32[N]."""
    return levels(level_counts(torch.from_numpy(codes.numpy().copy())), torch.from_numpy(scale.numpy().copy()))
