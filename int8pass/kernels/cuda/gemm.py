"""int8 GEMM whose epilogue dequantizes, adds outlier columns and bias, and stores once in the output's dtype.

Where K is split, the parts leave int32 sums, and the epilogue is a kernel of its own.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from int8pass.kernels.cuda.arithmetic import int8_dot
from int8pass.kernels.cuda.capability import has_int8_product
from int8pass.kernels.cuda.epilogue import Epilogue, finish, finish_sums
from int8pass.kernels.cuda.tiles import Tile
from int8pass.kernels.cuda.tuning import autotune, prune_tiles

# For more than 64 rows; up to there `tiles.py` chooses.
_TILES = (
    Tile(32, 64, 128, warps=4, stages=4),
    Tile(64, 64, 128, warps=4, stages=4),
    Tile(64, 128, 128, warps=4, stages=3),
    Tile(128, 128, 64, warps=8, stages=4),
    Tile(128, 128, 128, warps=8, stages=3),
    Tile(128, 256, 64, warps=8, stages=4),
    Tile(128, 256, 128, warps=8, stages=3),
    Tile(256, 128, 64, warps=8, stages=4),
)
_TILE_ROWS_AT_ONCE = tl.constexpr(8)  # neighbouring programs share weight tiles in the L2 cache


@triton.heuristics({"EVEN_K": lambda arguments: arguments["K"] % arguments["BLOCK_K"] == 0})
@triton.jit(do_not_specialize=["size"])
def _int8_gemm(
    codes, w_codes, part_sums, x_scale, w_scale, bias, x, weight, words, columns, y, M, N, K, x_stride, stride_n,
    stride_k, threshold, size, PARTS: tl.constexpr, OUTLIERS: tl.constexpr, DEQUANTIZED: tl.constexpr,
    ROUNDED: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr, HALF: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    K = K // ALIGN * ALIGN  # tells the compiler what K is a multiple of: it sees by itself only whether of 16
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    in_group = _TILE_ROWS_AT_ONCE * tiles_n
    first = tl.program_id(0) // in_group * _TILE_ROWS_AT_ONCE
    height = tl.minimum(tiles_m - first, _TILE_ROWS_AT_ONCE)
    m = (first + tl.program_id(0) % in_group % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % in_group // height * BLOCK_N + tl.arange(0, BLOCK_N)

    length = tl.cdiv(tl.cdiv(K, BLOCK_K), PARTS) * BLOCK_K  # of this part of K
    begin = tl.program_id(1) * length
    # Rows past the end read again those from the start, and are not stored.
    k = begin + tl.arange(0, BLOCK_K)
    code_tile = codes + (m % M).to(tl.int64)[:, None] * K + k[None, :]
    weight_tile = w_codes + (n % N).to(tl.int64)[None, :] * K + k[:, None]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(begin, tl.minimum(K, begin + length), BLOCK_K):
        if EVEN_K:
            left, right = tl.load(code_tile), tl.load(weight_tile)
        else:
            inside = start + tl.arange(0, BLOCK_K) < K
            left = tl.load(code_tile, mask=inside[None, :], other=0)
            right = tl.load(weight_tile, mask=inside[:, None], other=0)
        sums = int8_dot(left, right, sums, HALF)
        code_tile += BLOCK_K
        weight_tile += BLOCK_K

    if PARTS == 1:
        finish(
            sums, m, n, M, N, x_scale, w_scale, bias, x, weight, words, columns, y, x_stride, stride_n, stride_k,
            threshold, OUTLIERS, DEQUANTIZED, ROUNDED, WIDE, SLOTS,
        )  # fmt: skip
    else:
        place = (tl.program_id(1).to(tl.int64) * M + m)[:, None] * N + n[None, :]
        tl.store(part_sums + place, sums, mask=(m < M)[:, None] & (n < N)[None, :])


_CONFIGS = [triton.Config(tile.blocks, num_warps=tile.warps, num_stages=tile.stages) for tile in _TILES]
_tuned_gemm = autotune(_CONFIGS, key=["N", "K", "size"], prune=prune_tiles)(_int8_gemm)


def int8_gemm(codes: Tensor, w_codes: Tensor, epilogue: Epilogue, tile: Tile | None = None) -> Tensor:
    """The LLM.int8() Linear of a quantized x.

    codes: int8[M, K]; w_codes: int8[N, K]; tile: its size and into how many parts K is split, None to have a whole K
    and the size timed. Result: [M, N]. Outlier products: of float32, IEEE multiply-adds; of 16-bit floats, tensor
    cores, whose products are exact and whose sums are float32.
    """
    (M, K), N = codes.shape, w_codes.shape[0]
    parts = 1 if tile is None else tile.parts
    y = epilogue.empty(M) if parts == 1 else None
    sums = None if parts == 1 else torch.empty((parts, M, N), dtype=torch.int32, device=codes.device)

    def grid(meta):
        return triton.cdiv(M, meta["BLOCK_M"]) * triton.cdiv(N, meta["BLOCK_N"]), parts

    fixed = {} if tile is None else {**tile.blocks, "num_warps": tile.warps, "num_stages": tile.stages}
    (_int8_gemm if fixed else _tuned_gemm)[grid](
        codes, w_codes, sums, *epilogue.tensors, y, M, N, K, *epilogue.strides, epilogue.threshold,
        triton.next_power_of_2(M), PARTS=parts, HALF=not has_int8_product(codes.device), ALIGN=math.gcd(K, 16),
        **epilogue.constants, **fixed,
    )  # fmt: skip
    return y if parts == 1 else finish_sums(sums, epilogue)
