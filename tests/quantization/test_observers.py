"""Each observer's limit equals a search in NumPy over the same values, whatever batches they come in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from int8pass.quantization.observers import (
    BINS,
    LEVELS,
    Histogram,
    _divergence,
    entropy_limit,
    limit,
    mse_limit,
    percentile_limit,
)

DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=20000),
    "laplace": lambda rng: rng.laplace(size=20000),
    "gelu": lambda rng: np.maximum(rng.normal(size=20000), 0) - 0.1 * rng.random(20000),
    "one far value": lambda rng: np.append(rng.normal(size=20000), 40.0),
    "few": lambda rng: np.array([0.5, 3.0, -7.0]),
}


@pytest.fixture(params=DISTRIBUTIONS)
def values(request):
    return DISTRIBUTIONS[request.param](np.random.default_rng(0)).astype(np.float32)


def histogram_of(values, parts=1):
    histogram = Histogram(float(np.abs(values).max(initial=0.0)))
    for part in np.array_split(values, parts):
        histogram.add(torch.from_numpy(part))
    return histogram


def counts_of(values):
    return np.histogram(np.abs(values.astype(np.float64)), BINS, (0, float(np.abs(values).max())))[0]


def test_counts(values):
    assert np.array_equal(histogram_of(values).counts.numpy(), counts_of(values))


@pytest.mark.parametrize("percent", (50.0, 99.0, 99.9, 100.0))
def test_percentile_is_numpys_within_a_bin(values, percent):
    histogram = histogram_of(values)
    expected = np.percentile(np.abs(values), percent, method="inverted_cdf")
    assert 0 <= percentile_limit(histogram, percent) - expected <= histogram.width * (1 + 1e-6)


def squared_error(counts, edge):
    centres = np.arange(BINS) + 0.5
    scale = edge / 127
    return (counts * (np.minimum(np.round(centres / scale), 127) * scale - centres) ** 2).sum()


def divergence(counts, edge):
    """Slides 36 to 38 of Migacz 2017, bin by bin."""
    p = counts[:edge].astype(float)
    p[-1] += counts[edge:].sum()
    q = np.zeros(edge)
    for level in range(LEVELS):
        bins = [b for b in range(-(-level * edge // LEVELS), -(-(level + 1) * edge // LEVELS)) if counts[b]]
        q[bins] = counts[bins].sum() / max(1, len(bins))
    if not q.any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    with np.errstate(divide="ignore"):
        return sum(p[b] * np.log(p[b] / q[b]) for b in np.flatnonzero(p))


@pytest.mark.parametrize(("observer", "loss"), ((mse_limit, squared_error), (entropy_limit, divergence)))
def test_the_limit_has_the_least_loss_of_all_edges(values, observer, loss):
    histogram = histogram_of(values)
    counts = histogram.counts.numpy()
    stride = 1 if loss is squared_error else 16  # the bin by bin divergence is slow
    edge = round(observer(histogram) / histogram.width)
    losses = [loss(counts, each) for each in range(LEVELS, BINS + 1, stride)]
    assert LEVELS <= edge <= BINS
    assert loss(counts, edge) <= min(losses) * (1 + 1e-9) + 1e-12


def test_the_divergence_of_every_edge():
    values = DISTRIBUTIONS["one far value"](np.random.default_rng(0))
    counts = counts_of(values)
    for edge in (LEVELS, LEVELS + 1, 200, 1000, BINS - 1, BINS):
        expected = divergence(counts, edge)
        assert _divergence(torch.from_numpy(counts).double(), edge) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_clipping_leaves_out_a_far_value():
    values = DISTRIBUTIONS["one far value"](np.random.default_rng(0)).astype(np.float32)
    histogram = histogram_of(values)
    assert limit("absmax", histogram, 99.99) == 40.0
    assert limit("percentile", histogram, 99.9) < 4.0
    assert limit("mse", histogram, 99.99) < 40.0
    assert limit("entropy", histogram, 99.99) < 10.0


@given(
    parts=st.integers(1, 40),
    seed=st.integers(0, 1000),
    observer=st.sampled_from(("absmax", "percentile", "mse")),
)
@settings(max_examples=40, deadline=None)
def test_limits_do_not_depend_on_the_batches(parts, seed, observer):
    values = np.random.default_rng(seed).standard_t(3, size=300).astype(np.float32)
    shuffled = np.random.default_rng(seed + 1).permutation(values)
    expected = limit(observer, histogram_of(values), 99.0)
    assert limit(observer, histogram_of(shuffled, parts), 99.0) == expected


@pytest.mark.parametrize("observer", ("absmax", "percentile", "mse", "entropy"))
def test_without_values_and_with_zeros_alone(observer):
    assert limit(observer, histogram_of(np.zeros(0, np.float32)), 99.99) == 0.0
    assert limit(observer, histogram_of(np.zeros(7, np.float32)), 99.99) == 0.0


def test_memory_does_not_grow_with_the_values():
    histogram = Histogram(5.0)
    held = histogram.counts.nbytes
    for _ in range(3):
        histogram.add(torch.randn(1000, 100))
    assert histogram.counts.nbytes == held == 8 * BINS
    assert int(histogram.counts.sum()) == 300000
