"""Behind which norms quantization is fused: none, but where that was measured to be faster on this device."""

import dataclasses
import logging

import pytest
import torch

from int8pass.kernels.cuda import comparisons, fused, norms
from int8pass.kernels.cuda.comparisons import Comparison
from int8pass.kernels.cuda.norms import COMPARISONS, Size, pays

pytest.importorskip("triton")

CPU = torch.device("cpu")
SIZE = Size.of(2048, 4096, torch.float16, fused.TOKEN, centered=False, added=True)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(comparisons, "cache_folder", lambda: tmp_path)
    COMPARISONS.forget()
    yield tmp_path / "cuda_norms"
    COMPARISONS.forget()


def test_sizes_in_words():
    assert SIZE == Size(2048, 4096, "float16", "token", norms.RMS_NORM, True)
    assert Size.of(1025, 4096, torch.float16, fused.TOKEN, False, True) == SIZE  # up to the same power of two
    kinds = (fused.NONE, fused.COLUMN, fused.TOKEN, fused.LISTED)
    assert tuple(Size.of(1, 1, torch.float32, kind, True, True).outliers for kind in kinds) == norms.OUTLIERS


def test_nowhere_unless_measured(cache):
    assert not pays(SIZE, CPU)
    COMPARISONS.save(CPU, [Comparison(SIZE, 0.99)])
    assert not pays(SIZE, CPU)
    assert len(list(cache.iterdir())) == 1


def test_only_at_the_size_that_was_measured():
    COMPARISONS.save(CPU, [Comparison(SIZE, 1.01)])
    COMPARISONS.forget()  # as another process reads it
    assert pays(SIZE, CPU)
    others = dict(rows=1024, features=2048, dtype="bfloat16", outliers="column", norm=norms.LAYER_NORM, added=False)
    for name, value in others.items():
        assert not pays(dataclasses.replace(SIZE, **{name: value}), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_graph_that_is_only_looked_at():
    """Without a GPU there is nothing that a time could have been measured on."""
    assert not pays(SIZE, torch.device("cuda"))


def test_a_file_that_cannot_be_read_is_named(caplog):
    path = COMPARISONS.save(CPU, [Comparison(SIZE, 1.5)])
    path.write_text("{")
    COMPARISONS.forget()
    with caplog.at_level(logging.WARNING, "int8pass"):
        assert not pays(SIZE, CPU)
    assert f"{path} cannot be read, so quantization is fused behind no norm" in caplog.text
