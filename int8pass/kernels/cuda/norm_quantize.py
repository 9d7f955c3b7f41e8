"""One kernel over h: add a residual, LayerNorm or RMSNorm, outlier marks, scale of each row, int8 codes.

y, what the norm gives, is stored, since outliers are read from it, and so is the sum, which a model adds to again. Both
come from registers, where a row fits (`_LARGEST_BLOCK` features). Only `outliers="column"` reads y again: any row may
make a column an outlier, so codes are made once all rows are marked.
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
from int8pass.kernels.cuda.quantize import empty_parts, finds_columns, list_columns, quantize_rows

_LARGEST_BLOCK = 16384


@triton.jit
def _load_row(row, k, K):
    return tl.load(row + k, mask=k < K, other=0.0).to(tl.float32)


@triton.jit
def _norm_quantize_rows(
    x, residual, weight, bias, flags, total, y, codes, scales, K, x_stride, residual_stride, eps, threshold,
    CENTERED: tl.constexpr, OUTLIERS: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One row to each program. WHOLE: a row is one block, whose values stay in registers from loop to loop."""
    m = tl.program_id(0).to(tl.int64)
    end = BLOCK_K if WHOLE else K  # a constant makes loops of one turn none
    features = K * 1.0
    row = x + m * x_stride
    values = tl.zeros([BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        values = _load_row(row, k, K)
        if residual is not None:
            added = values + _load_row(residual + m * residual_stride, k, K)
            rounded = added.to(total.dtype.element_ty)
            tl.store(total + m * K + k, rounded, mask=k < K)
            values = rounded.to(tl.float32)
        sums += values if CENTERED else values * values
    if residual is not None:
        row = total + m * K
        if not WHOLE:  # what one thread stored, another one loads
            tl.debug_barrier()

    mean = 0.0
    if CENTERED:
        mean = tl.div_rn(tl.sum(sums, 0), features)
        sums = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, end, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            if not WHOLE:
                values = _load_row(row, k, K)
            distance = tl.where(k < K, values - mean, 0.0)
            sums += distance * distance
    factor = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(sums, 0), features) + eps))

    normed = tl.zeros([BLOCK_K], y.dtype.element_ty)
    bits = tl.zeros([BLOCK_K], tl.int32)
    for start in range(0, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if not WHOLE:
            values = _load_row(row, k, K)
        result = (values - mean) * factor
        if weight is not None:
            result *= _load_row(weight, k, K)
        if bias is not None:
            result += _load_row(bias, k, K)
        normed = result.to(y.dtype.element_ty)
        tl.store(y + m * K + k, normed, mask=k < K)
        size = tl.where(k < K, magnitude_bits(normed), 0)
        if OUTLIERS == COLUMN or OUTLIERS == TOKEN:
            over = is_outlier(normed, threshold) & (k < K)
            tl.store(flags + k, over.to(tl.int8), mask=over)
            size = tl.where(over, 0, size)
        elif OUTLIERS != NONE:
            size = tl.where(tl.load(flags + k, mask=k < K, other=0) != 0, 0, size)
        bits = tl.maximum(bits, size)

    if OUTLIERS != COLUMN:
        scale = absmax_scale(tl.max(bits, 0))
        tl.store(scales + m, scale)
        if not WHOLE:
            tl.debug_barrier()
        for start in range(0, end, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            if not WHOLE:
                normed = tl.load(y + m * K + k, mask=k < K, other=0.0)
            code = absmax_codes(normed, scale)
            if OUTLIERS == TOKEN:
                code = tl.where(is_outlier(normed, threshold), 0, code)
            elif OUTLIERS != NONE:
                code = tl.where(tl.load(flags + k, mask=k < K, other=0) != 0, 0, code)
            tl.store(codes + m * K + k, code.to(tl.int8), mask=k < K)


def norm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool,
    outliers: int, threshold: float, flags: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Add, normalize over the last dimension, and quantize what that gives.

    x, residual: [M, K] floating, of one dtype, rows contiguous; weight, bias: [K] or None; centered: LayerNorm, else
    RMSNorm; outliers, threshold, flags: as for `quantize`. Returns y [M, K]
    in the dtype of x: float32 arithmetic on x + residual, rounded to the dtype as PyTorch does, then one rounding;
    codes, scale and columns as `quantize` makes them of y; and that sum [M, K], empty without a residual.
    """
    M, K = x.shape
    y = torch.empty((M, K), dtype=x.dtype, device=x.device)
    total = torch.empty_like(y) if residual is not None else x.new_empty(0)
    codes, scales, columns = empty_parts(y, outliers)
    if finds_columns(outliers):
        flags = torch.zeros(K, dtype=torch.int8, device=x.device)
    block = min(triton.next_power_of_2(K), _LARGEST_BLOCK)
    _norm_quantize_rows[(M,)](
        x, residual, weight, bias, flags, total, y, codes, scales, K, x.stride(0),
        0 if residual is None else residual.stride(0), eps, threshold, CENTERED=centered, OUTLIERS=outliers,
        BLOCK_K=block, WHOLE=K <= block, num_warps=_warps(block),
    )  # fmt: skip
    if outliers == COLUMN.value:
        quantize_rows(y, outliers, threshold, flags, codes, scales, columns)
    elif outliers == TOKEN.value:
        list_columns(flags, columns)
    return y, codes, scales, columns, total


def _warps(block: int) -> int:
    """At most 32 features of a row in the registers of each thread, at most 16 warps."""
    return min(16, max(4, block // 512))
