"""The two ops of the fused CPU kernel: schemas and shape functions; the implementation is linear.cpp."""

import functools
import logging

import torch

from int8pass.kernels.cpu import build
from int8pass.kernels.cpu.packing import GROUP_K, LARGEST_K, code_offset, pack
from int8pass.quantization.absmax import INT8_MAX

logger = logging.getLogger(__name__)

_LIBRARY = torch.library.Library("int8pass", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)

# x [..., K] -> codes uint8[..., K rounded up to 4] with zero point 128, scale float32[...], outlier columns bool[K]
_LIBRARY.define("cpu_quantize(Tensor x, float threshold, bool per_token) -> (Tensor, Tensor, Tensor)", tags=_TAGS)

# packed int8[N/64, K/4, 64, 4], offset int32[N], weight float[N, K] or None to dequantize -> [..., N] in dtype
_LIBRARY.define(
    "cpu_linear(Tensor x, Tensor codes, Tensor scale, Tensor outliers, Tensor packed, Tensor offset, Tensor w_scale, "
    "Tensor? bias, Tensor? weight, float threshold, bool per_token, ScalarType dtype) -> Tensor",
    tags=_TAGS,
)

cpu_quantize = torch.ops.int8pass.cpu_quantize.default
cpu_linear = torch.ops.int8pass.cpu_linear.default


@torch.library.register_fake("int8pass::cpu_quantize", lib=_LIBRARY)
def _cpu_quantize_fake(x, threshold, per_token):
    padded = -(-x.shape[-1] // GROUP_K) * GROUP_K
    codes = x.new_empty((*x.shape[:-1], padded), dtype=torch.uint8)
    return codes, x.new_empty(x.shape[:-1], dtype=torch.float32), x.new_empty(x.shape[-1:], dtype=torch.bool)


@torch.library.register_fake("int8pass::cpu_linear", lib=_LIBRARY)
def _cpu_linear_fake(
    x, codes, scale, outliers, packed, offset, w_scale, bias, weight, threshold, per_token, dtype
):  # fmt: skip
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype)


@functools.cache
def is_available() -> bool:
    """Whether the kernel can be built and is exact on this CPU. Where not, one log line says why."""
    reason = build.load() or _inexact()
    if reason:
        logger.warning("the fused CPU kernel is not used, the ops run one by one: %s", reason)
    return not reason


def _inexact() -> str:
    """Run extreme codes through the kernel: without VNNI its sums would saturate. Returns why it cannot be used."""
    codes = torch.full((64, 256), INT8_MAX, dtype=torch.int8, device="cpu")
    codes[1::2] = -INT8_MAX
    x = torch.full((17, 256), float(INT8_MAX), dtype=torch.float32, device="cpu")
    x[:, ::3] *= -1.0
    scale = torch.ones(64, dtype=torch.float32, device="cpu")
    try:
        quantized = cpu_quantize(x, 0.0, False)
        y = cpu_linear(x, *quantized, pack(codes), code_offset(codes), scale, None, None, 0.0, False, torch.float32)
    except RuntimeError as error:  # oneDNN has no int8 kernel for this instruction set
        return str(error).splitlines()[0]
    exact = torch.equal(y.double(), x.double() @ codes.double().t())
    return "" if exact else "its int8 sums are not exact on this CPU (no VNNI or AMX)"


__all__ = ["LARGEST_K", "cpu_linear", "cpu_quantize", "is_available"]
