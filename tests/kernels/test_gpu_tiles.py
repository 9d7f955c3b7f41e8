"""The table of tile sizes for at most 64 rows."""

import pytest

from int8pass.kernels.cuda.tiles import MOST_ROWS, candidates, tile_for

H100 = 132  # multiprocessors
LAYERS = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (768, 768), (49152, 12288)]  # N, K


@pytest.mark.parametrize("M", [9, 16, 17, 32, 33, 64])
@pytest.mark.parametrize("N, K", LAYERS)
def test_every_weight_is_read_once_by_enough_programs(M, N, K):
    tile = tile_for(M, N, K, H100)
    assert M <= tile.rows < 4 * M
    programs = -(-N // tile.columns) * tile.parts
    split_further = -(-N // tile.columns) * (tile.parts + 1)
    bounded = 8 * (tile.parts + 1) * M > K / 2 or K // (tile.parts + 1) < 512
    assert split_further > H100 or bounded
    assert tile.parts == 1 or programs <= H100  # one wave
    assert 8 * tile.parts * M <= K / 2 or tile.parts == 1
    assert tile.stages * (tile.rows + tile.columns) * tile.depth <= 99 * 1024  # shared memory of 8.6, 8.9 and 12.0


def test_the_table_is_what_it_says():
    assert str(tile_for(64, 4096, 4096, H100)) == "64x64x128, 2 parts, 4 warps, 4 stages"
    assert str(tile_for(32, 4096, 4096, H100)) == "32x64x128, 2 parts, 4 warps, 4 stages"
    assert str(tile_for(16, 4096, 4096, H100)) == "16x64x128, 2 parts, 4 warps, 4 stages"
    assert str(tile_for(1, 1024, 4096, H100)) == "16x32x256, 4 parts, 4 warps, 4 stages"
    assert str(tile_for(17, 1024, 4096, H100)) == "32x32x256, 4 parts, 4 warps, 4 stages"
    assert str(tile_for(64, 14336, 4096, H100)) == "64x64x128, 1 parts, 4 warps, 4 stages"


@pytest.mark.parametrize("M", [0, 1, 17, MOST_ROWS])
def test_a_tile_for_any_size(M):
    assert tile_for(M, 1, 1, 1).parts == 1


def test_more_rows_have_their_tiles_timed():
    assert tile_for(MOST_ROWS + 1, 4096, 4096, H100) is None


@pytest.mark.parametrize("M, height", [(1, 16), (16, 16), (17, 32), (64, 64)])
@pytest.mark.parametrize("N, K", LAYERS)
def test_the_choice_is_measured_beside_its_alternatives(M, height, N, K):
    found = candidates(M, K)
    assert len(set(found)) == len(found) > 2
    assert {tile.rows for tile in found} == {height}
