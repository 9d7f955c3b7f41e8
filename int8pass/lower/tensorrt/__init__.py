"""TensorRT through torch-tensorrt: int8 Linears in its own layers or as a plugin, every weight an engine's constant.

**Not yet run on a GPU**: README.md in this folder says what was checked without one.
"""

from int8pass.lower.tensorrt.compile import compile_program, lower
from int8pass.lower.tensorrt.package import import_torch_tensorrt
from int8pass.pipeline import Pass

PASSES: tuple[Pass, ...] = ()  # torch-tensorrt runs its own, and `lower_linears` after them

__all__ = ["PASSES", "compile_program", "import_torch_tensorrt", "lower"]
