"""Device functions: the operands of the product over outlier columns, x[:, O] @ W[:, O].T, 16 columns at a time."""

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
def load_weight_columns(
    weight, words, unit, n, N, column, listed, number, stride_n, stride_k, SLOTS: tl.constexpr, ROUNDED: tl.constexpr
):
    """W[n, column], 0 where a column is not listed.

    (Transposed by its reader: loaded as [columns, n], Triton 3.6 fails to make an operand of tensor cores of it.)

    words: a cache (`column_words.py`) of SLOTS rows, or None; number: of each column in the call's list, of which the
    first SLOTS go through the cache. ROUNDED: float32 weights are rounded to float16 in units of unit[n], as
    `quantization/columns.py` does.
    """
    inside = (n < N)[:, None] & listed[None, :]
    source = weight + n.to(tl.int64)[:, None] * stride_n + column.to(tl.int64)[None, :] * stride_k
    if words is None:
        values = tl.load(source, mask=inside, other=0)
        if ROUNDED:
            values = tl.div_rn(values, unit[:, None]).to(tl.float16)
    else:
        # past the first-level cache, which other multiprocessors' words do not reach
        block = column // SLOTS
        slot = (column + block * (block + 1) // 2) % SLOTS
        place = words + slot.to(tl.int64)[None, :] * N + n[:, None]
        kept = inside & (number < SLOTS)[None, :]
        word = tl.load(place, mask=kept, other=0, cache_modifier=".cg")
        tag = (block + 1)[None, :]
        WIDE: tl.constexpr = words.dtype.element_ty == tl.int64
        missing = inside & ((word >> (32 if WIDE else 16)) != tag)
        fresh = tl.load(source, mask=missing, other=0)
        if ROUNDED:
            fresh = tl.div_rn(fresh, unit[:, None]).to(tl.float16)
        if WIDE:
            low = tl.where(missing, fresh.to(tl.int32, bitcast=True).to(tl.int64), word) & 0xFFFFFFFF
            tl.store(place, (tag.to(tl.int64) << 32) | low, mask=kept & missing, cache_modifier=".cg")
            values = low.to(tl.int32).to(fresh.dtype, bitcast=True)
        else:
            low = tl.where(missing, fresh.to(tl.int16, bitcast=True).to(tl.int32), word) & 0xFFFF
            tl.store(place, (tag << 16) | low, mask=kept & missing, cache_modifier=".cg")
            values = low.to(tl.int16).to(fresh.dtype, bitcast=True)
    if ROUNDED:
        values = values.to(tl.float32) * unit[:, None]
    return values


@triton.jit
def unit_of(scale):
    """In what a float32 weight's columns are rounded to float16: the scale of a row, 1 where that is 0."""
    return tl.where(scale == 0.0, 1.0, scale)
