"""Tile sizes of the int8 GEMM for at most 64 rows: an explicit table by M and N, and a rule for the parts of K.

(16 rows and fewer come here where their number is not known beforehand and x is shared: `fuse_cuda_linear.py`.)

Such a product takes the time of reading its weight. So a tile is as high as x, which has every weight read once, and K
is split into as many parts as give each multiprocessor a program. The parts' int32 sums, 4 bytes for each element of
y, are written and read again: `MOST_SHARE` bounds what that adds to the bytes of the weight.

The table was chosen by arithmetic, not yet measured: `examples/bench_gpu.py --tiles` times `candidates` beside it.
"""

import dataclasses
import itertools
from dataclasses import dataclass

MOST_ROWS = 64
MOST_SHARE = 0.5
_LEAST_PART = 512  # of K, or filling a program's pipeline is most of what it does


@dataclass(frozen=True)
class Tile:
    """rows, columns: of y; depth: of K at once; parts: into how many K is split; warps of 32 threads; stages: loads in
    flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}, {self.parts} parts, {self.warps} warps, {self.stages} stages"

    @property
    def blocks(self) -> dict[str, int]:
        """Constants of a kernel."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": self.depth}


# Most rows, least outputs, tile: the first that fits. 4 stages of 64 x 128 weights keep 24 KB in flight, which covers
# the latency of memory; at few outputs narrower tiles make more programs before K has to be split.
TABLE = (
    (16, 4096, Tile(16, 64, 128, warps=4, stages=4)),
    (16, 0, Tile(16, 32, 256, warps=4, stages=4)),
    (32, 4096, Tile(32, 64, 128, warps=4, stages=4)),
    (32, 0, Tile(32, 32, 256, warps=4, stages=4)),
    (64, 4096, Tile(64, 64, 128, warps=4, stages=4)),
    (64, 0, Tile(64, 32, 128, warps=4, stages=4)),
)
_UNLISTED = (
    Tile(16, 64, 256, warps=4, stages=4),
    Tile(32, 128, 128, warps=4, stages=4),
    Tile(64, 128, 128, warps=4, stages=3),
    Tile(64, 64, 256, warps=8, stages=3),
)


def tile_for(M: int, N: int, K: int, multiprocessors: int) -> Tile | None:
    """The tile of a product [M, K] x [K, N] on a GPU of so many multiprocessors; None past `MOST_ROWS` rows."""
    for most_rows, least_outputs, tile in TABLE:
        if most_rows >= M and least_outputs <= N:
            programs = -(-N // tile.columns)
            return dataclasses.replace(tile, parts=min(_most_parts(M, K), max(1, multiprocessors // programs)))
    return None


def candidates(M: int, K: int) -> tuple[Tile, ...]:
    """What to time beside the table's choice: tiles as high as M rows need, in several numbers of parts."""
    height = next(rows for rows, _, _ in TABLE if M <= rows)
    tiles = [tile for tile in (*(tile for _, _, tile in TABLE), *_UNLISTED) if tile.rows == height]
    parts = sorted({min(count, _most_parts(M, K)) for count in (1, 2, 4, 8)})
    return tuple(dataclasses.replace(tile, parts=count) for tile, count in itertools.product(tiles, parts))


def _most_parts(M: int, K: int) -> int:
    """Parts of at least `_LEAST_PART`, whose sums (8 bytes an element, with reading) are a bounded share of the weight.

    8 * parts * M * N bytes against N * K.
    """
    return max(1, min(K // _LEAST_PART, int(MOST_SHARE * K / (8 * max(1, M)))))
