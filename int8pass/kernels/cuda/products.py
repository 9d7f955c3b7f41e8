"""Whose int8 product Linears of many rows take on a GPU: Triton's, unless cuBLASLt's was measured to be faster there.

`examples/bench_gpu.py --products` measures and keeps the times (`comparisons.py`).
"""

from dataclasses import dataclass

import torch

from int8pass.kernels.cuda.comparisons import Comparisons, rows_up_to

TRITON, CUBLASLT = "triton", "cublaslt"
_FEWEST_ROWS, _MULTIPLE = 17, 8  # of torch._int_mm on CUDA


@dataclass(frozen=True)
class Size:
    """Linears that share a choice. rows: M, rounded up to a power of two; dtype: of x, in words."""

    rows: int
    out_features: int
    in_features: int
    dtype: str

    @classmethod
    def of(cls, M: int, N: int, K: int, dtype: torch.dtype) -> "Size":
        return cls(rows_up_to(M), N, K, str(dtype).removeprefix("torch."))


# of a Linear by cuBLASLt's product over that by Triton's, what follows the product included
COMPARISONS = Comparisons("cuda_products", Size, "Triton's int8 product is used throughout")


def cublaslt_takes(M: int, N: int, K: int) -> bool:
    """Whether PyTorch hands cuBLASLt an int8 product [M, K] x [K, N]: 17 rows or more, N and K multiples of 8."""
    return M >= _FEWEST_ROWS and N > 0 and K > 0 and N % _MULTIPLE == 0 and K % _MULTIPLE == 0


def product_for(M: int, N: int, K: int, dtype: torch.dtype, device: torch.device) -> str:
    """TRITON, or CUBLASLT where it takes the product and was measured to be faster on the device."""
    faster = cublaslt_takes(M, N, K) and Size.of(M, N, K, dtype) in COMPARISONS.faster(device)
    return CUBLASLT if faster else TRITON
