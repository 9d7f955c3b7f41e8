"""What a file says of itself: versions, options, what became of each Linear, and a hash of the source weights."""

import dataclasses
import hashlib
import importlib.metadata
import json
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from int8pass.export.streamed_program import StreamedProgram
from int8pass.export.targets import Target
from int8pass.program import Decision, Program
from int8pass.quantization.profile import Profile
from int8pass.version import VERSION

SCHEMA_VERSION = 3
PREFIX = "int8pass."
MODULE = f"{PREFIX}module"  # of a node: the dotted name of the module that it comes from
OPERATION = f"{PREFIX}op"  # of a node: the op of int8pass that it is a part of
_LIBRARIES = ("torch", "onnx", "onnxscript")
_OPTIONS = ("threshold", "outliers", "outlier_weights", "skip_modules", "skip_modules_default")


def describe(model: ir.Model, program: StreamedProgram, target: Target) -> None:
    """Add the model's metadata: JSON texts under keys that begin with "int8pass."."""
    config, profile = program.config, program.config.profile
    options = {"scheme": config.scheme.name, **{name: getattr(config, name) for name in _OPTIONS}}
    facts = {
        "schema": SCHEMA_VERSION,
        "versions": {"int8pass": VERSION, **{name: importlib.metadata.version(name) for name in _LIBRARIES}},
        "target": target.name,
        "options": {**options, "profile": None if profile is None else profile.fingerprint},
        "linears": [_linear(decision, program) for decision in program.decisions],
        "weights": weights_hash(program),
    }
    model.metadata_props.update({f"{PREFIX}{name}": json.dumps(value) for name, value in facts.items()})


def _linear(decision: Decision, program: StreamedProgram) -> dict[str, Any]:
    """A decision; outlier_columns: those of the profile, None where they are found in each call."""
    columns: tuple[int, ...] | None = ()
    if decision.rewritten and program.config.threshold:
        columns = _profiled(program.config.profile, decision)
    return {**dataclasses.asdict(decision), "outlier_columns": columns}


def _profiled(profile: Profile | None, decision: Decision) -> tuple[int, ...] | None:
    if profile is None:
        return None
    key = (decision.weight, decision.weight_shape[1])
    return next(layer.outlier_columns for layer in profile.layers if (layer.weight, layer.shape[1]) == key)


def weights_hash(program: Program) -> str:
    """SHA-256 over the names, dtypes, shapes and all bytes of the source model's parameters and buffers, by name."""
    digest = hashlib.sha256()
    known: dict[int, str] = {}  # a tied weight is read once
    for source in sorted(program.tensors.values(), key=lambda each: each.name):
        if isinstance(source.tensor, Tensor):
            if id(source.tensor) not in known:
                known[id(source.tensor)] = tensor_hash(source.tensor)
            digest.update(f"{source.name} {known[id(source.tensor)]}\n".encode())
    return digest.hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and all bytes of a tensor, row by row whatever its strides."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
