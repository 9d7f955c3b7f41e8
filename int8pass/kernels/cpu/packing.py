"""The weight layout of the fused CPU kernel: [N/64, K/4, 64, 4] int8, zero-padded (VNNI blocks)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from int8pass.kernels.cpu.huge_pages import empty_int8

BLOCK_N = 64
GROUP_K = 4
ZERO_POINT = 128
# beyond this K a sum of products with unsigned codes could overflow int32
LARGEST_K = torch.iinfo(torch.int32).max // (255 * 127)


def packed_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """The shape of an [N, K] weight once packed."""
    return -(-rows // BLOCK_N), -(-columns // GROUP_K), BLOCK_N, GROUP_K


def pack(codes: Tensor) -> Tensor:
    """Pack int8[N, K]. Block by block, so that memory holds no third copy of the weight."""
    blocks, groups, _, _ = packed_shape(*codes.shape)
    packed = empty_int8((blocks, groups, BLOCK_N, GROUP_K), codes.device)
    for block, part in enumerate(codes.split(BLOCK_N)):
        padded = F.pad(part, (0, groups * GROUP_K - part.shape[1], 0, BLOCK_N - part.shape[0]))
        packed[block] = padded.view(BLOCK_N, groups, GROUP_K).transpose(0, 1)
    return packed


def packing_scratch_bytes(columns: int) -> int:
    """The most that packing holds beside codes and packed codes: the int64 copy of a block that `code_offset` sums."""
    return BLOCK_N * columns * torch.int64.itemsize


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The int8[N, K] that was packed."""
    blocks, groups, _, _ = packed.shape
    padded = packed.permute(0, 2, 1, 3).reshape(blocks * BLOCK_N, groups * GROUP_K)
    return padded[:rows, :columns].contiguous()


def code_offset(codes: Tensor) -> Tensor:
    """What unsigned activation codes add to each output's sum: 128 * sum over K of the weight's codes. int32[N]."""
    offset = torch.empty(codes.shape[0], dtype=torch.int32, device=codes.device)
    for part, sums in zip(codes.split(BLOCK_N), offset.split(BLOCK_N), strict=True):
        sums.copy_(part.sum(1, dtype=torch.int64) * ZERO_POINT)  # the sum makes an int64 copy of its part
    return offset
