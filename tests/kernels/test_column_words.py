"""The memory of the CUDA kernels' column cache: its size, whose it is, and when it goes."""

import pytest
import torch
from torch import nn

from int8pass.kernels.cuda.column_words import slot_of, slots
from int8pass.weight_cache import WeightCache
from int8pass.weights import quantize_weight


@pytest.mark.parametrize("features, expected", [(1, 8), (256, 8), (768, 24), (4096, 64), (14336, 64)])
def test_it_is_bounded(features, expected):
    assert slots(features) == expected
    assert features < 256 or slots(features) * 4 <= features / 8


@pytest.mark.parametrize("features", [40, 768, 1200, 4096])
def test_slot_and_tag_are_the_column(features):
    places = {(slot_of(column, features), column // slots(features)) for column in range(features)}
    assert len(places) == features and {slot for slot, _ in places} == set(range(slots(features)))


@pytest.mark.parametrize("distance", [64, 128, 256, 512])
def test_columns_at_regular_distances_have_slots_of_their_own(distance):
    columns = range(0, 4096, distance)
    assert len({slot_of(column, 4096) for column in columns}) == len(columns)


def test_it_is_made_once_and_counted():
    weight = quantize_weight(torch.randn(20, 512))
    before = weight.nbytes
    words, wide = weight.column_words, weight.wide_column_words
    assert words.shape == wide.shape == (16, 20) and not words.any() and not wide.any()
    assert weight.nbytes == before + 16 * 20 * (4 + 8)
    assert weight.fields(("column_words",))[0] is words
    for field in ("column_words", "wide_column_words"):
        empty = weight.empty(field)
        assert empty.shape == (16, 20) and empty.dtype == getattr(weight, field).dtype


def test_a_changed_weight_has_an_empty_one():
    cache, parameter = WeightCache(), nn.Parameter(torch.randn(20, 512), requires_grad=False)
    words = cache.get(parameter, "", lambda tensor: tensor).quantized.column_words
    words[:] = 7
    assert cache.get(parameter, "", lambda tensor: tensor).quantized.column_words is words
    parameter.mul_(2.0)
    assert not cache.get(parameter, "", lambda tensor: tensor).quantized.column_words.any()
