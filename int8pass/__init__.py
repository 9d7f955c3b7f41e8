"""LLM.int8() as a compiler pass: `torch.compile(model, backend="int8mixed")`."""

from int8pass.backend import int8mixed
from int8pass.config import Int8MixedConfig
from int8pass.convert import convert
from int8pass.errors import Int8PassError
from int8pass.export.onnx import export_onnx
from int8pass.export.tensorrt.build import build_engine
from int8pass.export.tensorrt.engine import load_engine
from int8pass.inspection.explain import explain
from int8pass.inspection.report import Report
from int8pass.int8_linear import Int8Linear, quantize_
from int8pass.quantization.calibrate import calibrate
from int8pass.quantization.profile import Profile
from int8pass.weight_cache import requantize

__all__ = [
    "Int8Linear",
    "Int8MixedConfig",
    "Int8PassError",
    "Profile",
    "Report",
    "build_engine",
    "calibrate",
    "convert",
    "explain",
    "export_onnx",
    "int8mixed",
    "load_engine",
    "quantize_",
    "requantize",
]
