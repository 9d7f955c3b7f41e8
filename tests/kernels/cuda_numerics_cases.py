"""Each CUDA kernel against the float64 reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from int8pass.kernels.cuda import few_rows, fused, gemm
from int8pass.kernels.cuda.arithmetic import COLUMN, LISTED, NONE, TOKEN
from int8pass.kernels.cuda.epilogue import Epilogue
from int8pass.kernels.cuda.tiles import Tile
from tests import reference
from tests.kernels.cuda_inputs import DEVICE, DTYPES, Case, as_array, planted

RULES = [(0.0, "column"), (6.0, "column"), (6.0, "token"), (1.0, "column"), (1.0, "token")]
# M, K, N: off every block size, a single feature, a single output
SHAPES = [(1, 70, 33), (3, 129, 40), (17, 70, 40), (18, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threshold, outliers", RULES)
def test_shapes_dtypes_and_outlier_rules(threshold, outliers, shape):
    rows, features, outputs = shape
    for number, dtype in enumerate(DTYPES):
        weight, bias = planted(outputs, features, dtype, 0), planted(1, outputs, dtype, 0)[0]
        x = planted(rows, features, dtype, 3)
        Case(x, weight, bias, threshold, outliers, original=number % 2 == 0).check_all()


@given(st.data())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_linear(data):
    rows, features = data.draw(st.integers(1, 24), "M"), data.draw(st.integers(1, 90), "K")
    outputs, dtype = data.draw(st.integers(1, 70), "N"), data.draw(st.sampled_from(DTYPES), "dtype")
    x = planted(rows, features, dtype, data.draw(st.integers(0, features), "outlier columns"))
    weight = planted(outputs, features, dtype, 0)
    bias = planted(1, outputs, dtype, 0)[0] if data.draw(st.booleans(), "bias") else None
    threshold, outliers = data.draw(st.sampled_from(RULES), "rule")
    for _ in range(data.draw(st.integers(0, 2), "special values")):
        row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, features - 1))
        x[row, column] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 6.0, -6.0, 1e-40]))
    x[data.draw(st.integers(0, rows - 1), "zero row")] = 0.0
    Case(x, weight, bias, threshold, outliers).check_all()


@pytest.mark.parametrize("rows", [2, 17])
@pytest.mark.parametrize("outliers, original", [("column", True), ("token", False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_column_an_outlier(rows, outliers, original, dtype):
    """More outlier columns than any chunk holds, and codes that are all 0."""
    x = planted(rows, 83, dtype, 83) + 7.0 * (1 + torch.arange(83, device=DEVICE) % 2)
    x[0] = 9.0
    case = Case(x.to(dtype), planted(21, 83, dtype, 0), planted(1, 21, dtype, 0)[0], 1e-3, outliers, original)
    assert case.quantize()[2][0] == 83
    case.check_all()


@pytest.mark.parametrize("rows", [3, 17])
@pytest.mark.parametrize("threshold, outliers", RULES[:3])
def test_not_a_number_and_infinity(rows, threshold, outliers):
    x = planted(rows, 40, torch.float32, 2)
    x[0, 3], x[1, 5], x[2, 7], x[2, 8] = torch.nan, torch.inf, -torch.inf, torch.nan
    case = Case(x, planted(17, 40, torch.float32, 0), None, threshold, outliers)
    for y in case.check_all():
        assert y[0].isnan().all() and y[2].isnan().all()
        assert not y[3:].isnan().any()


@pytest.mark.parametrize("rows", [5, 17])
def test_rows_of_zeros_and_of_subnormals(rows):
    """Below the smallest normal scale a row has codes 0, and gives its bias."""
    x = planted(rows, 33, torch.float32, 0)
    x[0], x[1], x[2] = 0.0, 1e-39, 2.0**-119  # its scale is just above 2**-126
    bias = planted(1, 9, torch.float32, 0)[0]
    case = Case(x, planted(9, 33, torch.float32, 0), bias)
    codes, scale, _ = case.quantize()
    assert not codes[:2].any() and not scale[:2].any() and scale[2] > 0 and codes[2].abs().max() == 127
    for y in case.check_all():
        assert torch.equal(y[:2], bias.expand(2, 9))


def test_ties_round_to_even():
    scale = 1.0
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 3.0]], device=DEVICE)
    codes, found, _ = fused.cuda_quantize(x, 0.0, False)
    assert found.tolist() == [scale]
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, 3]]


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("kind", [NONE, COLUMN, TOKEN, LISTED], ids=["none", "column", "token", "listed"])
def test_parts_of_few_rows_add_up(rows, kind):
    """Split along K, the sums are the same integers; outliers may be added in another order."""
    x, weight = planted(rows, 1300, torch.float16, 20), planted(20, 1300, torch.float16, 0)
    case = Case(x, weight, planted(1, 20, torch.float16, 0)[0])
    flags = torch.zeros(1300, dtype=torch.int8, device=DEVICE)
    flags[::100] = 1
    held = (case.quantized.codes, case.quantized.scale, case.bias, weight, None)
    arguments = (*held, flags, kind.value, 6.0, torch.float32)
    whole = few_rows.few_rows_linear(x, *arguments, parts=1)
    if kind.value == LISTED.value:
        outlier = (flags != 0).expand_as(x)
    else:
        outlier = (x.abs() >= 6.0) & (kind.value != NONE.value)
    if kind.value == COLUMN.value:
        outlier = outlier.any(0).expand_as(x)
    sizes = x.double().masked_fill(~outlier, 0.0).abs() @ weight.double().abs().t()
    added = int(outlier.any(0).sum())
    # each addition is wrong by half a unit of at most the sum of all sizes; so are the last three of each result
    bound = torch.finfo(torch.float32).eps * (added * sizes + 3 * (sizes + whole.abs().double() + 1.0))
    for parts in (2, 5):
        y = few_rows.few_rows_linear(x, *arguments, parts=parts)
        assert ((y.double() - whole.double()).abs() <= bound).all()


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("dtype, threshold, outliers", [(torch.float32, 6.0, "token"), (torch.float16, 6.0, "column"),
                                                        (torch.bfloat16, 0.0, "column")], ids=str)  # fmt: skip
def test_parts_of_middle_rows_add_up(dtype, threshold, outliers, parts):
    """Split along K; the last part may be short, or empty."""
    case = Case(
        planted(33, 150, dtype, 4), planted(70, 150, dtype, 0), planted(1, 70, dtype, 0)[0], threshold, outliers
    )
    quantized, (codes, scale, found) = case.quantized, case.quantize()
    kind = NONE if not threshold else TOKEN if outliers == "token" else COLUMN
    ending = Epilogue(scale, quantized.scale, case.bias, case.x, case.weight, None, found, kind.value, threshold, dtype)
    y = gemm.int8_gemm(codes, quantized.codes, ending, Tile(32, 32, 64, warps=4, stages=3, parts=parts))
    case.check(y)
    assert torch.equal(y, gemm.int8_gemm(codes, quantized.codes, ending, Tile(32, 32, 64, warps=4, stages=3)))


@pytest.mark.parametrize("rows", [4, 20])
@pytest.mark.parametrize("kept", ["float32", "float16", "dequantized"])
def test_columns_of_a_profile(rows, kept):
    """The named columns are the outliers, whatever x holds: as if only they reached the threshold. Those of a float32
    weight are rounded to 16 bits."""
    columns = (3, 17, 40, 41)
    x, weight = planted(rows, 50, torch.float32, 0).clamp(-5, 5), planted(23, 50, torch.float32, 0)
    weight[5] = 0.0
    weight[6] *= 1e-9
    if kept == "float16":
        weight = weight.half()
    x[:, 8] = 100.0  # reaches the threshold, and is not named
    q = Case(x, weight, None).quantized
    words = None if kept == "dequantized" else q.column_words
    held = (q.codes, q.scale, None, None if kept == "dequantized" else weight, words)
    rest = (*held, 0.0, False, torch.float32, columns)
    codes, scale, found = fused.cuda_quantize(x, 0.0, False, columns)
    assert found.numel() == 0 and not codes[:, columns].any()
    regular = x.clone()
    regular[:, columns] = 0.0
    plain = Case(regular, weight, None, threshold=0.0)
    assert torch.equal(codes, plain.quantize()[0]) and torch.equal(scale, plain.quantize()[1])
    source = {
        "float32": torch.from_numpy(reference.float16_weight(as_array(weight))),
        "float16": weight.double().cpu(),
        "dequantized": (q.codes.double() * q.scale.double()[:, None]).cpu(),
    }[kept].to(DEVICE)
    accumulated = codes.double() @ q.codes.double().t() * scale.double()[:, None] * q.scale.double()
    expected = accumulated + x[:, columns].double() @ source[:, columns].t()
    for _ in range(2):  # columns from the weight, then from the cache
        for y in (fused.cuda_linear(x, codes, scale, found, *rest), fused.cuda_int8_linear(x, *rest)):
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 30])
def test_weights_and_inputs_of_any_strides(rows):
    """A transposed weight (transformers' Conv1D), an x whose rows or columns are apart, leading dimensions."""
    base = planted(2 * rows, 80, torch.float32, 4)
    stored = planted(40, 24, torch.float32, 0)
    for x in (base[::2, :40], base[:rows, ::2], base.t()[:40, :rows].t()):
        flat = Case(x, stored.t(), None).check_all()
        batched = Case(x.unsqueeze(1), stored.t(), None).results()
        for y, expected in zip(batched, flat, strict=True):
            assert torch.equal(y, expected.unsqueeze(1))


def test_no_rows():
    case = Case(torch.empty(0, 20, device=DEVICE), planted(5, 20, torch.float32, 0), None)
    codes, scale, found = case.quantize()
    assert codes.shape == (0, 20) and scale.shape == (0,) and found[0] == 0
    assert [y.shape for y in case.results()] == [(0, 5), (0, 5)]


@pytest.mark.parametrize("has_int8_product", [True, False])
def test_largest_sums_are_exact(monkeypatch, has_int8_product):
    """All codes at +-127 over a K where float32 could not hold the sums; also as on Turing, by float16 products."""
    for module in (few_rows, gemm):
        monkeypatch.setattr(module, "has_int8_product", lambda device: has_int8_product)
    x = torch.ones(17, 4099, device=DEVICE)
    weight = torch.ones(3, 4099, device=DEVICE)
    weight[1] = -1.0
    weight[2, ::2] = -1.0
    x[:, 1:2] = 1.0 / 127
    case = Case(x, weight, None, threshold=0.0)
    expected = case.quantize()[0].double() @ case.quantized.codes.double().t() / 127**2
    for y in case.results():
        torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("columns", [None, [1, 4]])
def test_ops_follow_their_schemas(columns):
    x, weight = planted(3, 20, torch.float32, 2), planted(5, 20, torch.float32, 0)
    quantized = Case(x, weight, None).quantized
    threshold = 6.0 if columns is None else 0.0
    rest = (quantized.codes, quantized.scale, None, weight, None, threshold, False, torch.float32, columns)
    parts = fused.cuda_quantize(x, threshold, False, columns)
    torch.library.opcheck(fused.cuda_quantize, (x, threshold, False, columns))
    torch.library.opcheck(fused.cuda_linear, (x, *parts, *rest))
    torch.library.opcheck(fused.cuda_int8_linear, (x, *rest))


@pytest.mark.parametrize("rows", [3, 17])
def test_rows_that_lie_past_32_bit_offsets(rows):
    """As `hidden[:, -1]` of long sequences; the memory between the rows is never touched."""
    features, apart = 40, 2**31 // (rows - 1) + 8
    memory = torch.empty((rows - 1) * apart + features, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((rows, features), (apart, 1))
    x.copy_(planted(rows, features, torch.float16, 3))
    Case(x, planted(33, features, torch.float16, 0), None).check_all()
