"""Device functions: absmax quantization in float32, step by step that of quantization/absmax.py.

Division is IEEE division, rounding is half to even, subnormals count, and a NaN is never lost in a maximum.
"""

import triton
import triton.language as tl

from int8pass.kernels.cuda import fused

# As Triton reads them.
NONE, COLUMN = tl.constexpr(fused.NONE), tl.constexpr(fused.COLUMN)
TOKEN, LISTED = tl.constexpr(fused.TOKEN), tl.constexpr(fused.LISTED)

_SMALLEST_NORMAL = tl.constexpr(2.0**-126)
_INFINITY_BITS = tl.constexpr(0x7F800000)
# 1.5 * 2**23: a float32 below 2**22 in magnitude plus this, less this, is rounded to an integer, half to even
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def magnitude_bits(x):
    """|x| as the bits of a float32, which sort as numbers do, with NaN above infinity: their maximum keeps a NaN."""
    return tl.abs(x.to(tl.float32)).to(tl.int32, bitcast=True)


@triton.jit
def is_outlier(x, threshold):
    """|x| >= threshold, compared in float32."""
    return tl.abs(x.to(tl.float32)) >= threshold


@triton.jit
def absmax_scale(bits):
    """The scale of a row whose largest magnitude has these bits: NaN for NaN and infinity, 0 below normal numbers."""
    scale = tl.div_rn(bits.to(tl.float32, bitcast=True), 127.0)
    scale = tl.where(bits >= _INFINITY_BITS, float("nan"), scale)
    return tl.where(scale < _SMALLEST_NORMAL, 0.0, scale)


@triton.jit
def absmax_codes(x, scale):
    """round(x / scale) in [-127, 127] as int8; 0 where the scale is 0 or NaN."""
    ratio = tl.div_rn(x.to(tl.float32), scale)
    bounded = tl.minimum(tl.maximum(ratio, -127.0), 127.0)
    rounded = (bounded + _ROUNDER) - _ROUNDER
    return tl.where(scale > 0.0, rounded, 0.0).to(tl.int8)


@triton.jit
def int8_dot(left, right, sums, HALF: tl.constexpr):
    """sums + left @ right in int32, exact. HALF: by float16 products, whose float32 sums of at most 1024 terms are."""
    if HALF:
        sums += tl.dot(left.to(tl.float16), right.to(tl.float16)).to(tl.int32)
    else:
        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
    return sums
