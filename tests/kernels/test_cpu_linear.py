"""The fused CPU kernel against the float64 reference."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from int8pass.kernels.cpu import fused
from int8pass.kernels.cpu.packing import code_offset, pack, packed_shape, unpack
from int8pass.weights import QuantizedWeight, quantize_weight
from tests import reference

pytestmark = pytest.mark.skipif(not fused.is_available(), reason="the fused kernel needs a compiler")

EPSILON = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)}
SHAPES = [(1, 64, 64), (3, 70, 33), (40, 129, 200), (5, 1, 1), (33, 384, 130), (65, 1027, 65)]


def planted(rows: int, columns: int, dtype: torch.dtype, outliers: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    x = torch.randn(rows, columns, generator=generator)
    x[:, torch.randperm(columns, generator=generator)[:outliers]] *= 20.0
    return x.to(dtype)


def run(x, weight, bias, threshold, outliers, original, cache=None):
    quantized = quantize_weight(weight)
    per_token = outliers == "token"
    codes, scale, mask = fused.cpu_quantize(x, threshold, per_token)
    kept = weight if original else None
    rest = (quantized.packed, quantized.offset, quantized.scale, bias, kept, cache, threshold, per_token, x.dtype)
    return fused.cpu_linear(x, codes, scale, mask, *rest), codes, scale, mask


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().numpy()


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outliers", ["column", "token"])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("original", [True, False])
def test_equals_the_reference(dtype, shape, outliers, threshold, original):
    rows, columns, outputs = shape
    x, weight = planted(rows, columns, dtype), planted(outputs, columns, dtype, outliers=0)
    bias = planted(1, outputs, dtype)[0]
    y, codes, scale, _ = run(x, weight, bias, threshold, outliers, original)

    expected_codes, expected_scale, _ = reference.quantize_activation(as_array(x), threshold, outliers)
    assert np.array_equal(codes.numpy()[:, :columns].astype(np.int32) - 128, expected_codes)
    assert np.array_equal(scale.numpy(), expected_scale)

    kind = "original" if original else "dequantized"
    expected, magnitude = reference.linear(
        as_array(x), as_array(weight), as_array(bias), threshold=threshold, outliers=outliers, outlier_weights=kind
    )
    error = np.abs(y.double().numpy() - expected)
    assert (error <= reference.tolerance(expected, magnitude, columns, EPSILON[dtype])).all()


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("original", [True, False])
def test_columns_known_beforehand_take_the_place_of_those_that_x_has(dtype, shape, original):
    rows, columns, outputs = shape
    x, weight = planted(rows, columns, dtype), planted(outputs, columns, dtype, outliers=0)
    known = sorted({0, columns // 2, columns - 1})
    mask = np.zeros(columns, dtype=bool)
    mask[known] = True
    quantized = quantize_weight(weight)
    codes, scale, marks = fused.cpu_quantize(x, 0.0, False, known)
    expected_codes, expected_scale, _ = reference.quantize_activation(as_array(x), 0.0, "column", mask)
    assert marks.nonzero().flatten().tolist() == known
    assert np.array_equal(codes.numpy()[:, :columns].astype(np.int32) - 128, expected_codes)
    assert np.array_equal(scale.numpy(), expected_scale)

    rest = (quantized.packed, quantized.offset, quantized.scale, None, weight if original else None, None, 0.0, False)
    y = fused.cpu_int8_linear(x, *rest, x.dtype, known)
    assert torch.equal(y, fused.cpu_linear(x, codes, scale, marks, *rest, x.dtype, known))
    kept = reference.PROFILE_WEIGHTS if dtype is torch.float32 else "original"
    kind = kept if original else "dequantized"
    expected, magnitude = reference.linear(
        as_array(x), as_array(weight), None, threshold=0.0, outlier_weights=kind, mask=mask
    )
    error = np.abs(y.double().numpy() - expected)
    assert (error <= reference.tolerance(expected, magnitude, columns, EPSILON[dtype])).all()


def test_a_column_that_x_lacks_is_an_error():
    with pytest.raises(RuntimeError, match="column 64 of 64"):
        fused.cpu_quantize(torch.ones(2, 64), 0.0, False, [64])


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("outliers", ["column", "token"])
@pytest.mark.parametrize("original", [True, False])
def test_threads_change_no_bit(threads, outliers, original):
    x, weight = planted(700, 520, torch.float32), planted(300, 520, torch.float32, outliers=0)
    bias = planted(1, 300, torch.float32)[0]
    results = []
    for count in (1, 3):
        threads(count)
        results.append(run(x, weight, bias, 6.0, outliers, original))
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


@pytest.mark.parametrize("outliers", ["column", "token"])
def test_nan_and_infinity_are_not_hidden(outliers):
    x, weight = planted(6, 96, torch.float32, outliers=0), planted(40, 96, torch.float32, outliers=0)
    x[1, 5], x[3, 7], x[4, 9] = float("nan"), float("inf"), 1e-42
    x[5] = 0.0
    y = run(x, weight, None, 6.0, outliers, original=True)[0]
    assert y[1].isnan().all()
    assert torch.equal(y[3].isinf(), torch.ones(40, dtype=torch.bool))
    assert torch.equal(y[3].sign(), weight[:, 7].sign())
    assert y[[0, 2, 4]].isfinite().all()
    assert torch.equal(y[5], torch.zeros(40))
    assert run(x, weight, None, 0.0, outliers, original=True)[0][3].isnan().all()


def test_a_row_whose_largest_feature_is_an_outlier_elsewhere_is_scaled_without_it():
    x, weight = planted(40, 130, torch.float32, outliers=0).clamp(-3, 3), planted(33, 130, torch.float32, outliers=0)
    x[:, 17] = 5.5  # the largest of every row, and an outlier in one
    x[7, 17] = 8.0
    _, codes, scale, mask = run(x, weight, None, 6.0, "column", original=True)
    expected_codes, expected_scale, _ = reference.quantize_activation(as_array(x), 6.0, "column")
    assert mask.nonzero().flatten().tolist() == [17]
    assert np.array_equal(codes.numpy()[:, :130].astype(np.int32) - 128, expected_codes)
    assert np.array_equal(scale.numpy(), expected_scale)
    _, codes, scale, _ = run(x, weight, None, 6.0, "token", original=True)
    expected_codes, expected_scale, _ = reference.quantize_activation(as_array(x), 6.0, "token")
    assert np.array_equal(codes.numpy()[:, :130].astype(np.int32) - 128, expected_codes)
    assert np.array_equal(scale.numpy(), expected_scale)


@pytest.mark.parametrize("largest", [1.0, 3.7, 1e-33, 3e38])
def test_quotients_at_and_beside_a_half_round_as_those_of_a_division(largest):
    rows, columns = 32, 600
    generator = np.random.default_rng(0)
    most = (largest * generator.uniform(0.5, 1.0, (rows, 1))).astype(np.float32)
    scale = most / np.float32(127)
    halves = generator.integers(-126, 126, (rows, columns)).astype(np.float32) + np.float32(0.5)
    x = (halves * scale).view(np.int32) + generator.integers(-3, 4, (rows, columns)).astype(np.int32)
    x = np.concatenate([most, x.view(np.float32)], 1)
    codes, found, _ = fused.cpu_quantize(torch.from_numpy(x), 0.0, False)
    expected, expected_scale, _ = reference.quantize_activation(x, 0.0, "column")
    assert np.array_equal(found.numpy(), expected_scale)
    assert np.array_equal(codes.numpy()[:, : columns + 1].astype(np.int32) - 128, expected)
    by_reciprocal = np.rint(x * (np.float32(1) / expected_scale[:, None]))
    assert (expected != by_reciprocal).any()  # so a reciprocal alone would not do


@pytest.mark.parametrize("outliers", ["column", "token"])
def test_rows_with_outliers_in_columns_of_their_own(outliers):
    x = planted(64, 300, torch.float32, outliers=0).clamp_(-5, 5)
    for row, column in ((3, 7), (3, 8), (4, 8), (20, 7), (20, 299), (41, 0), (63, 150)):
        x[row, column] = 50.0 + column
    x[30, 7] = 5.5  # the largest of its row, in a column that row 3 made an outlier
    codes, scale, mask = fused.cpu_quantize(x, 6.0, outliers == "token")
    expected, expected_scale, _ = reference.quantize_activation(x.numpy(), 6.0, outliers)
    assert mask.nonzero().flatten().tolist() == [0, 7, 8, 150, 299]
    assert np.array_equal(scale.numpy(), expected_scale)
    assert np.array_equal(codes.numpy()[:, :300].astype(np.int32) - 128, expected)


def test_every_feature_an_outlier():
    x, weight = planted(9, 200, torch.float32), planted(70, 200, torch.float32)
    y = run(x, weight, None, 1e-6, "column", original=True)[0]
    torch.testing.assert_close(y, x @ weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 17, 33, 128])
@pytest.mark.parametrize("columns", [64, 257, 4096])
def test_extreme_codes_are_exact(rows, columns):
    generator = torch.Generator().manual_seed(rows + columns)
    sign = lambda *shape: torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0  # noqa: E731
    x, weight = sign(rows, columns) * 127.0, sign(65, columns) * 127.0
    weight[0], x[0] = 127.0, 127.0
    y = run(x, weight, None, 0.0, "column", original=False)[0]
    assert torch.equal(y.double(), x.double() @ weight.double().t())


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (16,), (2, 3, 16)])
def test_any_rank_and_empty(shape):
    x, weight = torch.randn(shape), torch.randn(5, 16)
    y = run(x, weight, None, 6.0, "column", original=True)[0]
    assert y.shape == (*shape[:-1], 5)
    torch.testing.assert_close(y, x @ weight.t(), rtol=0.1, atol=0.15)


def test_strided_input_and_transposed_weight():
    x, stored = torch.randn(16, 6)[:, ::2].t(), torch.randn(16, 24)
    x = x * 4
    y = run(x, stored.t(), None, 6.0, "column", original=True)[0]
    contiguous = run(x.contiguous(), stored.t().contiguous(), None, 6.0, "column", original=True)[0]
    assert torch.equal(y, contiguous)


@pytest.mark.parametrize("shape", [(1, 1), (64, 4), (65, 5), (130, 63)])
def test_packing_loses_nothing(shape):
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    packed = pack(codes)
    assert packed.shape == packed_shape(*shape)
    assert torch.equal(unpack(packed, *shape), codes)
    assert torch.equal(code_offset(codes).long(), 128 * codes.long().sum(1))


def test_a_packed_weight_is_held_once():
    quantized = QuantizedWeight(torch.ones((128, 64), dtype=torch.int8), torch.ones(128))
    before = quantized.nbytes
    _ = quantized.packed
    assert quantized.nbytes == before + 128 * 4
    assert torch.equal(quantized.codes, torch.ones((128, 64), dtype=torch.int8))


def test_ops_pass_opcheck():
    x, weight = planted(5, 66, torch.bfloat16), planted(33, 66, torch.bfloat16)
    quantized = quantize_weight(weight)
    torch.library.opcheck(fused.cpu_quantize, (x, 6.0, True))
    arguments = (quantized.packed, quantized.offset, quantized.scale, None, weight, None, 6.0, False, torch.bfloat16)
    torch.library.opcheck(fused.cpu_linear, (x, *fused.cpu_quantize(x, 6.0, False), *arguments))
    torch.library.opcheck(fused.cpu_int8_linear, (x, *arguments))


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_exact_where_onednn_would_saturate(instructions):
    program = "from int8pass.kernels.cpu import fused; assert fused.is_available(); print(fused.cpu_integer_gemm())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("AVX-512 VNNI", "AVX2", "NEON", "portable")  # our own
