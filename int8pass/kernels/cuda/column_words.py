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

_MOST_SLOTS = 64
SKEW = 67  # a prime above all slots: columns at regular distances, such as one of each head, get different rows


def slots(features: int) -> int:
    """How many outlier columns of an [N, K] weight are kept: of 16-bit values at most 1/8 of its int8 bytes."""
    return min(_MOST_SLOTS, max(8, features // 32))


def slot_of(column: int, features: int) -> int:
    """The row of a column, as the kernels compute it."""
    return (column + SKEW * (column // slots(features))) % slots(features)


def words_shape(outputs: int, features: int) -> tuple[int, int]:
    """The shape of a cache: [slots, N]."""
    return slots(features), outputs


def empty_words(outputs: int, features: int, wide: bool, device: torch.device) -> Tensor:
    """A cache that holds nothing: int32[slots, N] for 16-bit values, wide: int64, for float32."""
    return torch.zeros(words_shape(outputs, features), dtype=torch.int64 if wide else torch.int32, device=device)
