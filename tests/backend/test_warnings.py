"""One warning where Linears stay in float, with the reasons, and none where all is rewritten."""

import warnings

import pytest
import torch
from torch import nn

from tests.backend.models import assert_close_to_float, compiled
from tests.linear_models import Mlp, activation, frozen


def test_trained_weights_are_left_alone_with_one_warning():
    model, x = Mlp(), activation(4)
    run = compiled(model)
    with pytest.warns(UserWarning, match="int8mixed left Linears in float") as caught:
        result = run(x)
        run(activation(9))
        run(activation(3, 7))
    ours = [entry for entry in caught if "int8mixed" in str(entry.message)]
    assert len(ours) == 1
    assert "torch.no_grad()" in str(ours[0].message) and "requires_grad_(False)" in str(ours[0].message)
    torch.testing.assert_close(result, model(x), rtol=0, atol=0)
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_trained_weights_are_rewritten_under_no_grad():
    model, x = Mlp(), activation(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            result = compiled(model)(x)
    assert_close_to_float(result, model, x)


def test_warns_once_with_reasons_where_nothing_was_rewritten():
    run = compiled(frozen(Mlp()), options={"skip_modules": ("up", "re:down")})
    with pytest.warns(UserWarning, match="int8mixed rewrote nothing") as caught:
        for rows in (4, 6, 8):
            run(activation(rows))
    (warning,) = (str(entry.message) for entry in caught if "int8mixed" in str(entry.message))
    assert "skip_modules ('up')" in warning and "skip_modules ('re:down')" in warning


def test_no_warning_where_something_was_rewritten_or_nothing_is_linear():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(frozen(Mlp()), options={"skip_modules": ("up",)})(activation(4))
        compiled(nn.ReLU())(activation(4))
