"""Outlier columns in 16 bits: exact where the weight has 16, and within 1/32 of an int8 step where it has 32."""

import pytest
import torch

from int8pass import ops
from int8pass.quantization.columns import kept_columns
from int8pass.weights import quantize_weight
from tests import reference


def weight(magnitude: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[6, 40], rows of very different magnitude, one of zeros."""
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * magnitude
    w[1] *= 1e-3
    w[2] *= 1e3
    w[3] = 0
    return w.to(dtype)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_16_bit_columns_stay_as_they_are(dtype):
    w = weight(1.0, dtype)
    kept, unit = kept_columns(w, quantize_weight(w).scale)
    assert unit is None and torch.equal(kept, w)


@pytest.mark.parametrize("magnitude", (1.0, 1e-30, 1e25))
def test_float32_columns_err_by_a_32nd_of_an_int8_step(magnitude):
    w = weight(magnitude)
    scale = quantize_weight(w).scale
    kept, unit = kept_columns(w, scale)
    assert kept.dtype == torch.float16 and torch.isfinite(kept).all()
    error = (kept.double() * unit.double()[:, None] - w.double()).abs()
    assert (error <= scale.double()[:, None] * (1 / 32 + 1e-6)).all()
    assert (error <= w.double().abs() * 2**-11 + scale.double()[:, None] * 2**-25).all()
    assert (kept[3] == 0).all() and unit[3] == 1


@pytest.mark.parametrize("magnitude", (1.0, 1e-30, 1e25))
def test_the_outlier_product_in_16_bits_equals_the_reference(magnitude):
    w, x = weight(magnitude), torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    x[:, 7] *= 20
    mask = ops.column_mask(x, (7, 9))
    result = ops.outlier_mm(x, mask, w, quantize_weight(w).scale)
    expected = torch.where(mask, x, 0.0).double() @ torch.from_numpy(reference.float16_weight(w.numpy())).T
    size = torch.where(mask, x, 0.0).double().abs() @ w.double().abs().T
    assert ((result - expected).abs() <= 40 * torch.finfo(torch.float32).eps * size).all()
