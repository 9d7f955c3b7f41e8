"""TensorRT through torch-tensorrt: int8 Linears as explicit quantization, every weight a constant of the engine.

**Not yet run on a GPU**: README.md in this folder says what was checked without one.
"""

from int8pass.lower.tensorrt.compile import compile_program, lower
from int8pass.lower.tensorrt.package import import_torch_tensorrt
from int8pass.pipeline import Pass

PASSES: tuple[Pass, ...] = ()  # torch-tensorrt runs its own, and `to_scaled_int8_mm` after them

__all__ = ["PASSES", "compile_program", "import_torch_tensorrt", "lower"]
