"""The memory of the CUDA kernels' column cache: its size, whose it is, and when it goes."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from int8pass.kernels.cuda.column_words import slot_of, slots
from int8pass.weight_cache import WeightCache
from int8pass.weights import QuantizedWeight, quantize_weight

WIDTHS = [768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 5140, 8192, 12288]


@pytest.mark.parametrize("features, expected", [(1, 8), (256, 8), (768, 16), (1024, 32), (4096, 64), (14336, 64)])
def test_it_is_bounded(features, expected):
    assert slots(features) == expected
    assert features < 256 or slots(features) * 4 <= features / 8


@pytest.mark.parametrize("features", [40, 768, 1200, 4096])
def test_slot_and_tag_are_the_column(features):
    places = {(slot_of(column, features), column // slots(features)) for column in range(features)}
    assert len(places) == features and {slot for slot, _ in places} == set(range(slots(features)))


def kept_together(features, distance, most):
    """Of the first columns at a regular distance, how many have slots of their own, and how many there are."""
    columns = range(0, features, distance)[:most]
    return len({slot_of(column, features) for column in columns}), len(columns)


@pytest.mark.parametrize("features", WIDTHS)
def test_eight_evenly_spaced_columns_have_slots_of_their_own(features):
    """Those of the GPU benchmark."""
    assert kept_together(features, features // 8, 8) == (8, 8)


@pytest.mark.parametrize("features", WIDTHS)
@pytest.mark.parametrize("head", [64, 80, 96, 128])
def test_one_column_of_each_head(head, features):
    """As many as there are slots: all are kept for heads of a power of two from 1024 features on, else most."""
    kept, asked = kept_together(features, head, slots(features))
    assert kept == asked if head in (64, 128) and features >= 1024 else kept >= 0.6 * asked


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


@pytest.mark.parametrize("field", ["column_words", "wide_column_words", "code_sums"])
def test_it_is_filled_before_others_can_read_it(monkeypatch, field):
    """On tensors of a GPU that is not there: the stream that fills it is waited for while the lock is held."""
    waits = []

    class Stream:
        def synchronize(self):
            waits.append(QuantizedWeight._lock.locked())

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    with FakeTensorMode():
        codes = torch.empty(20, 512, dtype=torch.int8, device="cuda")
        quantized = QuantizedWeight(codes, torch.empty(20, 4, device="cuda"))
        for _ in range(2):
            getattr(quantized, field)
    assert waits == [True]
