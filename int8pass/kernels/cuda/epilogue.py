"""What follows int8 sums: dequantize, add outlier columns and bias, store once in the output's dtype.

`finish` is the epilogue of the GEMM. `finish_sums` is a kernel of it alone, for sums that lie in memory: the parts of a
GEMM that was split along K, or cuBLASLt's.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from int8pass.kernels.cuda.arithmetic import LISTED, NONE
from int8pass.kernels.cuda.capability import has_bfloat16_product
from int8pass.kernels.cuda.outlier_columns import load_outliers, load_weight_columns, unit_of

# Of outlier columns: the least depth of a matrix product in 16 bits.
_COLUMNS_AT_ONCE = tl.constexpr(16)
_BLOCK_M, _BLOCK_N = 32, 128


@dataclass(frozen=True)
class Epilogue:
    """What a Linear adds to int8 sums [M, N].

    x_scale: float32[M]; w_scale: float32[N]; bias: [N] or None; x: [M, K] as it was; weight: [N, K] floating, any
    strides, or int8 codes to dequantize columns from; words: a cache for its columns, or None; columns: as `quantize`
    lists them; outliers: NONE, COLUMN, TOKEN or LISTED; dtype: of the result.
    """

    x_scale: Tensor
    w_scale: Tensor
    bias: Tensor | None
    x: Tensor
    weight: Tensor
    words: Tensor | None
    columns: Tensor
    outliers: int
    threshold: float
    dtype: torch.dtype

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Arguments of a kernel."""
        return self.x_scale, self.w_scale, self.bias, self.x, self.weight, self.words, self.columns

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.x.stride(0), *self.weight.stride()

    @property
    def constants(self) -> dict[str, int | bool]:
        return {
            "OUTLIERS": self.outliers,
            "DEQUANTIZED": self.weight.dtype == torch.int8,
            "ROUNDED": is_rounded(self.weight, self.outliers),
            "WIDE": self._is_wide,
            "SLOTS": 0 if self.words is None else self.words.shape[0],
        }

    @property
    def _is_wide(self) -> bool:
        """Whether outliers are multiplied in float32: float32, mixed dtypes, and bfloat16 where it has to be."""
        mixed = self.weight.dtype not in (torch.int8, self.x.dtype)
        narrow = self.x.dtype != torch.bfloat16 or has_bfloat16_product(self.x.device)
        return self.x.dtype == torch.float32 or mixed or not narrow

    def empty(self, rows: int) -> Tensor:
        """Where the result goes: [M, N]."""
        return torch.empty((rows, self.w_scale.shape[0]), dtype=self.dtype, device=self.x.device)


def is_rounded(weight: Tensor, outliers: int) -> bool:
    """Whether columns are rounded to 16 bits: those that a profile names, of a float32 weight."""
    return outliers == LISTED.value and weight.dtype == torch.float32


@triton.jit
def finish(
    sums, m, n, M, N, x_scale, w_scale, bias, x, weight, words, columns, y, x_stride, stride_n, stride_k, threshold,
    OUTLIERS: tl.constexpr, DEQUANTIZED: tl.constexpr, ROUNDED: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """y[m, n] of int32 sums [m, n]."""
    row_scale = tl.load(x_scale + m, mask=m < M, other=0.0)
    column_scale = tl.load(w_scale + n, mask=n < N, other=0.0)
    # sums * column_scale first: |sums| >= 1 there, so no product underflows before the last one
    result = sums.to(tl.float32) * column_scale[None, :] * row_scale[:, None]
    if OUTLIERS != NONE:
        count = tl.load(columns)
        slot = tl.arange(0, _COLUMNS_AT_ONCE)
        for start in tl.range(0, count, _COLUMNS_AT_ONCE, num_stages=1):
            listed = start + slot < count
            column = tl.load(columns + 1 + start + slot, mask=listed, other=0)
            left = load_outliers(x, m, M, column, listed, x_stride, threshold, OUTLIERS)
            right = load_weight_columns(
                weight, words, unit_of(column_scale), n, N, column, listed, start + slot, stride_n, stride_k, SLOTS,
                ROUNDED,
            )  # fmt: skip
            if DEQUANTIZED and WIDE:
                right = right.to(tl.float32) * column_scale[:, None]
            elif DEQUANTIZED:  # fractions of 128: exact in both 16-bit types, and the product cannot overflow
                right = (right.to(tl.float32) * 0.0078125).to(left.dtype)
            if WIDE:
                right = tl.trans(right.to(tl.float32))
                result = tl.dot(left.to(tl.float32), right, result, input_precision="ieee")
            elif DEQUANTIZED:
                result += tl.dot(left, tl.trans(right)) * (column_scale * 128.0)[None, :]
            else:
                result = tl.dot(left, tl.trans(right), result)
    if bias is not None:
        result += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    place = y + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def _finish_sums(
    sums, part_stride, x_scale, w_scale, bias, x, weight, words, columns, y, M, N, x_stride, stride_n, stride_k,
    threshold, PARTS: tl.constexpr, OUTLIERS: tl.constexpr, DEQUANTIZED: tl.constexpr, ROUNDED: tl.constexpr,
    WIDE: tl.constexpr, SLOTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (m < M)[:, None] & (n < N)[None, :]
    place = m.to(tl.int64)[:, None] * N + n[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for _ in range(PARTS):
        total += tl.load(sums + place, mask=inside, other=0)
        sums += part_stride
    finish(
        total, m, n, M, N, x_scale, w_scale, bias, x, weight, words, columns, y, x_stride, stride_n, stride_k,
        threshold, OUTLIERS, DEQUANTIZED, ROUNDED, WIDE, SLOTS,
    )  # fmt: skip


def finish_sums(sums: Tensor, epilogue: Epilogue) -> Tensor:
    """The result [M, N] of int32 sums [parts, M, N], which are added: integers, exact in any order."""
    parts, M, N = sums.shape
    y = epilogue.empty(M)
    _finish_sums[(triton.cdiv(M, _BLOCK_M), triton.cdiv(N, _BLOCK_N))](
        sums, M * N, *epilogue.tensors, y, M, N, *epilogue.strides, epilogue.threshold, PARTS=parts,
        **epilogue.constants, BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_N, num_warps=4,
    )  # fmt: skip
    return y
