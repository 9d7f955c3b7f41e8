"""An ONNX model to a file, one tensor at a time."""

from pathlib import Path

import onnx_ir as ir

LARGEST_FILE_BYTES = 2**31 - 2**20  # protobuf's limit, less room for the graph
_SMALLEST_EXTERNAL_BYTES = 1024


def write(model: ir.Model, path: Path) -> None:
    """Write the model; where it would pass 2 GB, tensors from 1 KB on lie in a second file, `path` + ".data"."""
    external = nbytes(model) > LARGEST_FILE_BYTES
    ir.save(
        model,
        path,
        external_data=f"{path.name}.data" if external else None,
        size_threshold_bytes=_SMALLEST_EXTERNAL_BYTES,
    )


def nbytes(model: ir.Model) -> int:
    """Bytes of the model's initializers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
