"""quantize_weight: the numbers of the reference, at every magnitude and layout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import int8pass.weights
from int8pass.errors import WeightError
from int8pass.weights import quantize_weight
from tests import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROWS_AT_ONCE = int8pass.weights._ELEMENTS_AT_ONCE // 8  # of weights with 8 columns


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_equals_reference(weight):
    quantized = quantize_weight(weight)
    codes, scale = reference.quantize_weight(weight.float().numpy())
    assert quantized.codes.dtype == torch.int8 and quantized.scale.dtype == torch.float32
    assert quantized.codes.is_contiguous() and quantized.scale.is_contiguous()
    np.testing.assert_array_equal(quantized.codes.numpy(), codes)
    np.testing.assert_array_equal(quantized.scale.numpy(), scale)


VIEWS = {
    "contiguous": lambda w: w,
    "transposed": lambda w: w.t(),
    "strided": lambda w: w[::2, ::3],
    "rows": lambda w: w[5:9],
    "columns": lambda w: w[:, 3:20],
    "expanded": lambda w: w[:1].expand(6, -1),
    "one row": lambda w: w[:1],
    "one column": lambda w: w[:, :1],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_equals_the_reference(view, dtype):
    assert_equals_reference(VIEWS[view](torch.randn(40, 24).to(dtype)))


@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("rows", (ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 3))
def test_rows_are_quantized_in_parts(rows, transposed):
    weight = torch.randn(8, rows).t() if transposed else torch.randn(rows, 8)
    weight[-1] *= 1000
    assert_equals_reference(weight)


def test_every_value_at_its_row_maximum_is_127():
    quantized = quantize_weight(torch.tensor([[0.5, -0.5], [-3.0, 3.0]]))
    assert quantized.codes.tolist() == [[127, -127], [-127, 127]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows(dtype):
    weight = torch.randn(4, 8).to(dtype)
    weight[1] = 0
    quantized = quantize_weight(weight)
    assert_equals_reference(weight)
    assert quantized.scale[1] == 0 and not quantized.codes[1].any() and quantized.codes[0].any()
    assert_equals_reference(torch.zeros(3, 8, dtype=dtype))


@pytest.mark.parametrize("magnitude", (1e-45, 1e-42, 1e-39, 1.17e-38, 1e-37, 1.4e-36, 1.6e-36))
def test_subnormal_scales(magnitude):
    weight = torch.tensor([[magnitude, -magnitude / 2], [1.0, 2.0]])
    assert_equals_reference(weight)
    smallest = torch.finfo(torch.float32).smallest_normal
    assert (quantize_weight(weight).scale[0] == 0) == (magnitude / 127 < smallest)


def test_subnormal_half_precision():
    assert_equals_reference(torch.tensor([[6e-8, -1.2e-7, 3e-5]], dtype=torch.float16))


def test_ties_round_to_even():
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert quantize_weight(weight).codes.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-45, 30),
    seed=st.integers(0, 2**16),
)
def test_equals_the_reference_at_any_magnitude(shape, dtype, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**exponent).to(dtype)
    if weight.isfinite().all():
        assert_equals_reference(weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("row", (0, ROWS_AT_ONCE + 1))
def test_values_that_are_not_finite_raise(value, dtype, row):
    weight = torch.ones(ROWS_AT_ONCE + 2, 8).to(dtype)
    weight[row, 1] = value
    with pytest.raises(WeightError, match="NaN or infinity"):
        quantize_weight(weight)


def test_magnitudes_whose_products_overflow_raise():
    weight = torch.full((2, 64), torch.finfo(torch.float32).max)
    with pytest.raises(WeightError, match="overflow float32"):
        quantize_weight(weight)
    assert_equals_reference(weight / 127 / 65)


def test_quantizing_leaves_the_weight_alone():
    weight = torch.randn(4, 8)
    before = weight.clone()
    quantize_weight(weight)
    assert torch.equal(weight, before) and weight._version == 0
