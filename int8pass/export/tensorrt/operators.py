"""The operators that TensorRT's ONNX parser lists, from operators.json (which names its source and version)."""

import functools
import json
from dataclasses import dataclass
from importlib import resources

# operators.json's names of types -> ONNX's
ONNX_TYPES = {
    "FP32": "FLOAT",
    "FP16": "FLOAT16",
    "BF16": "BFLOAT16",
    "FP8": "FLOAT8E4M3FN",
    "FP4": "FLOAT4E2M1",
    **{name: name for name in ("INT4", "INT8", "INT32", "INT64", "UINT8", "BOOL")},
}


@dataclass(frozen=True)
class Operator:
    """types: ONNX names of the data types that the parser takes. restriction: in the list's words, or ""."""

    types: tuple[str, ...]
    restriction: str = ""


@dataclass(frozen=True)
class OperatorList:
    """supported: by operator name. tensorrt: the version that the list describes. opsets: first and last."""

    source: str
    tensorrt: str
    opsets: tuple[int, int]
    supported: dict[str, Operator]
    unsupported: tuple[str, ...]


@functools.cache
def operator_list() -> OperatorList:
    """The bundled list."""
    text = resources.files("int8pass.export.tensorrt").joinpath("operators.json").read_text(encoding="utf-8")
    data = json.loads(text)
    supported = {
        name: Operator(tuple(ONNX_TYPES[each] for each in entry["types"]), entry.get("restriction", ""))
        for name, entry in data["supported"].items()
    }
    opsets = (data["opset_minimum"], data["opset_maximum"])
    return OperatorList(data["source"], data["tensorrt"], opsets, supported, tuple(data["unsupported"]))
