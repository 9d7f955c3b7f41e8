"""Outlier columns of a float weight, kept on the device between calls: what holds them.

A column of a row-major weight costs a memory sector of 32 bytes for each of its N values. Columns that were needed are
kept as rows of words, each in the row that `slot_of` gives it. A word holds one value and k // slots + 1, which
together with the row names the column k: so a kernel sees whether a word is of the column that it wants, and where not
it reads the weight and replaces the word. A word is read and written at once, and is right or seen to be of another
column whatever was written beside it: streams and graphs share a cache without locks, and the host reads nothing back.
A cache belongs to the int8 form of a weight, and is dropped with it when the weight changes.
"""

import torch
from torch import Tensor

_FEWEST_SLOTS, _MOST_SLOTS = 8, 64


def slots(features: int) -> int:
    """How many outlier columns of an [N, K] weight are kept: a power of two, 8 to 64.

    Of 16-bit values that is at most 1/8 of the weight's int8 bytes, from K = 256 on.
    """
    return min(_MOST_SLOTS, max(_FEWEST_SLOTS, 1 << (features // 32).bit_length() >> 1))


def slot_of(column: int, features: int) -> int:
    """The row of a column, as the kernels compute it.

    Each block of columns is shifted by one more than the one before it: over a power of two the sums of these shifts
    take every value, so columns at a regular distance, such as one of each head, seldom share a row.
    """
    block = column // slots(features)
    return (column + block * (block + 1) // 2) % slots(features)


def words_shape(outputs: int, features: int) -> tuple[int, int]:
    """The shape of a cache: [slots, N]."""
    return slots(features), outputs


def words_field(dtype: torch.dtype, listed: bool = False) -> str:
    """The field of `QuantizedWeight` that caches columns of a weight of this dtype.

    Of float32 in 32 bits; in 16 where they are listed in a profile, and rounded (`quantization/columns.py`).
    """
    return "wide_column_words" if dtype == torch.float32 and not listed else "column_words"


def empty_words(outputs: int, features: int, wide: bool, device: torch.device) -> Tensor:
    """A cache that holds nothing: int32[slots, N] for 16-bit values, wide: int64, for float32."""
    return torch.zeros(words_shape(outputs, features), dtype=torch.int64 if wide else torch.int32, device=device)


def words_bytes(outputs: int, features: int, dtype: torch.dtype, listed: bool = False) -> int:
    """What the cache of a weight of this dtype takes; listed: as for `words_field`."""
    return slots(features) * outputs * (4 if words_field(dtype, listed) == "column_words" else 8)
