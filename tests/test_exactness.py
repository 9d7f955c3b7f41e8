"""The compiled backend against the float64 reference, over drawn shapes, dtypes, options and special rows."""

import os
import platform
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from int8pass import ops
from tests import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
THRESHOLDS = (0.0, 0.5, 3.0, 6.0, 6.1, 20.0)
SPECIAL_ROWS = ("zero", "subnormal", "nan", "infinite", "threshold")
TIE = 4  # float32 ulp of a quotient around .5 within which a code may be either neighbour


@dataclass(frozen=True)
class Case:
    """One call of one Linear, and the options it is compiled with."""

    x: Tensor
    linear: nn.Linear
    threshold: float
    outliers: str
    outlier_weights: str

    @property
    def options(self) -> dict:
        return dict(threshold=self.threshold, outliers=self.outliers, outlier_weights=self.outlier_weights)


def activation(rows: int, features: int, dtype: torch.dtype, seed: int, outlier_columns: list[int], special: dict):
    """Normal values; columns with a factor that makes them outliers; rows that hold what `special` says."""
    x = torch.randn((rows, features), generator=torch.Generator().manual_seed(seed))
    x[:, outlier_columns] *= 15
    x = x.to(dtype)
    for row, kind in special.items():
        if kind == "zero":
            x[row] = 0
        elif kind == "subnormal":
            x[row] = torch.finfo(dtype).smallest_normal / 4 * torch.sign(x[row].float()).to(dtype)
        elif kind == "threshold":
            x[row, 0] = 6.0
        else:
            x[row, features // 2] = float("nan") if kind == "nan" else -float("inf")
    return x


def linear(features: int, outputs: int, dtype: torch.dtype, seed: int, bias: bool) -> nn.Linear:
    """A Linear with one row of zeros and one tiny row."""
    generator = torch.Generator().manual_seed(seed + 1)
    module = nn.Linear(features, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / 4)
    module.weight[0] = 0
    if outputs > 2:
        module.weight[1] *= 1e-3
    if bias:
        module.bias.copy_(torch.randn(outputs, generator=generator))
    return module


@st.composite
def cases(draw) -> Case:
    rows, features, outputs = draw(st.integers(0, 40)), draw(st.integers(1, 200)), draw(st.integers(1, 70))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**16))
    pattern = draw(st.sampled_from(("none", "some", "all")))
    columns = {"none": [], "some": list(range(0, features, 7)), "all": list(range(features))}[pattern]
    row_numbers = st.integers(0, max(rows - 1, 0))
    special = draw(st.dictionaries(row_numbers, st.sampled_from(SPECIAL_ROWS), max_size=min(rows, 3)))
    return Case(
        activation(rows, features, dtype, seed, columns, special),
        linear(features, outputs, dtype, seed, draw(st.booleans())),
        draw(st.sampled_from(THRESHOLDS)),
        draw(st.sampled_from(reference.OUTLIERS)),
        draw(st.sampled_from(reference.OUTLIER_WEIGHTS)),
    )


def array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().float().numpy()


def expected(case: Case, codes=None) -> tuple[np.ndarray, np.ndarray]:
    """y float64[M, N] of the reference, and the allowed difference of the compiled y."""
    x, w, bias = array(case.x), array(case.linear.weight), array(case.linear.bias)
    y, magnitude = reference.linear(x, w, bias, **case.options, codes=codes)
    finfo = torch.finfo(case.x.dtype)
    allowed = reference.tolerance(y, magnitude, x.shape[1], finfo.eps)
    # relative bounds mean nothing among subnormals, of the result or of a float32 product before it
    return y, allowed + finfo.smallest_normal * finfo.eps + reference.FLOAT32.tiny


def assert_close(y: Tensor, expected: np.ndarray, allowed: np.ndarray) -> None:
    """Equal infinities and NaN, and finite values as close as allowed."""
    rounded = torch.from_numpy(expected).to(y.dtype).double().numpy()  # a half overflows to infinity
    actual = y.double().numpy()
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(rounded))
    np.testing.assert_array_equal(np.isinf(actual) * np.sign(actual), np.isinf(rounded) * np.sign(rounded))
    finite = np.isfinite(rounded)
    excess = np.abs(actual[finite] - expected[finite]) - allowed[finite]
    assert excess.size == 0 or excess.max() <= 0, f"{(excess > 0).sum()} values exceed their bound by {excess.max()}"


def ties(case: Case) -> np.ndarray:
    """Where a quotient x / s lies so close to a half-integer that its code may be either neighbour: bool[M, K]."""
    _, scale, mask = reference.quantize_activation(array(case.x), case.threshold, case.outliers)
    with np.errstate(all="ignore"):
        quotient = np.abs(array(case.x) / scale[:, None])
        near = np.abs(quotient - np.floor(quotient) - 0.5) <= TIE * np.spacing(quotient)
    return near & ~mask & (scale[:, None] > 0)


def codes_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales that the ops give, checked against the reference."""
    expected_codes, expected_scale, _ = reference.quantize_activation(array(case.x), case.threshold, case.outliers)
    mask = ops.outlier_mask(case.x, case.threshold, case.outliers) if case.threshold else None
    scale = ops.scale_per_token(case.x, mask)
    codes = ops.quantize_per_token(case.x, scale, mask).numpy()
    np.testing.assert_array_equal(scale.numpy(), expected_scale)
    difference = np.abs(codes.astype(int) - expected_codes)
    assert not (difference > ties(case)).any()
    return codes, scale.numpy()


def compile_eager(call, case: Case):
    torch._dynamo.reset()
    return torch.compile(call, backend="int8mixed", options={"lowering": "eager", **case.options}, fullgraph=True)


@hypothesis.settings(max_examples=120, derandomize=True, deadline=None, database=None)
@hypothesis.given(cases(), st.booleans())
def test_backend_equals_the_reference(case, as_module):
    weight, bias = case.linear.weight, case.linear.bias
    call = case.linear if as_module else lambda x: F.linear(x, weight, bias)
    with torch.no_grad():
        y = compile_eager(call, case)(case.x)
    assert y.dtype == case.x.dtype
    assert_close(y, *expected(case, codes_of(case)))
    rows_with_nan = case.x.isnan().any(-1)
    assert y[rows_with_nan].isnan().all()
    if case.threshold and case.outlier_weights == "original":
        plain = F.linear(case.x.double(), weight.double(), None if bias is None else bias.double())
        assert torch.equal(y.isnan(), plain.isnan())
        assert torch.equal(y.isinf() & (y > 0), plain.isinf() & (plain > 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("outliers", reference.OUTLIERS)
@pytest.mark.parametrize("threshold", (0.0, 6.0))
def test_a_special_value_stays_in_its_row(dtype, value, outliers, threshold):
    x = activation(5, 32, dtype, 0, [3], {})
    x[2, 9] = value
    case = Case(x, linear(32, 7, dtype, 0, True), threshold, outliers, "original")
    with torch.no_grad():
        y = compile_eager(case.linear, case)(x)
    assert_close(y, *expected(case))
    finite = y.isfinite().all(-1)
    assert finite.tolist() == [True, True, False, True, True]
    if threshold == 0.0:
        assert y[2].isnan().all()


COMBINATIONS = (
    (0.0, "column", "original"),
    (6.0, "column", "original"),
    (6.1, "token", "original"),
    (3.0, "column", "dequantized"),
    (0.5, "token", "dequantized"),
)


class Three(nn.Module):
    """One Linear of each dtype, each with an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((37, 24, True), (64, 33, False), (200, 48, True))
        self.layers = nn.ModuleList(
            linear(features, outputs, dtype, 10 * index, bias)
            for index, (dtype, (features, outputs, bias)) in enumerate(zip(DTYPES, sizes, strict=True))
        )

    def forward(self, *inputs):
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


@pytest.mark.inductor
@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_inductor_equals_the_reference(combination):
    torch._dynamo.reset()
    model = Three()
    names = ("threshold", "outliers", "outlier_weights")
    options = {"lowering": "inductor", **dict(zip(names, combination, strict=True))}
    compiled = torch.compile(model, backend="int8mixed", options=options, dynamic=True, fullgraph=True)
    special = dict(enumerate(SPECIAL_ROWS))
    for rows, columns in ((7, [0, 9, 20]), (40, []), (5, list(range(20)))):
        inputs = [
            activation(rows, layer.in_features, layer.weight.dtype, rows, columns, special) for layer in model.layers
        ]
        with torch.no_grad():
            results = compiled(*inputs)
        for layer, x, y in zip(model.layers, inputs, results, strict=True):
            assert y.dtype == x.dtype
            case = Case(x, layer, *combination)
            value, allowed = expected(case)
            assert_close(y, value, allowed + _one_code_for_each_tie(case))


def _one_code_for_each_tie(case: Case) -> np.ndarray:
    """How far y may move when each tie rounds the other way: float64[M, N]."""
    _, scale, _ = reference.quantize_activation(array(case.x), case.threshold, case.outliers)
    weight_codes, weight_scale = reference.quantize_weight(array(case.linear.weight))
    terms = ties(case).astype(np.float64) @ np.abs(weight_codes.astype(np.float64)).T
    return terms * np.nan_to_num(scale)[:, None] * weight_scale


@pytest.mark.inductor
def test_inductor_with_no_row_and_with_one():
    torch._dynamo.reset()
    layer = linear(48, 20, torch.float32, 0, True)
    compiled = torch.compile(layer, backend="int8mixed", dynamic=False)
    with torch.no_grad():
        assert compiled(torch.empty(0, 48)).shape == (0, 20)
        case = Case(activation(1, 48, torch.float32, 1, [5], {}), layer, 6.0, "column", "original")
        value, allowed = expected(case)
        assert_close(compiled(case.x), value, allowed + _one_code_for_each_tie(case))


EXTREMES = """
    import itertools
    import torch
    from int8pass import ops

    def check_extremes():
        generator = torch.Generator().manual_seed(0)
        for rows, features, outputs in itertools.product((1, 3, 17, 128), (1, 2, 64, 100, 512, 1041, 4096), (1, 33)):
            positive_x, positive_w = (
                torch.randint(0, 2, (count, features), generator=generator) for count in (rows, outputs)
            )
            one, none = (torch.ones_like, torch.zeros_like)
            for x, w in (
                (positive_x, positive_w), (one(positive_x), one(positive_w)), (none(positive_x), one(positive_w))
            ):
                x, w = x * 254 - 127, w * 254 - 127
                sums = ops.int8_mm(x.to(torch.int8), w.to(torch.int8))
                assert torch.equal(sums.double(), x.double() @ w.double().t()), (rows, features, outputs)
"""


def test_int8_mm_is_exact_at_the_extremes():
    scope: dict = {}
    exec(textwrap.dedent(EXTREMES), scope)
    scope["check_extremes"]()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits x86 instruction sets")
@pytest.mark.parametrize("instructions", ("AVX2", "AVX512_CORE"))
def test_int8_mm_is_exact_without_int8_instructions(instructions):
    script = textwrap.dedent(EXTREMES) + textwrap.dedent("""
        import logging
        from int8pass.kernels import integer_matmul

        records = []
        handler = logging.Handler()
        handler.emit = records.append
        integer_matmul.logger.addHandler(handler)
        check_extremes()
        check_extremes()
        assert not integer_matmul.has_exact_int8_instructions()
        assert [record.levelname for record in records] == ["WARNING"], records
        assert "no exact int8 instructions" in records[0].getMessage()
    """)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outlier_weights", reference.OUTLIER_WEIGHTS)
def test_a_token_does_not_depend_on_its_batch(dtype, outlier_weights):
    x = activation(12, 96, dtype, 3, [5, 40], {2: "zero", 4: "infinite", 7: "nan"})
    case = Case(x, linear(96, 50, dtype, 3, True), 6.0, "token", outlier_weights)
    compiled = compile_eager(case.linear, case)
    codes, scale = codes_of(case)
    weight_codes = torch.from_numpy(reference.quantize_weight(array(case.linear.weight))[0])
    sums = ops.int8_mm(torch.from_numpy(codes), weight_codes)
    with torch.no_grad():
        together = compiled(x)
        for row in range(len(x)):
            alone = Case(x[row : row + 1], case.linear, 6.0, "token", outlier_weights)
            row_codes, row_scale = codes_of(alone)
            np.testing.assert_array_equal(row_codes[0], codes[row])
            np.testing.assert_array_equal(row_scale[0], scale[row])
            assert torch.equal(ops.int8_mm(torch.from_numpy(row_codes), weight_codes)[0], sums[row])
            y = compiled(alone.x)[0]
            _, magnitude = reference.linear(
                array(alone.x), array(case.linear.weight), array(case.linear.bias), **alone.options
            )
            assert torch.equal(y.isnan(), together[row].isnan())
            allowed = 4 * reference.FLOAT32.eps * np.nan_to_num(magnitude[0], posinf=0)
            if dtype != torch.float32:
                allowed = allowed + torch.finfo(dtype).eps * np.abs(array(y))  # one step of the final rounding
            finite = y.isfinite().numpy()
            assert (np.abs(array(y)[finite] - array(together[row])[finite]) <= allowed[finite]).all()
