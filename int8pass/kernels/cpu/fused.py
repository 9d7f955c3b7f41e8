"""The ops of the fused CPU kernel: schemas and shape functions; the implementation is linear.cpp."""

import functools
import logging

import torch

from int8pass.kernels.cpu import build
from int8pass.kernels.cpu.packing import GROUP_K, LARGEST_K, code_offset, pack
from int8pass.quantization.absmax import INT8_MAX

logger = logging.getLogger(__name__)

_LIBRARY = torch.library.Library("int8pass", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)

# x [..., K] -> codes uint8[..., K rounded up to 4] with zero point 128, scale float32[...], outlier columns bool[K].
# columns, here and below: outlier features of a profile, in place of those past the threshold, with weights read in 16
# bits.
_LIBRARY.define(
    "cpu_quantize(Tensor x, float threshold, bool per_token, int[]? columns=None) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)

# packed int8[N/64, K/4, 64, 4], offset int32[N], weight float[N, K] or None to dequantize, cache: a column cache or
# None -> [..., N] in dtype
_LIBRARY.define(
    "cpu_linear(Tensor x, Tensor codes, Tensor scale, Tensor outliers, Tensor packed, Tensor offset, Tensor w_scale, "
    "Tensor? bias, Tensor? weight, Tensor? cache, float threshold, bool per_token, ScalarType dtype, "
    "int[]? columns=None) -> Tensor",
    tags=_TAGS,
)

# both in one, for an input that no other Linear reads
_LIBRARY.define(
    "cpu_int8_linear(Tensor x, Tensor packed, Tensor offset, Tensor w_scale, Tensor? bias, Tensor? weight, "
    "Tensor? cache, float threshold, bool per_token, ScalarType dtype, int[]? columns=None) -> Tensor",
    tags=_TAGS,
)

# the same by a scale known beforehand: values past 127 * scale are clamped; columns: the outlier features
_LIBRARY.define("cpu_quantize_static(Tensor x, float scale, int[] columns) -> (Tensor, Tensor, Tensor)", tags=_TAGS)
_LIBRARY.define(
    "cpu_static_linear(Tensor x, Tensor packed, Tensor offset, Tensor w_scale, Tensor? bias, Tensor? weight, "
    "Tensor? cache, float scale, int[] columns, ScalarType dtype) -> Tensor",
    tags=_TAGS,
)

# A cache for the outlier columns of one float weight, in the storage of a uint8 tensor: filled by cpu_linear, bounded,
# shared by threads. Copies of that tensor are no caches, and are passed over.
COLUMN_CACHE_BYTES = 256
_LIBRARY.define("cpu_column_cache(int capacity) -> Tensor")

# int64[4]: columns found, columns gathered, columns held, bytes held
_LIBRARY.define("cpu_column_cache_counts(Tensor cache) -> Tensor")

# whose int8 GEMM this processor uses
_LIBRARY.define("cpu_integer_gemm() -> str")

cpu_quantize = torch.ops.int8pass.cpu_quantize.default
cpu_linear = torch.ops.int8pass.cpu_linear.default
cpu_int8_linear = torch.ops.int8pass.cpu_int8_linear.default
cpu_quantize_static = torch.ops.int8pass.cpu_quantize_static.default
cpu_static_linear = torch.ops.int8pass.cpu_static_linear.default
cpu_column_cache = torch.ops.int8pass.cpu_column_cache.default
cpu_column_cache_counts = torch.ops.int8pass.cpu_column_cache_counts.default
cpu_integer_gemm = torch.ops.int8pass.cpu_integer_gemm.default


@torch.library.register_fake("int8pass::cpu_quantize", lib=_LIBRARY)
def _cpu_quantize_fake(x, threshold, per_token, columns=None):
    padded = -(-x.shape[-1] // GROUP_K) * GROUP_K
    codes = x.new_empty((*x.shape[:-1], padded), dtype=torch.uint8)
    return codes, x.new_empty(x.shape[:-1], dtype=torch.float32), x.new_empty(x.shape[-1:], dtype=torch.bool)


@torch.library.register_fake("int8pass::cpu_quantize_static", lib=_LIBRARY)
def _cpu_quantize_static_fake(x, scale, columns):
    return _cpu_quantize_fake(x, 0.0, False)


@torch.library.register_fake("int8pass::cpu_static_linear", lib=_LIBRARY)
def _cpu_static_linear_fake(x, packed, offset, w_scale, bias, weight, cache, scale, columns, dtype):
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype)


@torch.library.register_fake("int8pass::cpu_linear", lib=_LIBRARY)
def _cpu_linear_fake(
    x, codes, scale, outliers, packed, offset, w_scale, bias, weight, cache, threshold, per_token, dtype, columns=None
):  # fmt: skip
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype)


@torch.library.register_fake("int8pass::cpu_int8_linear", lib=_LIBRARY)
def _cpu_int8_linear_fake(
    x, packed, offset, w_scale, bias, weight, cache, threshold, per_token, dtype, columns=None
):  # fmt: skip
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype)


@functools.cache
def is_available() -> bool:
    """Whether the kernel can be built and is exact on this CPU. Where not, one log line says why."""
    reason = build.load() or _inexact()
    if reason:
        logger.warning("the fused CPU kernel is not used, the ops run one by one: %s", reason)
    else:
        logger.info("the fused CPU kernel multiplies int8 by %s", cpu_integer_gemm())
    return not reason


def _inexact() -> str:
    """Run extreme codes through the kernel, where wrong instructions would saturate. Returns why it cannot be used."""
    codes = torch.full((64, 256), INT8_MAX, dtype=torch.int8, device="cpu")
    codes[1::2] = -INT8_MAX
    scale = torch.ones(64, dtype=torch.float32, device="cpu")
    packed, offset = pack(codes), code_offset(codes)
    for rows in (1, 17):
        x = torch.full((rows, 256), float(INT8_MAX), dtype=torch.float32, device="cpu")
        x[:, ::3] *= -1.0
        quantized = cpu_quantize(x, 0.0, False)
        y = cpu_linear(x, *quantized, packed, offset, scale, None, None, None, 0.0, False, torch.float32)
        if not torch.equal(y.double(), x.double() @ codes.double().t()):
            return f"its int8 sums by {cpu_integer_gemm()} are not exact on this CPU"
    return ""


def cache_capacity(columns: int) -> int:
    """How many outlier columns of an [N, K] weight are kept: float32, so at most 1/8 of its int8 bytes from K = 256."""
    return min(64, max(8, columns // 32))


__all__ = [
    "COLUMN_CACHE_BYTES",
    "LARGEST_K",
    "cache_capacity",
    "cpu_column_cache",
    "cpu_column_cache_counts",
    "cpu_int8_linear",
    "cpu_integer_gemm",
    "cpu_linear",
    "cpu_quantize",
    "is_available",
]
