"""Which int8 product many rows take: Triton's, but for what was measured on this device."""

import importlib.metadata
import json
import logging

import pytest
import torch

from int8pass.kernels.cuda import comparisons
from int8pass.kernels.cuda.comparisons import Comparison
from int8pass.kernels.cuda.products import COMPARISONS, CUBLASLT, TRITON, Size, cublaslt_takes, product_for

pytest.importorskip("triton")

CPU, HALF = torch.device("cpu"), torch.float16


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(comparisons, "cache_folder", lambda: tmp_path)
    COMPARISONS.forget()
    yield tmp_path / "cuda_products"
    COMPARISONS.forget()


def keep(speed, rows=2048, outputs=64, features=32, dtype=HALF):
    return COMPARISONS.save(CPU, [Comparison(Size.of(rows, outputs, features, dtype), speed)])


def test_unless_measured_it_is_tritons():
    assert product_for(2048, 64, 32, HALF, CPU) == TRITON


def test_what_was_measured_faster_is_taken():
    keep(1.2)
    for rows in (1025, 2000, 2048):  # rows up to the same power of two
        assert product_for(rows, 64, 32, HALF, CPU) == CUBLASLT
    for other in ((1024, 64, 32, HALF), (2049, 64, 32, HALF), (2048, 32, 64, HALF), (2048, 64, 32, torch.float32)):
        assert product_for(*other, CPU) == TRITON
    keep(0.9)
    assert product_for(2048, 64, 32, HALF, CPU) == TRITON


def test_sizes_are_kept_beside_each_other(cache):
    keep(1.2)
    assert keep(1.5, rows=100) == next(cache.iterdir())
    assert len(list(cache.iterdir())) == 1
    COMPARISONS.forget()  # as another process reads it
    assert product_for(2048, 64, 32, HALF, CPU) == product_for(65, 64, 32, HALF, CPU) == CUBLASLT


@pytest.mark.parametrize(
    "size, taken",
    [((17, 8, 8), True), ((16, 8, 8), False), ((64, 12, 8), False), ((64, 8, 12), False), ((64, 0, 8), False)],
)
def test_what_cublaslt_does_not_take_is_tritons(size, taken):
    assert cublaslt_takes(*size) == taken
    M, N, K = size
    keep(2.0, M, N, K)
    assert product_for(M, N, K, HALF, CPU) == (CUBLASLT if taken else TRITON)


@pytest.mark.parametrize("content", ["{", "[]", '{"comparisons": [{}]}', '{"comparisons": [{"size": 3, "speed": 2}]}'])
def test_a_file_that_cannot_be_read_is_named(content, caplog):
    path = keep(1.2)
    path.write_text(content)
    COMPARISONS.forget()
    with caplog.at_level(logging.WARNING, "int8pass"):
        assert product_for(2048, 64, 32, HALF, CPU) == TRITON
    assert str(path) in caplog.text and "Triton's int8 product is used" in caplog.text


def test_a_checkout_that_is_not_installed_has_results_too(monkeypatch):
    comparisons._key.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", pytest.fail)
    keep(1.2)
    assert product_for(2048, 64, 32, HALF, CPU) == CUBLASLT


def test_another_version_has_other_results(monkeypatch):
    path = keep(1.2)
    assert json.loads(path.read_text())["key"]["torch"] == torch.__version__
    content = json.loads(path.read_text())
    content["key"]["torch"] = "0"
    path.write_text(json.dumps(content))
    COMPARISONS.forget()
    assert product_for(2048, 64, 32, HALF, CPU) == TRITON
