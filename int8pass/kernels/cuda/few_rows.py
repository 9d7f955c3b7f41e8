"""The Linear of at most 16 rows in one kernel: each int8 weight is read once, and that is what takes the time.

Every program finds the scales and outliers of all rows by itself: x is a few KB out of the cache, and another kernel
before this one would take longer than that. Where N is so small that the programs would not fill the device, several
share a tile of outputs, each over a part of K, and a second kernel adds their sums in a fixed order.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from int8pass.kernels.cuda.arithmetic import (
    COLUMN,
    LISTED,
    NONE,
    absmax_codes,
    absmax_scale,
    int8_dot,
    is_outlier,
    magnitude_bits,
)
from int8pass.kernels.cuda.capability import has_int8_product, multiprocessors
from int8pass.kernels.cuda.epilogue import is_rounded
from int8pass.kernels.cuda.outlier_columns import load_outliers, load_weight_columns, unit_of
from int8pass.kernels.cuda.tuning import autotune

MOST_ROWS = 16
# Tensor cores take 16 rows at a time: fewer are repeated to make as many.
_TILE_ROWS = tl.constexpr(16)
_COLUMNS_AT_ONCE = tl.constexpr(16)
_PROGRAMS_A_MULTIPROCESSOR = 1
_LEAST_PART = 1024

_CONFIGS = [
    triton.Config({"BLOCK_N": 32, "BLOCK_K": 256}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_N": 32, "BLOCK_K": 512}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_N": 16, "BLOCK_K": 512}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_N": 16, "BLOCK_K": 1024}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_N": 64, "BLOCK_K": 256}, num_warps=4, num_stages=4),
]


@triton.jit
def _outliers_of(x, flags, values, m, M, k, K, threshold, OUTLIERS: tl.constexpr):
    """Which of a block of x are outliers: bool[ROWS, BLOCK]."""
    inside = (m < M)[:, None] & (k < K)[None, :]
    if OUTLIERS == LISTED:
        return (tl.load(flags + k, mask=k < K, other=0) != 0)[None, :] & inside
    over = is_outlier(values, threshold) & inside
    if OUTLIERS == COLUMN:
        return (tl.max(over.to(tl.int32), axis=0) > 0)[None, :] & inside
    return over


@triton.jit
def _load_rows(x, m, M, k, K, stride):
    return tl.load(
        x + m.to(tl.int64)[:, None] * stride + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0
    )


@triton.jit
def _find_columns(x, flags, m, M, K, stride, threshold, first, OUTLIERS: tl.constexpr, BLOCK: tl.constexpr):
    """The outlier columns number first, first + 1, ..., ascending: int32[_COLUMNS_AT_ONCE], -1 past the last."""
    slot = first + tl.arange(0, _COLUMNS_AT_ONCE)
    column = tl.zeros([_COLUMNS_AT_ONCE], tl.int32) - 1
    found = 0
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        values = _load_rows(x, m, M, k, K, stride)
        over = _outliers_of(x, flags, values, m, M, k, K, threshold, OUTLIERS)
        flag = tl.max(over.to(tl.int32), axis=0)
        rank = found + tl.cumsum(flag, 0) - 1
        hit = (rank[None, :] == slot[:, None]) & (flag > 0)[None, :]
        column = tl.maximum(column, tl.max(tl.where(hit, k[None, :], -1), axis=1))
        found += tl.sum(flag, 0)
    return column


@autotune(_CONFIGS, key=["N", "K", "ROWS", "PARTS"])
@triton.jit
def few_rows_kernel(
    x, flags, w_codes, w_scale, bias, weight, words, y, part_sums, part_outliers, M, N, K, x_stride, stride_n, stride_k,
    threshold, OUTLIERS: tl.constexpr, DEQUANTIZED: tl.constexpr, ROUNDED: tl.constexpr, SLOTS: tl.constexpr,
    HALF: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_X: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    K = K // ALIGN * ALIGN  # tells the compiler what K is a multiple of: it sees by itself only whether of 16
    part = tl.program_id(1)
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_scale = tl.load(w_scale + n, mask=n < N, other=0.0)

    bits = tl.zeros([ROWS, BLOCK_X], tl.int32)
    found = 0
    for start in range(0, K, BLOCK_X):
        k = start + tl.arange(0, BLOCK_X)
        values = _load_rows(x, m, M, k, K, x_stride)
        size = magnitude_bits(values)
        if OUTLIERS != NONE:
            over = _outliers_of(x, flags, values, m, M, k, K, threshold, OUTLIERS)
            size = tl.where(over, 0, size)
            found += tl.sum(tl.max(over.to(tl.int32), axis=0), 0)
        bits = tl.maximum(bits, size)
    row_scale = absmax_scale(tl.max(bits, axis=1))

    outlier = tl.zeros([ROWS, BLOCK_N], tl.float32)
    if OUTLIERS != NONE:
        if part == 0:
            for first in tl.range(0, found, _COLUMNS_AT_ONCE, num_stages=1):
                column = _find_columns(x, flags, m, M, K, x_stride, threshold, first, OUTLIERS, BLOCK_X)
                left = load_outliers(x, m, M, column, column >= 0, x_stride, threshold, OUTLIERS).to(tl.float32)
                right = load_weight_columns(
                    weight, words, unit_of(column_scale), n, N, column, column >= 0,
                    first + tl.arange(0, _COLUMNS_AT_ONCE), stride_n, stride_k, SLOTS, ROUNDED,
                ).to(tl.float32)  # fmt: skip
                if DEQUANTIZED:
                    right = right * column_scale[:, None]
                # summed over the last axis: over the middle one Triton would make it a product in TF32
                outlier += tl.sum(left[:, None, :] * right[None, :, :], axis=2)

    sums = tl.zeros([_TILE_ROWS, BLOCK_N], tl.int32)
    length = tl.cdiv(tl.cdiv(K, BLOCK_K), PARTS) * BLOCK_K
    for start in range(part * length, tl.minimum(K, part * length + length), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        offset = (n % N).to(tl.int64)[None, :] * K + k[:, None]
        right = tl.load(w_codes + offset, mask=(k < K)[:, None], other=0, eviction_policy="evict_first")
        values = _load_rows(x, m, M, k, K, x_stride)
        code = absmax_codes(values, row_scale[:, None])
        if OUTLIERS != NONE:
            code = tl.where(_outliers_of(x, flags, values, m, M, k, K, threshold, OUTLIERS), 0, code).to(tl.int8)
        repeated = tl.broadcast_to(code[:, None, :], [ROWS, _TILE_ROWS // ROWS, BLOCK_K])
        sums = int8_dot(tl.reshape(repeated, [_TILE_ROWS, BLOCK_K]), right, sums, HALF)
    total = tl.max(tl.reshape(sums, [ROWS, _TILE_ROWS // ROWS, BLOCK_N]), axis=1)  # all equal

    place = m[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    if PARTS == 1:
        result = total.to(tl.float32) * column_scale[None, :] * row_scale[:, None] + outlier
        if bias is not None:
            result += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        tl.store(y + place, result.to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(part_sums + part * M * N + place, total, mask=inside)
        if part == 0:
            tl.store(part_outliers + M + place, outlier, mask=inside)
            if tl.program_id(0) == 0:
                tl.store(part_outliers + m, row_scale, mask=m < M)


@triton.jit
def _add_parts(part_sums, part_outliers, w_scale, bias, y, M, N, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of all parts (integers, exact), then what the epilogue does. part_outliers: M scales, then [M, N]."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m, n, inside = place // N, place % N, place < M * N
    total = tl.zeros([BLOCK], tl.int32)
    for part in range(PARTS):
        total += tl.load(part_sums + part * M * N + place, mask=inside, other=0)
    column_scale = tl.load(w_scale + n, mask=inside, other=0.0)
    result = total.to(tl.float32) * column_scale * tl.load(part_outliers + m, mask=inside, other=0.0)
    result += tl.load(part_outliers + M + place, mask=inside, other=0.0)
    if bias is not None:
        result += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, result.to(y.dtype.element_ty), mask=inside)


def few_rows_linear(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, weight: Tensor | None, words: Tensor | None,
    flags: Tensor | None, outliers: int, threshold: float, dtype: torch.dtype, parts: int | None = None,
) -> Tensor:  # fmt: skip
    """The LLM.int8() Linear of at most 16 rows.

    x: [M, K] floating; w_codes: int8[N, K]; w_scale: float32[N]; bias: [N] or None; weight: [N, K] floating, any
    strides, or None to dequantize columns from w_codes; words: a cache for its columns, or None; flags: int8[K] for
    LISTED; parts: into how many K is split, None to choose. Result: [M, N] in `dtype`.
    """
    (M, K), N = x.shape, w_codes.shape[0]
    parts = _parts(N, K, x.device) if parts is None else parts
    y = torch.empty((M, N), dtype=dtype, device=x.device)
    part_sums = part_outliers = None
    if parts > 1:
        part_sums = torch.empty((parts, M, N), dtype=torch.int32, device=x.device)
        part_outliers = torch.empty(M + M * N, dtype=torch.float32, device=x.device)
    source = w_codes if weight is None else weight
    rows = triton.next_power_of_2(M)
    few_rows_kernel[lambda meta: (triton.cdiv(N, meta["BLOCK_N"]), parts)](
        x, flags, w_codes, w_scale, bias, source, words, y, part_sums, part_outliers, M, N, K, x.stride(0),
        *source.stride(), threshold, OUTLIERS=outliers, DEQUANTIZED=weight is None,
        ROUNDED=is_rounded(source, outliers), SLOTS=0 if words is None else words.shape[0],
        HALF=not has_int8_product(x.device), ROWS=rows, PARTS=parts, ALIGN=math.gcd(K, 16),
        BLOCK_X=min(max(256, 1024 // rows), max(16, triton.next_power_of_2(K))),
    )  # fmt: skip
    if parts > 1:
        _add_parts[(triton.cdiv(M * N, 256),)](part_sums, part_outliers, w_scale, bias, y, M, N, PARTS=parts, BLOCK=256)
    return y


def _parts(N: int, K: int, device: torch.device) -> int:
    """How many programs share an output tile, so that all multiprocessors have work."""
    wanted = multiprocessors(device) * _PROGRAMS_A_MULTIPROCESSOR
    programs = triton.cdiv(N, 32)
    return max(1, min(wanted // programs, K // _LEAST_PART))
