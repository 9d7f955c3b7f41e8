"""What the benchmark makes of quantization behind norms: both ways are timed, and the faster one is kept and used."""

import io

import pytest
import torch
from rich.console import Console

from int8pass.bench import gpu_norms
from int8pass.bench.gpu_norms import KINDS, Apart, NormKind, Stopwatch, measure_norms
from int8pass.kernels.cuda import comparisons, fused, norms
from tests.kernels.cuda_inputs import DEVICE


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(comparisons, "cache_folder", lambda: tmp_path)
    norms.COMPARISONS.forget()
    yield
    norms.COMPARISONS.forget()


def measured(*kinds):
    text = io.StringIO()
    console = Console(file=text, width=200)
    return measure_norms(Stopwatch(DEVICE, torch.float32, rounds=1), [(20, 32)], console, kinds), text.getvalue()


def test_all_that_is_asked_for_is_measured():
    assert len(set(KINDS)) == 2 * 2 * len(norms.OUTLIERS) and len(set(map(str, KINDS))) == len(KINDS)


@pytest.mark.inductor
def test_norms_are_compared_and_kept():
    (found,), text = measured(NormKind(False, True, fused.TOKEN))
    assert found.size == norms.Size(32, 32, "float32", "token", norms.RMS_NORM, True) and found.speed > 0
    assert norms.pays(found.size, DEVICE) == (found.speed > 1)
    assert "32 features, M=20" in text and "add, RMSNorm, token" in text and "kept in" in text


def test_a_way_that_fails_is_a_row_and_nothing_is_kept(monkeypatch):
    def no_memory(*arguments):
        raise torch.OutOfMemoryError("no memory for [y]")

    monkeypatch.setattr(gpu_norms, "compiled", lambda: lambda model: no_memory)
    found, text = measured(NormKind(True, False, fused.COLUMN))
    assert found == [] and "apart: OutOfMemoryError: no memory for [y]" in text and "kept in" not in text


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_both_ways_give_the_same(kind):
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[:, ::4] *= 20.0
    residual, weight = x.flip(0) if kind.added else None, torch.ones_like(x[0])
    bias = torch.zeros_like(weight) if kind.centered else None
    apart = Apart(kind, 32)(x, residual, weight, bias)
    together = fused.cuda_norm_quantize(x, residual, weight, bias, 1e-5, kind.centered, *kind.rule(32))
    assert len(apart) == (5 if kind.added else 4)
    for one, other in zip(apart, together, strict=False):
        torch.testing.assert_close(
            one.double(), other.double(), rtol=1e-5, atol=1.0 if one.dtype == torch.int8 else 1e-5
        )
