"""A Linear of at most 16 rows as one kernel, compiled before an engine is built: TensorRT launches it without Python.

Such a plugin is one launch over the pointers of its inputs, 32-bit integers, and the pointers of its outputs, in this
order, with no memory of its own. The kernel of `kernels/cuda/few_rows.py`, in one part, is that.
"""

import re
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from int8pass.errors import EngineError
from int8pass.kernels.cuda.few_rows import few_rows_kernel

_whole_linear = few_rows_kernel.fn  # without Triton's tuning: TensorRT times the tiles


class Tile(NamedTuple):
    """Outputs and features that a program multiplies at a time."""

    outputs: int
    features: int
    warps: int
    stages: int


TILES = (Tile(32, 256, 4, 2), Tile(64, 256, 4, 2), Tile(32, 256, 4, 4), Tile(16, 512, 4, 4), Tile(16, 1024, 4, 3))
# In bytes, what any launch may have; for more, a kernel must be told so, and TensorRT does not say that it does it.
LARGEST_SHARED_MEMORY = 48 * 1024
_FEATURES_AT_ONCE = 256  # of x, to find its scales and outliers
_AMPERE = (8, 0)
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int8: "*i8"}


@triton.jit(do_not_specialize=["rows"])
def int8pass_linear(
    x, w_codes, w_scale, bias, weight, rows, y, OUTPUTS: tl.constexpr, FEATURES: tl.constexpr, OUTLIERS: tl.constexpr,
    THRESHOLD: tl.constexpr, DEQUANTIZED: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    _whole_linear(
        x, None, w_codes, w_scale, bias, weight, None, y, None, None, rows, OUTPUTS, FEATURES, FEATURES, FEATURES, 1,
        THRESHOLD, OUTLIERS, DEQUANTIZED, False, 0, HALF, ROWS, 1, 1, BLOCK_X, BLOCK_N, BLOCK_K,
    )  # fmt: skip


class CompiledLinear(NamedTuple):
    """name: of the kernel; threads: of a program; shared_memory: of a program, in bytes."""

    name: str
    ptx: str
    threads: int
    shared_memory: int


class Problem(NamedTuple):
    """A Linear of up to `rows` rows, for a GPU of some compute capability.

    outliers: NONE, COLUMN or TOKEN of `kernels/cuda/fused.py`. dtypes: of x, w_codes, w_scale, bias, weight and y; a
    weight in int8: outlier columns are dequantized from it.
    """

    rows: int
    features: int
    outputs: int
    outliers: int
    threshold: float
    dtypes: tuple[torch.dtype, ...]
    capability: tuple[int, int]

    @property
    def half(self) -> bool:
        """Whether int8 products go by way of float16: Triton has no others for Turing."""
        return self.capability < _AMPERE

    def constants(self, tile: Tile) -> dict[str, int | float | bool]:
        """The kernel's constant arguments."""
        return {
            "OUTPUTS": self.outputs, "FEATURES": self.features, "OUTLIERS": self.outliers, "THRESHOLD": self.threshold,
            "DEQUANTIZED": self.dtypes[4] == torch.int8, "HALF": self.half, "ROWS": triton.next_power_of_2(self.rows),
            "BLOCK_N": tile.outputs, "BLOCK_K": tile.features, "BLOCK_X": _FEATURES_AT_ONCE,
        }  # fmt: skip

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Those of TILES that fit into shared memory.

        What is there: all but one stage of codes and of x, and the codes of x; on Turing, codes as 32-bit numbers.
        """
        rows, size = triton.next_power_of_2(self.rows), self.dtypes[0].itemsize

        def needed(tile: Tile) -> int:
            if self.half:
                return 4 * tile.outputs * tile.features
            return ((tile.stages - 1) * (tile.outputs + rows * size) + rows) * tile.features

        return tuple(tile for tile in TILES if needed(tile) <= LARGEST_SHARED_MEMORY)


def compile_linear(problem: Problem, tile: Tile) -> CompiledLinear:
    """Compile for a GPU that need not be there.

    Grid: one program for each `tile.outputs` outputs. Arguments: x, w_codes, w_scale, bias, weight, the number of rows,
    y; every pointer a multiple of 16, as TensorRT's are. Raises EngineError where Triton's kernel needs what TensorRT
    does not give one.
    """
    constants = problem.constants(tile)
    pointers = [_POINTERS[dtype] for dtype in problem.dtypes]
    types = [*pointers[:-1], "i32", pointers[-1], *("constexpr" for _ in constants)]
    signature = dict(zip(int8pass_linear.arg_names, types, strict=True))
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types) if kind.startswith("*")}
    major, minor = problem.capability
    compiled = triton.compile(
        ASTSource(int8pass_linear, signature, constants, aligned),
        target=GPUTarget("cuda", 10 * major + minor, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    arguments = len(types) - len(constants)
    ptx = without_scratch_memory(compiled.asm["ptx"], compiled.metadata.name, arguments)
    return CompiledLinear(compiled.metadata.name, ptx, 32 * tile.warps, compiled.metadata.shared)


def without_scratch_memory(ptx: str, name: str, arguments: int) -> str:
    """PTX whose kernel takes its own arguments alone: Triton appends pointers to scratch memory, even where unused.

    TensorRT passes none. Raises EngineError where the kernel uses one.
    """
    for parameter in {found for found in re.findall(rf"\b{name}_param_(\d+)\b", ptx) if int(found) >= arguments}:
        if len(re.findall(rf"\b{name}_param_{parameter}\b", ptx)) > 1:
            raise EngineError(f"Triton {triton.__version__} gives {name} scratch memory, and TensorRT has none for it")
        ptx = re.sub(rf",\s*\.param[^,()]*\b{name}_param_{parameter}\b", "", ptx)
    return ptx
