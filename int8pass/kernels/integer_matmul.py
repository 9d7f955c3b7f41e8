"""The exact int8 x int8 -> int32 matrix product, on any device.

oneDNN's int8 kernels are exact only where the processor has VNNI, AMX or an equivalent: without them `vpmaddubsw`
saturates sums of two products at 16 bits (AVX-512 core), or the product is a plain loop (AVX2). A probe of all-extreme
inputs tells the first case once a process, and follows ONEDNN_MAX_CPU_ISA too.
"""

import functools
import logging

import torch
from torch import Tensor

from int8pass.quantization.absmax import INT8_MAX
from int8pass.torch_private import has_int8_instructions, int8_product

logger = logging.getLogger(__name__)

# Products summed in float32 stay exact integers below 2**24.
EXACT_FLOAT32_TERMS = 2**24 // INT8_MAX**2
# Of the weight: a float copy of so many rows is a few MB, however large the layer.
_ROWS_AT_ONCE = 1024


def integer_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T exactly. x: int8[M, K]; weight: int8[N, K]. Result: int32[M, N]."""
    if x.numel() == 0 or weight.numel() == 0:
        return x.new_zeros((x.shape[0], weight.shape[0]), dtype=torch.int32)
    if x.shape[1] == 1:  # torch's product gives garbage for K = 1
        return x.to(torch.int32) * weight.t().to(torch.int32)
    if x.device.type == "cpu" and has_exact_int8_instructions():
        return int8_product(x, weight.t())
    return matmul_through_float32(x, weight)


@functools.cache
def has_exact_int8_instructions() -> bool:
    """Whether oneDNN's int8 product is fast, and exact on this CPU with all codes at +-127."""
    x = torch.full((16, 64), INT8_MAX, dtype=torch.int8, device="cpu")
    weight = torch.full((64, 64), INT8_MAX, dtype=torch.int8, device="cpu")
    weight[1::2] = -INT8_MAX
    exact = has_int8_instructions() and torch.equal(int8_product(x, weight.t()), matmul_through_float32(x, weight))
    if not exact:
        logger.warning(
            "this CPU has no exact int8 instructions (VNNI or AMX): int8 products outside the fused kernel run through "
            "float32, with the same results, but slower than 16-bit"
        )
    return exact


def matmul_through_float32(x: Tensor, weight: Tensor) -> Tensor:
    """The same product in float32, over chunks of K so short that every partial sum is an exact integer."""
    total = torch.zeros((x.shape[0], weight.shape[0]), dtype=torch.int32, device=x.device)
    for start in range(0, x.shape[1], EXACT_FLOAT32_TERMS):
        columns = slice(start, start + EXACT_FLOAT32_TERMS)
        part = x[:, columns].float()
        for outputs, rows in zip(total.split(_ROWS_AT_ONCE, 1), weight.split(_ROWS_AT_ONCE), strict=True):
            product = torch.empty(outputs.shape, dtype=torch.float32, device=x.device)
            # out= is not autocast, so an enclosing autocast region cannot round the sums
            torch.mm(part, rows[:, columns].float().t(), out=product)
            outputs += product.to(torch.int32)
    return total
