"""Quantization behind a norm: what the one kernel stores, against float64; its codes, exactly, from the y it stored."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from int8pass.kernels.cuda import fused, norm_quantize
from tests import reference
from tests.kernels.cuda_inputs import DEVICE, DTYPES, as_array, planted

RULES = [(0.0, "column"), (2.0, "column"), (2.0, "token")]
EPS = 1e-5


@dataclass
class Norm:
    """LayerNorm (centered) or RMSNorm of x + residual, and how its result is quantized."""

    x: torch.Tensor
    residual: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    centered: bool = False
    threshold: float = 2.0
    outliers: str = "column"
    columns: tuple[int, ...] | None = None

    @property
    def arguments(self):
        operands = (self.x, self.residual, self.weight, self.bias)
        return (*operands, EPS, self.centered, self.threshold, self.outliers == "token", self.columns)

    def check(self):
        """Run the op and check all that it gives. Returns y."""
        y, codes, scale, found, total = fused.cuda_norm_quantize(*self.arguments)
        source = self.x
        if self.residual is None:
            assert total.numel() == 0
        else:
            self._check_sum(total)
            source = total
        assert y.dtype == self.x.dtype and y.is_contiguous() and y.shape == self.x.shape
        self._check_norm(as_array(source).astype(np.float64), as_array(y).astype(np.float64))
        self._check_quantized(as_array(y).reshape(-1, y.shape[-1]), codes, scale, found)
        again = fused.cuda_quantize(y, *self.arguments[6:])
        for part, other in zip((codes, scale, found), again, strict=True):
            assert torch.equal(part.nan_to_num(), other.nan_to_num())
        return y

    def _check_sum(self, total):
        """As PyTorch rounds it. (Triton's interpreter cuts the bits that bfloat16 lacks off, where a GPU rounds.)"""
        expected = self.x + self.residual
        cut = DEVICE.type == "cpu" and total.dtype == torch.bfloat16
        assert total.dtype == expected.dtype and total.shape == expected.shape and total.is_contiguous()
        rtol = torch.finfo(total.dtype).eps if cut else 0.0
        torch.testing.assert_close(total, expected, rtol=rtol, atol=0.0, equal_nan=True)

    def _check_norm(self, source, y):
        """float32 sums of K terms, then one rounding; a mean is off by a share of a row's largest magnitude."""
        with np.errstate(all="ignore"):
            deviation = source - source.mean(-1, keepdims=True) if self.centered else source
            factor = 1 / np.sqrt((deviation**2).mean(-1, keepdims=True) + EPS)
            weight = 1.0 if self.weight is None else as_array(self.weight).astype(np.float64)
            bias = 0.0 if self.bias is None else as_array(self.bias).astype(np.float64)
            expected = deviation * factor * weight + bias
            largest = np.nan_to_num(np.abs(source).max(-1, keepdims=True) * factor, nan=0.0)
            terms = np.abs(expected) + largest * np.abs(weight) + np.abs(bias)
            bound = (8 + source.shape[-1]) * float(reference.FLOAT32.eps) * terms
            bound += torch.finfo(self.x.dtype).eps * np.abs(expected) + torch.finfo(self.x.dtype).smallest_normal
        finite = np.isfinite(expected)
        assert np.array_equal(np.isnan(y), np.isnan(expected))
        assert (np.abs(y - expected)[finite] <= bound[finite]).all()

    def _check_quantized(self, y, codes, scale, found):
        mask = None
        if self.columns is not None:
            mask = np.zeros(y.shape[-1], bool)
            mask[list(self.columns)] = True
        expected_codes, expected_scale, mask = reference.quantize_activation(y, self.threshold, self.outliers, mask)
        assert np.array_equal(codes.reshape(y.shape).cpu().numpy(), expected_codes)
        assert np.array_equal(scale.flatten().cpu().numpy(), expected_scale, equal_nan=True)
        if self.threshold and self.columns is None:
            listed = np.flatnonzero(mask if mask.ndim == 1 else mask.any(axis=0))
            assert found.tolist() == [len(listed), *listed, *[0] * (y.shape[1] - len(listed))]
        else:
            assert found.numel() == 0


def vector(features, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(features, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("centered", [True, False], ids=["layer_norm", "rms_norm"])
@pytest.mark.parametrize("added", [True, False], ids=["added", "alone"])
@pytest.mark.parametrize("threshold, outliers", RULES)
def test_norms_dtypes_and_outlier_rules(threshold, outliers, added, centered):
    for number, dtype in enumerate(DTYPES):
        x = planted(3, 70, dtype, 3)
        residual = planted(3, 70, dtype, 2, seed=9) if added else None
        weight, bias = vector(70, 1, dtype), vector(70, 2, dtype) if centered and number else None
        norm = Norm(x, residual, weight, bias, centered, threshold, outliers)
        y = norm.check()
        assert (y.abs() >= 2).any()  # there are outliers to find
        norm.weight = None
        norm.check()


@given(st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_norm(data):
    rows, features = data.draw(st.integers(1, 5), "M"), data.draw(st.integers(1, 90), "K")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    x = planted(rows, features, dtype, data.draw(st.integers(0, features), "outlier columns"))
    residual = planted(rows, features, dtype, 1, seed=5) if data.draw(st.booleans(), "residual") else None
    weight = vector(features, 3, data.draw(st.sampled_from(DTYPES))) if data.draw(st.booleans(), "weight") else None
    bias = vector(features, 4, dtype) if data.draw(st.booleans(), "bias") else None
    threshold, outliers = data.draw(st.sampled_from(RULES), "rule")
    for _ in range(data.draw(st.integers(0, 2), "special values")):
        row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, features - 1))
        x[row, column] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e-40]))
    x[data.draw(st.integers(0, rows - 1), "zero row")] = 0.0
    Norm(x, residual, weight, bias, data.draw(st.booleans(), "centered"), threshold, outliers).check()


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("outliers", ["column", "token"])
def test_rows_that_fit_no_block(monkeypatch, outliers, centered):
    """In several blocks, which load again what the one before them stored: the same as in one, but for rounding."""
    norm = Norm(planted(3, 70, torch.float16, 2), planted(3, 70, torch.float16, 2, 7), vector(70, 1), None, centered,
                outliers=outliers)  # fmt: skip
    whole = norm.check()
    monkeypatch.setattr(norm_quantize, "_LARGEST_BLOCK", 32)
    torch.testing.assert_close(norm.check(), whole, rtol=1e-3, atol=1e-3)
    norm.residual = None
    norm.check()


@pytest.mark.parametrize("centered", [True, False])
def test_columns_of_a_profile(centered):
    norm = Norm(planted(3, 40, torch.float16, 2), None, vector(40, 1), None, centered, 0.0, columns=(3, 17))
    codes = fused.cuda_norm_quantize(*norm.arguments)[1]
    assert not codes[:, [3, 17]].any() and codes[:, 4].any()
    norm.check()


@pytest.mark.parametrize("threshold, outliers", RULES)
@pytest.mark.parametrize("centered", [True, False])
def test_not_a_number_and_infinity(centered, threshold, outliers):
    x = planted(5, 40, torch.float32, 2)
    x[0, 3], x[1, 5], x[2, 7] = torch.nan, torch.inf, -torch.inf
    y = Norm(x, None, vector(40, 1), None, centered, threshold, outliers).check()
    assert y[0].isnan().all() and y[1, 5].isnan() and not y[3:].isnan().any()


def test_a_sum_that_overflows_its_dtype():
    """As in PyTorch the sum is infinite in float16, and the norm is of what was stored."""
    x = planted(2, 20, torch.float16, 0)
    x[0, 4] = 6e4
    y = Norm(x, x.clone(), None, None).check()
    assert y[0, 4].isnan() and not y[1].isnan().any()


@pytest.mark.parametrize("mean", [100.0, 1000.0])
def test_a_mean_far_from_zero(mean):
    """Two passes over a row: squares of distances, not the distance of squares."""
    x = planted(3, 64, torch.float32, 0) + mean
    y = Norm(x, None, None, None, centered=True).check()
    torch.testing.assert_close(
        y.double().var(-1, unbiased=False), torch.ones(3, device=DEVICE).double(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("rows", [1, 17])
def test_inputs_of_any_strides_and_leading_dimensions(rows):
    base = planted(2 * rows, 80, torch.float32, 4)
    for x in (base[::2, :40], base[:rows, ::2], base.t()[:40, :rows].t()):
        for residual in (None, base[1::2, 40:]):
            norm = Norm(x, residual, vector(80, 1)[::2], vector(40, 2), centered=True)
            y = norm.check()
            apart = residual if residual is None else residual.unsqueeze(1)
            other = Norm(x.unsqueeze(1), apart, vector(80, 1)[::2], vector(40, 2), centered=True)
            assert torch.equal(other.check().squeeze(1), y)


def test_no_rows():
    results = fused.cuda_norm_quantize(*Norm(torch.empty(0, 20, device=DEVICE)).arguments)
    assert [tuple(part.shape) for part in results] == [(0, 20), (0, 20), (0,), (21,), (0,)]
    assert results[3][0] == 0


@pytest.mark.parametrize("columns", [None, [1, 4]])
@pytest.mark.parametrize("added", [True, False])
def test_the_op_follows_its_schema(added, columns):
    x = planted(3, 20, torch.float32, 2)
    norm = Norm(
        x, x.clone() if added else None, vector(20, 1), None, threshold=0.0 if columns else 2.0, columns=columns
    )
    torch.library.opcheck(fused.cuda_norm_quantize, norm.arguments)
