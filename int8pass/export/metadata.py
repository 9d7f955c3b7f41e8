"""What a file says of itself: versions, options, what became of each Linear, and a hash of the source weights."""

import dataclasses
import hashlib
import importlib.metadata
import json

import onnx_ir as ir
import torch

from int8pass.export.streamed_program import StreamedProgram
from int8pass.export.targets import Target
from int8pass.program import Program
from int8pass.quantization.profile import weight_fingerprint

SCHEMA_VERSION = 1
PREFIX = "int8pass."
_OPTIONS = ("threshold", "outliers", "outlier_weights", "skip_modules", "skip_modules_default")


def describe(model: ir.Model, program: StreamedProgram, target: Target) -> None:
    """Add the model's metadata: JSON texts under keys that begin with "int8pass."."""
    config, profile = program.config, program.config.profile
    options = {"scheme": config.scheme.name, **{name: getattr(config, name) for name in _OPTIONS}}
    facts = {
        "schema": SCHEMA_VERSION,
        "versions": {name: importlib.metadata.version(name) for name in ("int8pass", "torch", "onnx", "onnxscript")},
        "target": target.name,
        "options": {**options, "profile": None if profile is None else profile.fingerprint},
        "linears": [dataclasses.asdict(decision) for decision in program.decisions],
        "weights": weights_hash(program),
    }
    model.metadata_props.update({f"{PREFIX}{name}": json.dumps(value) for name, value in facts.items()})


def weights_hash(program: Program) -> str:
    """SHA-256 over names, shapes, dtypes and sampled values of all parameters and buffers of the source model."""
    digest = hashlib.sha256()
    for source in sorted(program.tensors.values(), key=lambda each: each.name):
        if isinstance(source.tensor, torch.Tensor):
            digest.update(f"{source.name} {weight_fingerprint(source.tensor)}\n".encode())
    return digest.hexdigest()
