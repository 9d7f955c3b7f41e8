"""Weights that are quantized piece by piece are those that are quantized at once."""

import pytest
import torch

from int8pass.errors import WeightError
from int8pass.export import streamed_program
from int8pass.export.streamed_program import StreamedWeight
from int8pass.quantization.scheme import PER_CHANNEL, SCHEMES
from int8pass.weights import quantize_weight, weight_scale

FORMS = sorted({scheme.weights for scheme in SCHEMES.values()} | {PER_CHANNEL}, key=str)


def weight(dtype=torch.float32):
    """[40, 200], with a row of zeros, one whose scale is subnormal, and one large value."""
    w = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    w[3], w[4], w[5, 7] = 0.0, 1e-37, 300.0
    return w.to(dtype)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("multiple", (1, 32))
def test_pieces_make_up_the_codes(form, dtype, multiple, monkeypatch):
    monkeypatch.setattr(streamed_program, "_ELEMENTS_AT_ONCE", 1)
    w = weight(dtype)
    quantized, streamed = quantize_weight(w, form), StreamedWeight(lambda: w, form, multiple)
    pieces = list(streamed.pieces())
    assert len(pieces) >= 4 and all(piece.is_contiguous() for piece in pieces)
    codes = torch.cat(pieces)
    assert codes.shape == streamed.stored_shape == ((200, 40) if multiple == 1 else (224, 64))
    assert torch.equal(codes[:200, :40].t(), quantized.codes)
    assert not codes[200:].any() and not codes[:, 40:].any()
    assert torch.equal(streamed.inputs_first, codes)
    assert torch.equal(streamed.scale, quantized.scale.masked_fill(quantized.scale == 0, 1.0))
    assert torch.equal(weight_scale(w, form), quantized.scale)
    assert (streamed.shape, streamed.nbytes) == (quantized.shape, quantized.nbytes)


def test_columns():
    w = weight()
    streamed = StreamedWeight(lambda: w)
    rows, in_units_of_scale = streamed.columns((3, 7), original=False)
    assert rows.dtype == torch.float16 and in_units_of_scale
    assert torch.equal(rows, quantize_weight(w).codes[:, [3, 7]].t().half())
    rows, in_units_of_scale = streamed.columns((3, 7), original=True)
    assert rows.dtype == torch.float16 and in_units_of_scale
    assert ((rows.double() * streamed.scale - w[:, [3, 7]].t().double()).abs() <= streamed.scale / 31).all()
    half = weight(torch.float16)
    rows, in_units_of_scale = StreamedWeight(lambda: half).columns((3, 7), original=True)
    assert torch.equal(rows, half[:, [3, 7]].t()) and not in_units_of_scale


@pytest.mark.parametrize("value", (float("nan"), float("inf"), 3e38))
def test_weights_that_cannot_be_quantized(value):
    w = weight()
    w[9, 9] = value
    for attempt in (quantize_weight, weight_scale, lambda w: StreamedWeight(lambda: w)):
        with pytest.raises(WeightError):
            attempt(w)
