"""Every int8pass op: torch.library.opcheck, and equality with the NumPy reference."""

import numpy as np
import pytest
import torch

from int8pass import ops
from tests import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((8,), (5, 8), (2, 3, 8), (2, 1, 3, 8), (0, 8), (2, 0, 8))
N, K = 6, 8

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
outliers = pytest.mark.parametrize("outliers", reference.OUTLIERS)


def activation(shape, dtype):
    """Values up to about 4, with a large feature 2 and a row of zeros."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[..., 2] *= 10
    if len(shape) > 1 and x.numel():
        x.view(-1, K)[-1] = 0
    return x.to(dtype)


def weight(dtype=torch.float32):
    w = torch.randn((N, K), generator=torch.Generator().manual_seed(1))
    w[1] = 0
    return w.to(dtype)


def codes(shape, seed=2):
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def array(tensor):
    """The tensor as a float32 or integer array of [M, K]."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.reshape(-1, tensor.shape[-1]).numpy()


def quantized(x, threshold=6.0, outliers="column"):
    mask = ops.outlier_mask(x, threshold, outliers)
    scale = ops.scale_per_token(x, mask)
    return mask, scale, ops.quantize_per_token(x, scale, mask)


@shapes
@dtypes
@outliers
def test_quantizing_ops_equal_the_reference(shape, dtype, outliers):
    x = activation(shape, dtype)
    expected_codes, expected_scale, expected_mask = reference.quantize_activation(array(x), 6.0, outliers)
    mask, scale, x_codes = quantized(x, outliers=outliers)
    assert mask.shape == (x.shape if outliers == "token" else (K,))
    np.testing.assert_array_equal(mask.reshape(expected_mask.shape).numpy(), expected_mask)
    np.testing.assert_array_equal(scale.reshape(-1).numpy(), expected_scale)
    np.testing.assert_array_equal(array(x_codes), expected_codes)
    assert (scale.shape, scale.dtype) == (x.shape[:-1], torch.float32)
    assert (x_codes.shape, x_codes.dtype) == (x.shape, torch.int8)


@shapes
@dtypes
def test_without_a_mask_nothing_is_left_out(shape, dtype):
    x = activation(shape, dtype)
    expected_codes, expected_scale, _ = reference.quantize_activation(array(x), 0.0, "column")
    scale = ops.scale_per_token(x, None)
    np.testing.assert_array_equal(scale.reshape(-1).numpy(), expected_scale)
    np.testing.assert_array_equal(array(ops.quantize_per_token(x, scale, None)), expected_codes)


@pytest.mark.parametrize("threshold", (6.0, 6.1, 0.5))
def test_the_threshold_is_compared_in_float32(threshold):
    at = np.float32(threshold)
    x = torch.tensor([[at, np.nextafter(at, np.float32(0)), -at]])
    assert ops.outlier_mask(x, threshold).tolist() == [True, False, True]


def test_a_half_is_compared_unrounded():
    x = torch.tensor([[6.1]], dtype=torch.float16)  # 6.1015625
    assert ops.outlier_mask(x, 6.1015625).tolist() == [True]
    assert ops.outlier_mask(x, 6.102).tolist() == [False]  # 6.102 rounds to the same half


@outliers
def test_a_nan_does_not_hide_an_outlier(outliers):
    x = torch.tensor([[float("nan"), 1.0], [7.0, 1.0]])
    mask = ops.outlier_mask(x, 6.0, outliers)
    assert mask.tolist() == ([[False, False], [True, False]] if outliers == "token" else [True, False])


def test_rows_that_cannot_be_quantized_have_zero_codes():
    nan, inf, tiny = float("nan"), float("inf"), 1e-39
    x = torch.tensor([[nan, 1.0], [inf, 1.0], [0.0, 0.0], [tiny, -tiny], [1.0, -0.5]])
    scale = ops.scale_per_token(x, None)
    torch.testing.assert_close(scale, torch.tensor([nan, nan, 0, 0, 1 / 127]), rtol=0, atol=0, equal_nan=True)
    assert ops.quantize_per_token(x, scale, None).tolist() == [[0, 0]] * 4 + [[127, -64]]


@shapes
def test_int8_mm_is_exact(shape):
    x_q, w_q = codes(shape), codes((N, K), seed=3)
    sums = ops.int8_mm(x_q, w_q)
    assert (sums.shape, sums.dtype) == ((*shape[:-1], N), torch.int32)
    np.testing.assert_array_equal(array(sums), array(x_q).astype(np.int64) @ w_q.numpy().astype(np.int64).T)


@shapes
@dtypes
@outliers
@pytest.mark.parametrize("dequantized", (False, True), ids=("original", "dequantized"))
def test_outlier_mm_equals_the_reference(shape, dtype, outliers, dequantized):
    x, w = activation(shape, dtype), weight(dtype)
    mask = ops.outlier_mask(x, 6.0, outliers)
    w_codes, w_scale = (torch.from_numpy(part) for part in reference.quantize_weight(array(w)))
    result = ops.outlier_mm(x, mask, w_codes, w_scale) if dequantized else ops.outlier_mm(x, mask, w)
    matrix = w_codes.double() * w_scale.double()[:, None] if dequantized else w.double()
    expected = torch.where(mask, x.double(), 0.0) @ matrix.T
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-5)


@shapes
@dtypes
@pytest.mark.parametrize("extra", (False, True), ids=("bare", "outlier and bias"))
def test_dequantize_rounds_once(shape, dtype, extra):
    sums = codes((*shape[:-1], N)).to(torch.int32) * 1000
    x_scale = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(4))
    w_scale = torch.rand(N, generator=torch.Generator().manual_seed(5)) / 1000
    outlier = torch.full(sums.shape, 0.25) if extra else None
    bias = torch.arange(N).to(dtype) if extra else None
    y = ops.dequantize(sums, x_scale, w_scale, outlier, bias, dtype)
    expected = sums.double() * x_scale.double().unsqueeze(-1) * w_scale.double()
    expected = expected + 0.25 + torch.arange(N) if extra else expected
    assert (y.shape, y.dtype) == (sums.shape, dtype)
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_dequantize_does_not_underflow_before_the_last_product():
    result = ops.dequantize(
        torch.tensor([[2**20]], dtype=torch.int32), torch.tensor([2.0**-70]), torch.tensor([2.0**-70]), None, None,
        torch.float32,
    )  # fmt: skip
    assert result.item() == 2.0**-120


def test_straight_through_passes_the_gradient_through_the_dequantized_weight():
    x = torch.randn(3, K, dtype=torch.bfloat16, requires_grad=True)
    y, w_q, w_scale = torch.randn(3, N, requires_grad=True), codes((N, K)), torch.rand(N)
    gradient = torch.randn(3, N)
    ops.straight_through(y, x, w_q, w_scale).backward(gradient)
    torch.testing.assert_close(y.grad, gradient)
    torch.testing.assert_close(x.grad, ((gradient * w_scale) @ w_q.float()).bfloat16())


@shapes
@dtypes
@outliers
def test_opcheck(shape, dtype, outliers):
    x, w = activation(shape, dtype), weight(dtype)
    mask, scale, x_codes = quantized(x, outliers=outliers)
    w_q, w_scale, bias = codes((N, K)), torch.rand(N), torch.rand(N).to(dtype)
    sums, outlier = ops.int8_mm(x_codes, w_q), ops.outlier_mm(x, mask, w)
    calls = (
        (ops.outlier_mask, (x, 6.0, outliers)),
        (ops.scale_per_token, (x, mask)),
        (ops.scale_per_token, (x, None)),
        (ops.quantize_per_token, (x, scale, mask)),
        (ops.quantize_per_token, (x, scale, None)),
        (ops.int8_mm, (x_codes, w_q)),
        (ops.outlier_mm, (x, mask, w)),
        (ops.outlier_mm, (x, mask, w_q, w_scale)),
        (ops.outlier_mm, (x, mask, w, w_scale)),
        (ops.dequantize, (sums, scale, w_scale, outlier, bias, dtype)),
        (ops.dequantize, (sums, scale, w_scale, None, None, dtype)),
    )
    for op, arguments in calls:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@dtypes
@pytest.mark.parametrize("shape", ((8,), (5, 8), (2, 1, 3, 8)), ids=str)
def test_opcheck_straight_through(shape, dtype):
    x = activation(shape, dtype).requires_grad_()
    y = torch.randn(*shape[:-1], N, requires_grad=True)
    torch.library.opcheck(ops.straight_through, (y, x, codes((N, K)), torch.rand(N)))


@outliers
def test_opcheck_under_autograd_and_dynamic_shapes(outliers):
    x, w = activation((5, 8), torch.float32), weight()
    mask, scale, x_codes = quantized(x, outliers=outliers)
    w_q, w_scale = codes((N, K)), torch.rand(N)
    torch.library.opcheck(ops.outlier_mask, (x, 6.0, outliers))
    torch.library.opcheck(ops.scale_per_token, (x, mask))
    torch.library.opcheck(ops.quantize_per_token, (x, scale, mask))
    torch.library.opcheck(ops.int8_mm, (x_codes, w_q))
    torch.library.opcheck(ops.outlier_mm, (x, mask, w))
    torch.library.opcheck(ops.dequantize, (ops.int8_mm(x_codes, w_q), scale, w_scale, None, None, torch.float32))


@dtypes
@outliers
def test_opcheck_of_strided_inputs(dtype, outliers):
    x = activation((3, 4, 8), dtype).transpose(0, 1)
    mask, scale, x_codes = quantized(x, outliers=outliers)
    for op, arguments in (
        (ops.outlier_mask, (x, 6.0, outliers)),
        (ops.scale_per_token, (x, mask)),
        (ops.quantize_per_token, (x, scale, mask)),
        (ops.int8_mm, (x_codes, codes((K, N)).t())),
        (ops.outlier_mm, (x, mask, weight(dtype).t().contiguous().t())),
        (ops.straight_through, (torch.randn(N, 4, 3).permute(2, 1, 0), x, codes((N, K)), torch.rand(N))),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@dtypes
@pytest.mark.parametrize("columns", ((), (2,), (0, 2, 7)), ids=str)
@pytest.mark.parametrize("shape", ((8,), (5, 8), (2, 3, 8), (0, 8)), ids=str)
def test_ops_of_files_are_those_of_the_graph(shape, dtype, columns):
    x, w = activation(shape, dtype), weight(dtype)
    w_q, w_scale, bias = codes((N, K)), torch.rand(N), torch.randn(N).to(dtype)
    mask = ops.column_mask(x, columns)
    assert mask.nonzero().flatten().tolist() == list(columns)
    scale = ops.scale_per_token(x, mask)
    x_codes = ops.quantize_per_token(x, scale, mask)
    outlier = ops.outlier_mm(x, mask, w)
    torch.testing.assert_close(ops.column_mm(x, columns, w[:, list(columns)].t()), outlier, rtol=1e-6, atol=1e-6)
    with_bias = ops.column_mm(x, columns, w[:, list(columns)].t(), None, bias)
    torch.testing.assert_close(with_bias, outlier + bias.float(), rtol=1e-6, atol=1e-6)
    rows = w_q[:, list(columns)].t().to(torch.float16)
    dequantized = ops.outlier_mm(x, mask, w_q, w_scale)
    torch.testing.assert_close(ops.column_mm(x, columns, rows, w_scale), dequantized, rtol=1e-6, atol=1e-6)
    first = w_q.t().contiguous()
    assert torch.equal(ops.gathered_mm(x, mask, first, w_scale), ops.outlier_mm(x, mask, w_q, w_scale))
    expected = ops.dequantize(ops.int8_mm(x_codes, w_q), scale, w_scale, outlier, bias, dtype)
    assert torch.equal(ops.scaled_int8_mm(x_codes, scale, first, w_scale, outlier, bias, dtype), expected)


def test_opcheck_of_the_ops_of_files():
    x, w_q = activation((5, 8), torch.float16), codes((K, N))
    mask = ops.column_mask(x, (2, 3))
    scale = ops.scale_per_token(x, mask)
    x_codes = ops.quantize_per_token(x, scale, mask)
    torch.library.opcheck(ops.column_mask, (x, (2, 3)))
    torch.library.opcheck(ops.column_mm, (x, (2, 3), torch.randn(2, N).half(), torch.rand(N), torch.randn(N)))
    torch.library.opcheck(ops.gathered_mm, (x, mask, w_q, torch.rand(N)))
    torch.library.opcheck(ops.gathered_mm, (x, mask, w_q, torch.rand(N - 1)))
    torch.library.opcheck(ops.pad_features, (x, 32))
    torch.library.opcheck(ops.pad_features, (x, K))
    torch.library.opcheck(ops.scaled_int8_mm, (x_codes, scale, w_q, torch.rand(N), None, None, torch.float16))


@shapes
@dtypes
def test_scale_features(shape, dtype):
    x, factor = activation(shape, dtype), torch.logspace(-1, 1, K)
    expected = torch.from_numpy(array(x) * factor.to(dtype).float().numpy()).to(dtype).reshape(shape)
    assert torch.equal(ops.scale_features(x, factor), expected)


def test_opcheck_of_scale_features():
    torch.library.opcheck(ops.scale_features, (torch.randn(5, K, requires_grad=True), torch.rand(K)))
    torch.library.opcheck(ops.scale_features, (torch.randn(K, 5).t().half(), torch.rand(K)))
