"""Kernels over x: outlier columns, scale of each row, int8 codes. Nothing here is read back by the host.

`outliers="token"` reads x once from memory; `"column"` twice, since any row may make a column an outlier. (A row is
read a second time to be divided by its scale, out of the cache.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from int8pass.kernels.cuda.arithmetic import (
    COLUMN,
    NONE,
    TOKEN,
    absmax_codes,
    absmax_scale,
    is_outlier,
    magnitude_bits,
)

_LARGEST_BLOCK = 4096
_LIST_BLOCK = tl.constexpr(1024)
_MARK_ROWS, _MARK_COLUMNS = 32, 128


@triton.jit
def _mark_columns(x, flags, M, K, stride, threshold, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """flags[k] = 1 for each column k with an outlier among BLOCK_M rows. Every program that writes, writes 1."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (m < M)[:, None] & (k < K)[None, :]
    values = tl.load(x + m.to(tl.int64)[:, None] * stride + k[None, :], mask=inside, other=0.0)
    found = tl.max((is_outlier(values, threshold) & inside).to(tl.int32), axis=0)
    tl.store(flags + k, found.to(tl.int8), mask=found > 0)


@triton.jit
def _list_columns(flags, columns, K):
    """columns = [how many, then which, ascending, then zeros], from flags[K]. One program does it."""
    found = 0
    for start in range(0, K, _LIST_BLOCK):
        k = start + tl.arange(0, _LIST_BLOCK)
        flag = tl.load(flags + k, mask=k < K, other=0).to(tl.int32)
        listed = found + tl.cumsum(flag, 0)  # how many up to k
        place = tl.where(flag > 0, listed, K - (k - listed))
        tl.store(columns + place, tl.where(flag > 0, k, 0), mask=k < K)
        found += tl.sum(flag, 0)
    tl.store(columns, found)


@triton.jit
def _quantize_rows(
    x, flags, codes, scales, columns, M, K, stride, threshold, OUTLIERS: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Scale and codes of a row to each program; of `COLUMN`, where flags are complete, one more program lists them."""
    m = tl.program_id(0)
    if m < M:
        row = x + m.to(tl.int64) * stride
        bits = tl.zeros([BLOCK_K], tl.int32)
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            values = tl.load(row + k, mask=k < K, other=0.0)
            size = magnitude_bits(values)
            if OUTLIERS == TOKEN:
                over = is_outlier(values, threshold) & (k < K)
                tl.store(flags + k, over.to(tl.int8), mask=over)
                size = tl.where(over, 0, size)
            elif OUTLIERS != NONE:
                over = tl.load(flags + k, mask=k < K, other=0) != 0
                size = tl.where(over, 0, size)
            bits = tl.maximum(bits, size)
        scale = absmax_scale(tl.max(bits, 0))
        tl.store(scales + m, scale)
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            values = tl.load(row + k, mask=k < K, other=0.0)
            code = absmax_codes(values, scale)
            if OUTLIERS == TOKEN:
                code = tl.where(is_outlier(values, threshold), 0, code)
            elif OUTLIERS != NONE:
                code = tl.where(tl.load(flags + k, mask=k < K, other=0) != 0, 0, code)
            tl.store(codes + m.to(tl.int64) * K + k, code.to(tl.int8), mask=k < K)
    elif OUTLIERS == COLUMN:
        _list_columns(flags, columns, K)


@triton.jit
def _list_kernel(flags, columns, K):
    _list_columns(flags, columns, K)


def quantize(x: Tensor, outliers: int, threshold: float, flags: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize the rows of x.

    x: [M, K] floating, rows contiguous; outliers: one of NONE, COLUMN, TOKEN, LISTED; flags: int8[K], 1 at the known
    columns, for LISTED. Returns codes int8[M, K] (outliers as 0), scale float32[M], and for COLUMN and TOKEN the list
    of columns that hold an outlier: int32[K + 1], their number, they themselves, ascending, and zeros; else an empty
    tensor.
    """
    M, K = x.shape
    if finds_columns(outliers):
        flags = torch.zeros(K, dtype=torch.int8, device=x.device)
    if outliers == COLUMN.value:
        grid = (triton.cdiv(M, _MARK_ROWS), triton.cdiv(K, _MARK_COLUMNS))
        _mark_columns[grid](x, flags, M, K, x.stride(0), threshold, BLOCK_M=_MARK_ROWS, BLOCK_K=_MARK_COLUMNS)
    codes, scales, columns = empty_parts(x, outliers)
    quantize_rows(x, outliers, threshold, flags, codes, scales, columns)
    return codes, scales, columns


def finds_columns(outliers: int) -> bool:
    """Whether the columns with outliers are found in x, and listed."""
    return outliers in (COLUMN.value, TOKEN.value)


def empty_parts(x: Tensor, outliers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where codes, scales and columns go."""
    M, K = x.shape
    codes = torch.empty((M, K), dtype=torch.int8, device=x.device)
    scales = torch.empty(M, dtype=torch.float32, device=x.device)
    columns = torch.empty(K + 1 if finds_columns(outliers) else 0, dtype=torch.int32, device=x.device)
    return codes, scales, columns


def quantize_rows(
    x: Tensor, outliers: int, threshold: float, flags: Tensor | None, codes: Tensor, scales: Tensor, columns: Tensor
) -> None:  # fmt: skip
    """Fill codes, scales and columns. flags: for COLUMN and LISTED 1 at the outlier columns, for TOKEN zeros."""
    M, K = x.shape
    block = min(triton.next_power_of_2(K), _LARGEST_BLOCK)
    _quantize_rows[(M + 1 if outliers == COLUMN.value else M,)](
        x, flags, codes, scales, columns, M, K, x.stride(0), threshold,
        OUTLIERS=outliers, BLOCK_K=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    if outliers == TOKEN.value:
        list_columns(flags, columns)


def list_columns(flags: Tensor, columns: Tensor) -> None:
    """Fill columns from int8[K] flags."""
    _list_kernel[(1,)](flags, columns, flags.shape[0])
