"""The weight layout of the fused CPU kernel: [N/64, K/4, 64, 4] int8, zero-padded (VNNI blocks)."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_N = 64
GROUP_K = 4
ZERO_POINT = 128
# beyond this K a sum of products with unsigned codes could overflow int32
LARGEST_K = torch.iinfo(torch.int32).max // (255 * 127)


def packed_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """The shape of an [N, K] weight once packed."""
    return -(-rows // BLOCK_N), -(-columns // GROUP_K), BLOCK_N, GROUP_K


def pack(codes: Tensor) -> Tensor:
    """Pack int8[N, K]."""
    blocks, groups, _, _ = packed_shape(*codes.shape)
    padded = F.pad(codes, (0, groups * GROUP_K - codes.shape[1], 0, blocks * BLOCK_N - codes.shape[0]))
    return padded.view(blocks, BLOCK_N, groups, GROUP_K).permute(0, 2, 1, 3).contiguous()


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The int8[N, K] that was packed."""
    blocks, groups, _, _ = packed.shape
    padded = packed.permute(0, 2, 1, 3).reshape(blocks * BLOCK_N, groups * GROUP_K)
    return padded[:rows, :columns].contiguous()


def code_offset(codes: Tensor) -> Tensor:
    """What unsigned activation codes add to each output's sum: 128 * sum over K of the weight's codes. int32[N]."""
    return (codes.sum(1, dtype=torch.int64) * ZERO_POINT).to(torch.int32)
