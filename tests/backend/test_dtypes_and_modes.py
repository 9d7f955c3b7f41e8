"""Results keep the dtype of the model and of autocast, and are the same in every grad mode."""

import pytest
import torch
from torch import nn

from tests.backend.models import assert_close_to_float, assert_follows_reference, compiled
from tests.linear_models import IN, OUT, Mlp, activation, frozen, relative_error


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_output_keeps_the_dtype_of_the_model(dtype):
    model = frozen(nn.Linear(IN, OUT)).to(dtype)
    x = activation(5).to(dtype)
    assert_follows_reference(compiled(model)(x), model, x)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_output_dtype_under_autocast(dtype):
    model = frozen(Mlp())
    run, x = compiled(model), activation(5)
    with torch.autocast("cpu", dtype):
        result, expected = run(x), model(x)
    assert result.dtype == expected.dtype == dtype
    assert relative_error(result, expected) < 0.03
    assert run(x).dtype == torch.float32


def test_autocast_inside_the_model():
    class Casting(Mlp):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    model, x = frozen(Casting()), activation(5)
    result = compiled(model, fullgraph=True)(x)
    assert result.dtype == model(x).dtype == torch.bfloat16
    assert relative_error(result, model(x)) < 0.03


def test_modes_in_sequence_give_one_result():
    model, x = frozen(Mlp()), activation(5)
    run = compiled(model)
    modes = (torch.no_grad, torch.inference_mode, torch.enable_grad, torch.inference_mode, torch.no_grad)
    results = []
    for mode in modes:
        with mode():
            results.append(run(x).clone())
            assert results[-1].is_inference() == (mode is torch.inference_mode)
    assert_close_to_float(results[0], model, x)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_weight_quantized_in_inference_mode_serves_a_backward_pass():
    model = frozen(nn.Linear(IN, OUT))
    run = compiled(model)
    with torch.inference_mode():
        run(activation(5))
    x = activation(5).requires_grad_()
    run(x).sum().backward()
    assert x.grad.shape == x.shape and x.grad.isfinite().all()


def test_model_built_in_inference_mode():
    with torch.inference_mode():
        model = frozen(nn.Linear(IN, OUT))
        x = activation(5)
        result = compiled(model)(x)
        assert_follows_reference(result.clone(), model, x)
