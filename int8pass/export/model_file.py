"""An ONNX model to a file, one tensor at a time: no second copy of the weights is ever held."""

from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

LARGEST_FILE_BYTES = 2**31 - 2**24  # protobuf's limit, less room for the graph
_SMALLEST_STREAMED_BYTES = 1024

# Keys of length-delimited fields in onnx.proto: field number * 8 + 2.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = bytes([7 * 8 + 2]), bytes([5 * 8 + 2]), bytes([9 * 8 + 2])


def write(model: ir.Model, path: Path) -> None:
    """Write the model; where it would pass 2 GB, tensors from 1 KB on lie in a second file, `path` + ".data"."""
    if nbytes(model) > LARGEST_FILE_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_SMALLEST_STREAMED_BYTES)
        return
    with open(path, "wb") as file:
        _write_one_file(model, file)


def nbytes(model: ir.Model) -> int:
    """Bytes of the model's initializers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def _write_one_file(model: ir.Model, file: BinaryIO) -> None:
    """Protobuf's wire format by hand: the fields of a message may stand in any order, so large tensors come last."""
    initializers = model.graph.initializers
    large = [value for value in initializers.values() if value.const_value.nbytes >= _SMALLEST_STREAMED_BYTES]
    for value in large:
        del initializers[value.name]
    proto = ir.serde.serialize_model(model)
    for value in large:
        initializers[value.name] = value
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    headers = [_header(value) for value in large]
    sizes = [len(header) + value.const_value.nbytes for header, value in zip(headers, large, strict=True)]
    fields = [_GRAPH_INITIALIZER + _varint(size) for size in sizes]
    file.write(proto.SerializeToString())
    file.write(_MODEL_GRAPH + _varint(len(graph) + sum(map(len, fields)) + sum(sizes)) + graph)
    for field, header, value in zip(fields, headers, large, strict=True):
        file.write(field + header)
        value.const_value.tofile(file)


def _header(value: ir.Value) -> bytes:
    """A TensorProto up to its raw data."""
    tensor = value.const_value
    proto = onnx.TensorProto(name=value.name, data_type=int(tensor.dtype), dims=[int(size) for size in tensor.shape])
    return proto.SerializeToString() + _TENSOR_RAW_DATA + _varint(tensor.nbytes)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
