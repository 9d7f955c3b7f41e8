"""int8 GEMM whose epilogue dequantizes, adds outlier columns and bias, and stores once in the output's dtype."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from int8pass.kernels.cuda.arithmetic import NONE, int8_dot
from int8pass.kernels.cuda.capability import has_bfloat16_product, has_int8_product
from int8pass.kernels.cuda.outlier_columns import load_outliers, load_weight_columns
from int8pass.kernels.cuda.tuning import autotune, prune_tiles, tile

_CONFIGS = [
    tile(16, 32, 256, warps=4, stages=4),
    tile(16, 64, 256, warps=4, stages=4),
    tile(32, 64, 128, warps=4, stages=4),
    tile(64, 64, 128, warps=4, stages=4),
    tile(64, 128, 128, warps=4, stages=3),
    tile(128, 128, 64, warps=8, stages=4),
    tile(128, 128, 128, warps=8, stages=3),
    tile(128, 256, 64, warps=8, stages=4),
    tile(128, 256, 128, warps=8, stages=3),
    tile(256, 128, 64, warps=8, stages=4),
]
_TILE_ROWS_AT_ONCE = tl.constexpr(8)  # neighbouring programs share weight tiles in the L2 cache
# Of outlier columns: the least depth of a matrix product in 16 bits.
_COLUMNS_AT_ONCE = tl.constexpr(16)


@autotune(_CONFIGS, key=["N", "K", "size"], prune=prune_tiles)
@triton.heuristics({"EVEN_K": lambda arguments: arguments["K"] % arguments["BLOCK_K"] == 0})
@triton.jit(do_not_specialize=["size"])
def _int8_gemm(
    codes, x_scale, w_codes, w_scale, bias, x, weight, columns, y, M, N, K, x_stride, stride_n, stride_k, threshold,
    size, OUTLIERS: tl.constexpr, DEQUANTIZED: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    in_group = _TILE_ROWS_AT_ONCE * tiles_n
    first = tl.program_id(0) // in_group * _TILE_ROWS_AT_ONCE
    height = tl.minimum(tiles_m - first, _TILE_ROWS_AT_ONCE)
    m = (first + tl.program_id(0) % in_group % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % in_group // height * BLOCK_N + tl.arange(0, BLOCK_N)

    # Rows past the end read again those from the start, and are not stored.
    k = tl.arange(0, BLOCK_K)
    code_tile = codes + (m % M).to(tl.int64)[:, None] * K + k[None, :]
    weight_tile = w_codes + (n % N).to(tl.int64)[None, :] * K + k[:, None]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            left, right = tl.load(code_tile), tl.load(weight_tile)
        else:
            left = tl.load(code_tile, mask=k[None, :] < K - start, other=0)
            right = tl.load(weight_tile, mask=k[:, None] < K - start, other=0)
        sums = int8_dot(left, right, sums, HALF)
        code_tile += BLOCK_K
        weight_tile += BLOCK_K

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
            right = load_weight_columns(weight, n, N, column, listed, stride_n, stride_k)
            if DEQUANTIZED and WIDE:
                right = right.to(tl.float32) * column_scale[None, :]
            elif DEQUANTIZED:  # fractions of 128: exact in both 16-bit types, and the product cannot overflow
                right = (right.to(tl.float32) * 0.0078125).to(left.dtype)
            if WIDE:
                result = tl.dot(left.to(tl.float32), right.to(tl.float32), result, input_precision="ieee")
            elif DEQUANTIZED:
                result += tl.dot(left, right) * (column_scale * 128.0)[None, :]
            else:
                result = tl.dot(left, right, result)
    if bias is not None:
        result += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    place = y + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def int8_gemm(
    codes: Tensor, x_scale: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, x: Tensor,
    weight: Tensor | None, columns: Tensor, outliers: int, threshold: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The LLM.int8() Linear of a quantized x.

    codes: int8[M, K]; x_scale: float32[M]; w_codes: int8[N, K]; w_scale: float32[N]; bias: [N] or None; x: [M, K] as it
    was; weight: [N, K] floating, any strides, or None to dequantize columns from w_codes; columns: as `quantize` lists
    them; outliers: NONE, COLUMN, TOKEN or LISTED. Result: [M, N] in `dtype`. Outlier products: of float32, IEEE
    multiply-adds; of 16-bit floats, tensor cores, whose products are exact and whose sums are float32.
    """
    (M, K), N = codes.shape, w_codes.shape[0]
    y = torch.empty((M, N), dtype=dtype, device=codes.device)
    source = w_codes if weight is None else weight

    def grid(meta):
        return (triton.cdiv(M, meta["BLOCK_M"]) * triton.cdiv(N, meta["BLOCK_N"]),)

    _int8_gemm[grid](
        codes, x_scale, w_codes, w_scale, bias, x, source, columns, y, M, N, K, x.stride(0), *source.stride(),
        threshold, triton.next_power_of_2(M), OUTLIERS=outliers, DEQUANTIZED=weight is None,
        WIDE=_is_wide(x, weight), HALF=not has_int8_product(x.device),
    )  # fmt: skip
    return y


def _is_wide(x: Tensor, weight: Tensor | None) -> bool:
    """Whether outliers are multiplied in float32: float32, mixed dtypes, and bfloat16 where it has to be."""
    mixed = weight is not None and weight.dtype != x.dtype
    return x.dtype == torch.float32 or mixed or (x.dtype == torch.bfloat16 and not has_bfloat16_product(x.device))
