"""Device functions: the product over outlier columns, x[:, O] @ W[:, O].T, sixteen or more columns at a time."""

import triton
import triton.language as tl

from int8pass.kernels.cuda.arithmetic import TOKEN, is_outlier


@triton.jit
def load_outliers(x, m, M, column, listed, stride, threshold, OUTLIERS: tl.constexpr):
    """x[m, column] with 0 where a column is not listed or, for TOKEN, where the element is no outlier."""
    inside = (m < M)[:, None] & listed[None, :]
    values = tl.load(x + m.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0.0)
    if OUTLIERS == TOKEN:
        values = tl.where(is_outlier(values, threshold), values, 0.0).to(values.dtype)
    return values


@triton.jit
def load_weight_columns(weight, n, N, column, listed, stride_n, stride_k):
    """W[n, column], transposed: [columns, n]. Of a row-major weight each element costs a memory sector of 32 bytes."""
    inside = (n < N)[None, :] & listed[:, None]
    offset = n.to(tl.int64)[None, :] * stride_n + column.to(tl.int64)[:, None] * stride_k
    return tl.load(weight + offset, mask=inside, other=0)
