"""The cache of a weight's outlier columns: what it holds, what it gathers again, and when it is passed over."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from int8pass.kernels.cpu import fused
from int8pass.weights import quantize_weight

pytestmark = pytest.mark.skipif(not fused.is_available(), reason="the fused kernel needs a compiler")

WIDTH, OUTPUTS = 256, 70


@pytest.fixture
def weight():
    return torch.randn(OUTPUTS, WIDTH, generator=torch.Generator().manual_seed(1))


def with_outliers(*columns, rows=3):
    x = torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(2))
    x[:, list(columns)] = 20.0
    return x


def linear(x, weight, cache, quantized=None):
    quantized = quantized or quantize_weight(weight)
    rest = (quantized.packed, quantized.offset, quantized.scale, None, weight, cache, 6.0, False, torch.float32)
    return fused.cpu_linear(x, *fused.cpu_quantize(x, 6.0, False), *rest)


def counts(cache):
    return tuple(fused.cpu_column_cache_counts(cache).tolist()[:3])


def test_a_column_is_gathered_once(weight):
    cache = fused.cpu_column_cache(4)
    expected = linear(with_outliers(3, 9), weight, None)
    assert torch.equal(linear(with_outliers(3, 9), weight, cache), expected)
    assert counts(cache) == (0, 2, 2)
    assert torch.equal(linear(with_outliers(3, 9), weight, cache), expected)
    assert counts(cache) == (2, 2, 2)
    linear(with_outliers(9, 11), weight, cache)
    assert counts(cache) == (3, 3, 3)


def test_bytes_are_those_of_the_columns_and_of_the_last_call(weight):
    cache = fused.cpu_column_cache(4)
    for columns, held in (((3, 9), 2 + 2), ((9, 11, 12), 4 + 3), ((3,), 4 + 1)):
        linear(with_outliers(*columns), weight, cache)
        assert fused.cpu_column_cache_counts(cache)[3] == held * 128 * 4  # N rounded up to 64, float32


def test_what_was_not_used_for_longest_makes_room(weight):
    cache = fused.cpu_column_cache(2)
    for column in (1, 2, 1, 3):  # 3 takes the place of 2
        linear(with_outliers(column), weight, cache)
    assert counts(cache) == (1, 3, 2)
    linear(with_outliers(1), weight, cache)
    assert counts(cache) == (2, 3, 2)
    linear(with_outliers(2), weight, cache)
    assert counts(cache) == (2, 4, 2)


def test_more_columns_than_it_has_room_for_are_passed_by(weight):
    cache = fused.cpu_column_cache(2)
    x = with_outliers(1, 2, 3)
    assert torch.equal(linear(x, weight, cache), linear(x, weight, None))
    assert counts(cache) == (0, 0, 0)


def test_a_copy_of_the_cache_is_no_cache(weight):
    cache = fused.cpu_column_cache(4)
    x = with_outliers(3)
    linear(x, weight, cache)
    copy = cache.clone()
    assert torch.equal(linear(x, weight, copy), linear(x, weight, None))
    with pytest.raises(RuntimeError, match="holds no column cache"):
        fused.cpu_column_cache_counts(copy)
    assert counts(cache) == (0, 1, 1)


def test_threads_share_it(weight):
    cache, quantized = fused.cpu_column_cache(8), quantize_weight(weight)
    inputs = [with_outliers(*range(start, start + 5)) for start in range(40)]
    expected = [linear(x, weight, None, quantized) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = pool.map(lambda x: linear(x, weight, cache, quantized), inputs)
            assert all(map(torch.equal, results, expected))
    found, gathered, held = counts(cache)
    assert (found + gathered, held) == (5 * 40 * 5, 8)


@pytest.mark.inductor
def test_a_changed_weight_starts_anew():
    torch._dynamo.reset()
    model = torch.nn.Linear(WIDTH, OUTPUTS, bias=False).requires_grad_(False)
    compiled = torch.compile(model, backend="int8mixed")
    x = with_outliers(3)
    first = compiled(x)
    model.weight.mul_(2)
    assert torch.allclose(compiled(x), 2 * first, rtol=1e-6)
