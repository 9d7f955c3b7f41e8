"""The ops and weight ranges of the schemes against the NumPy reference, and the worked examples of the literature."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from int8pass import ops
from int8pass.composition import call_op, quantize_activation
from int8pass.errors import WeightError
from int8pass.quantization import ActivationQuantization, WeightQuantization
from int8pass.quantization.zeropoint import asymmetric_codes, range_scale, range_zero_point
from int8pass.weights import quantize_weight
from tests import reference, reference_schemes

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((8,), (5, 8), (2, 3, 8), (0, 8), (2, 0, 8))
NAN, INF = float("nan"), float("inf")

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
granularities = pytest.mark.parametrize("granularity", reference_schemes.GRANULARITIES)
symmetries = pytest.mark.parametrize("symmetric", (True, False), ids=("symmetric", "asymmetric"))


def activation(shape, dtype=torch.float32):
    """Values from -1 to 5 with a large feature 2 and, where there are several rows, one of zeros."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 6 - 1
    x[..., 2] *= 10
    if len(shape) > 1 and x.numel():
        x.view(-1, shape[-1])[-1] = 0
    return x.to(dtype)


def rows(tensor):
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.reshape(-1, tensor.shape[-1]).numpy()


def quantized(x, granularity, symmetric, mask=None):
    return quantize_activation(call_op, ActivationQuantization(granularity, symmetric), x, mask)


def assert_is_the_reference(x, granularity, symmetric, mask):
    found = quantized(x, granularity, symmetric, mask)
    expected_mask = np.zeros(x.shape[-1], bool) if mask is None else mask.reshape(-1, mask.shape[-1]).numpy()
    codes, scale, point = reference_schemes.quantize_activation(rows(x), expected_mask, granularity, symmetric)
    leading = () if granularity == "per_tensor" else x.shape[:-1]
    assert (found.codes.shape, found.codes.dtype) == (x.shape, torch.int8)
    assert (found.scale.shape, found.scale.dtype) == (leading, torch.float32)
    np.testing.assert_array_equal(rows(found.codes), codes)
    np.testing.assert_array_equal(found.scale.expand(x.shape[:-1]).reshape(-1, 1).numpy(), scale)
    assert (found.zero_point is None) == symmetric
    if not symmetric:
        assert (found.zero_point.shape, found.zero_point.dtype) == (leading, torch.int32)
        np.testing.assert_array_equal(found.zero_point.expand(x.shape[:-1]).reshape(-1, 1).numpy(), point)


@shapes
@dtypes
@granularities
@symmetries
@pytest.mark.parametrize("outliers", (None, "column", "token"), ids=str)
def test_activations_are_quantized_as_the_reference_does(shape, dtype, granularity, symmetric, outliers):
    x = activation(shape, dtype)
    mask = None if outliers is None else ops.outlier_mask(x, 6.0, outliers)
    assert_is_the_reference(x, granularity, symmetric, mask)


values = st.floats(width=32) | st.floats(-8, 8, width=32) | st.sampled_from((0.0, -0.0, 1e-45, 3e38, -3e38, 6.0))


@hypothesis.settings(max_examples=150, derandomize=True, deadline=None, database=None)
@hypothesis.given(
    st.lists(st.lists(values, min_size=5, max_size=5), min_size=1, max_size=4),
    st.sampled_from(reference_schemes.GRANULARITIES),
    st.booleans(),
    st.sampled_from((None, "column", "token")),
)
def test_any_values_are_quantized_as_the_reference_does(numbers, granularity, symmetric, outliers):
    x = torch.tensor(numbers)
    mask = None if outliers is None else ops.outlier_mask(x, 6.0, outliers)
    assert_is_the_reference(x, granularity, symmetric, mask)


@granularities
def test_zeropoint_restores_what_it_quantized(granularity):
    x = activation((40, 64))
    codes, scale, point = quantized(x, granularity, symmetric=False)
    restored = scale.unsqueeze(-1) * (codes.float() - point.unsqueeze(-1))
    assert ((restored - x).abs() <= scale.unsqueeze(-1) * 0.501).all()
    assert codes.min() == -127 and codes.max() == 127


def test_hugging_face_article_absmax():
    """The worked examples of "A Gentle Introduction to 8-bit Matrix Multiplication" (Hugging Face, 2022)."""
    x = torch.tensor([1.2, -0.5, -4.3, 1.2, -3.1, 0.8, 2.4, 5.4])
    expected = [28, -12, -101, 28, -73, 19, 56, 127]
    for granularity in reference_schemes.GRANULARITIES:
        assert quantized(x, granularity, symmetric=True).codes.tolist() == expected


def test_hugging_face_article_zeropoint():
    """A range of [-1, 1] has scale 1/127 and zero point 0: 0.3 becomes 38, which stands for 0.2992."""
    codes, scale, point = quantized(torch.tensor([0.3, -1.0, 1.0]), "per_token", symmetric=False)
    assert codes.tolist() == [38, -127, 127] and point.item() == 0
    assert scale.item() == np.float32(1) / np.float32(127)
    assert round(float(scale * codes[0]), 4) == 0.2992


SPECIAL_ROWS = (  # row, scale, zero point, codes
    ([0.0, 0.0], 0.0, 0, [0, 0]),
    ([3.0, 3.0], 3 / 254, -127, [127, 127]),  # a range always holds 0
    ([-3.0, -3.0], 3 / 254, 127, [-127, -127]),
    ([2.0, 4.0], 4 / 254, -127, [0, 127]),
    ([NAN, 1.0], NAN, 0, [0, 0]),
    ([INF, 1.0], NAN, 0, [0, 0]),
    ([-INF, INF], NAN, 0, [0, 0]),
    ([1e-39, -1e-39], 0.0, 0, [0, 0]),
)


@pytest.mark.parametrize("row, scale, point, codes", SPECIAL_ROWS, ids=str)
@granularities
def test_special_rows(row, scale, point, codes, granularity):
    found = quantized(torch.tensor([row]), granularity, symmetric=False)
    torch.testing.assert_close(found.scale.reshape(()), torch.tensor(scale), rtol=1e-6, atol=0, equal_nan=True)
    assert found.zero_point.item() == point
    assert found.codes.tolist() == [codes]


def test_the_widest_range_does_not_overflow():
    x = torch.tensor([[3.4e38, -3.4e38]])
    codes, scale, _ = quantized(x, "per_token", symmetric=False)
    assert scale.isfinite().all() and codes.tolist() == [[127, -127]]


@symmetries
def test_per_tensor_a_nan_or_an_infinity_is_everywhere_and_per_token_in_its_row(symmetric):
    for value in (NAN, INF, -INF):
        x = torch.tensor([[1.0, 2.0], [value, 1.0]])
        assert quantized(x, "per_tensor", symmetric).scale.isnan()
        assert quantized(x, "per_token", symmetric).scale.isnan().tolist() == [False, True]
        mask = torch.tensor([not np.isnan(value), False])  # an infinity as an outlier takes no part
        assert quantized(x, "per_tensor", symmetric, mask).scale.isnan() == np.isnan(value)


def test_outliers_have_the_code_of_zero():
    x = torch.tensor([[9.0, 1.0, 3.0], [1.0, -9.0, 2.0]])
    codes, _, point = quantized(x, "per_token", False, ops.outlier_mask(x, 6.0, "token"))
    assert codes[0, 0] == point[0] and codes[1, 1] == point[1]


@shapes
@dtypes
def test_dequantize_asymmetric_is_exact_in_int32(shape, dtype):
    """The product of codes minus zero points, in int64, is what both ops together give."""
    generator = torch.Generator().manual_seed(1)
    x_q, w_q = (torch.randint(-127, 128, size, generator=generator, dtype=torch.int8) for size in (shape, (6, 8)))
    point = torch.randint(-127, 128, shape[:-1], generator=generator, dtype=torch.int32)
    code_sums, ones = w_q.sum(1, dtype=torch.int32), torch.ones(6)
    sums = ops.int8_mm(x_q, w_q)
    y = ops.dequantize_asymmetric(sums, torch.ones(shape[:-1]), point, ones, code_sums, None, None, torch.float32)
    expected = (x_q.long() - point.unsqueeze(-1)) @ w_q.long().t()
    assert torch.equal(y.long(), expected)
    bias, outlier = torch.arange(6).to(dtype), torch.full(sums.shape, 0.25)
    scales = torch.full(shape[:-1], 0.5), torch.full((6,), 0.25)
    y = ops.dequantize_asymmetric(sums, scales[0], point, scales[1], code_sums, outlier, bias, dtype)
    assert y.dtype == dtype and torch.equal(y, (expected / 8 + 0.25 + torch.arange(6)).to(dtype))


def test_dequantize_asymmetric_takes_the_extremes():
    k = 66_000  # just within the largest K that an int32 sum of 254 * 127 * K takes
    x_q, w_q = torch.full((1, k), 127, dtype=torch.int8), torch.full((1, k), 127, dtype=torch.int8)
    point, code_sums, one = torch.tensor([-127], dtype=torch.int32), w_q.sum(1, dtype=torch.int32), torch.ones(1)
    y = ops.dequantize_asymmetric(ops.int8_mm(x_q, w_q), one, point, one, code_sums, None, None, torch.float32)
    assert y.item() == np.float32(254 * 127 * k)


@shapes
@dtypes
@granularities
def test_opcheck(shape, dtype, granularity):
    x = activation(shape, dtype)
    w_q, w_scale = torch.randint(-127, 128, (6, 8), dtype=torch.int8), torch.rand(6)
    code_sums, bias = w_q.sum(1, dtype=torch.int32), torch.rand(6).to(dtype)
    for mask in (None, ops.outlier_mask(x, 6.0, "column")):
        codes, scale, point = quantized(x, granularity, False, mask)
        calls = (
            (ops.scale_per_tensor, (x, mask)),
            (ops.quantize_per_tensor, (x, ops.scale_per_tensor(x, mask), mask)),
            (ops.asymmetric_scale, (x, mask, granularity)),
            (ops.zero_point, (x, scale, mask, granularity)),
            (ops.quantize_asymmetric, (x, scale, point, mask)),
            (
                ops.dequantize_asymmetric,
                (ops.int8_mm(codes, w_q), scale, point, w_scale, code_sums, None, bias, dtype),
            ),
        )
        for op, arguments in calls:
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@granularities
def test_opcheck_under_autograd_and_dynamic_shapes(granularity):
    x = activation((5, 8))
    _, scale, point = quantized(x, granularity, False)
    sums, code_sums, w_scale = torch.ones((5, 6), dtype=torch.int32), torch.ones(6, dtype=torch.int32), torch.rand(6)
    torch.library.opcheck(ops.scale_per_tensor, (x, None))
    torch.library.opcheck(ops.quantize_per_tensor, (x, torch.tensor(0.1), None))
    torch.library.opcheck(ops.asymmetric_scale, (x, None, granularity))
    torch.library.opcheck(ops.zero_point, (x, scale, None, granularity))
    torch.library.opcheck(ops.quantize_asymmetric, (x, scale, point, None))
    dtype = torch.float32
    torch.library.opcheck(ops.dequantize_asymmetric, (sums, scale, point, w_scale, code_sums, None, None, dtype))


def test_the_default_implementation_is_the_decomposition():
    for op, function in (
        (ops.asymmetric_scale, range_scale),
        (ops.zero_point, range_zero_point),
        (ops.quantize_asymmetric, asymmetric_codes),
    ):
        assert ops.DECOMPOSITIONS[op] is function


# --- weights


def weight(rows=24, columns=200, dtype=torch.float32):
    w = torch.randn((rows, columns), generator=torch.Generator().manual_seed(2))
    w[3, 7], w[5], w[6] = 30.0, 0.0, w[6] * 1e-3
    return w.to(dtype)


@dtypes
@pytest.mark.parametrize("granularity", ("per_channel", "per_tensor"))
@pytest.mark.parametrize("estimator, percentile", (("absmax", 99.99), ("percentile", 99.0), ("percentile", 100.0)))
def test_weight_ranges_are_those_of_the_reference(dtype, granularity, estimator, percentile):
    w = weight(dtype=dtype)
    found = quantize_weight(w, WeightQuantization(granularity, estimator, percentile))
    scale = reference_schemes.weight_scale(w.float().numpy(), granularity, estimator, percentile)
    np.testing.assert_array_equal(found.scale.numpy(), scale)
    np.testing.assert_array_equal(found.codes.numpy(), reference_schemes.weight_codes(w.float().numpy(), scale))
    np.testing.assert_array_equal(found.code_sums.numpy(), found.codes.numpy().sum(1, dtype=np.int32))


@pytest.mark.parametrize("granularity", ("per_channel", "per_tensor"))
def test_mse_is_the_best_of_all_shares_of_the_range(granularity):
    w = weight()
    found = quantize_weight(w, WeightQuantization(granularity, "mse"))
    groups = w.numpy().astype(np.float64).reshape((1, -1) if granularity == "per_tensor" else w.shape)

    def errors(scale):  # float64[R]
        restored = reference_schemes.weight_codes(groups, scale.astype(np.float32)) * scale[:, None]
        return ((groups - restored) ** 2).sum(1)

    full = np.abs(groups).max(1) / 127
    best = np.min([errors(full * share / 100) for share in range(40, 101)], axis=0)
    taken = errors(found.scale.numpy().astype(np.float64)[: len(groups)])
    np.testing.assert_allclose(taken, best, rtol=1e-4)
    assert (taken < errors(full))[full > 0].any()  # it pays somewhere, or this tests nothing


@pytest.mark.parametrize("granularity", ("per_channel", "per_tensor"))
@pytest.mark.parametrize("estimator", ("absmax", "percentile", "mse"))
@pytest.mark.parametrize("bad", (NAN, INF, -INF))
def test_no_estimator_hides_what_is_not_finite(granularity, estimator, bad):
    w = weight()
    w[2, 3] = bad
    with pytest.raises(WeightError, match="NaN or infinity"):
        quantize_weight(w, WeightQuantization(granularity, estimator, 50.0))


def test_code_sums_survive_packing():
    found = quantize_weight(weight(70, 33))
    expected = reference.quantize_weight(weight(70, 33).numpy())[0].sum(1, dtype=np.int32)
    _ = found.packed
    np.testing.assert_array_equal(found.code_sums.numpy(), expected)
    held = quantize_weight(weight(70, 33))
    before = held.nbytes
    _ = held.code_sums
    assert held.nbytes == before + 70 * 4
    assert (held.empty("code_sums").shape, held.empty("code_sums").dtype) == ((70,), torch.int32)
