"""Weights that change after compilation: the output follows them."""

import warnings
import weakref

import pytest
import torch
from torch import nn

import int8pass.weight_cache
from int8pass.weight_cache import requantize
from tests.backend.models import assert_close_to_float, assert_follows_reference, compiled
from tests.linear_models import IN, OUT, Mlp, activation, frozen, relative_error


def in_place_copy(model, new):
    with torch.no_grad():
        model.weight.copy_(new.weight)
        model.bias.copy_(new.bias)


def in_place_add(model, new):
    with torch.no_grad():
        model.weight.add_(new.weight)
        model.bias.sub_(new.bias)


def load_state(model, new):
    model.load_state_dict(new.state_dict())


def assign_state(model, new):
    model.load_state_dict(new.state_dict(), assign=True)


def replaced_parameter(model, new):
    model.weight = nn.Parameter(new.weight.detach().clone(), requires_grad=False)


def moved_storage(model, new):
    model.weight.data = new.weight.detach().clone()


CHANGES = (in_place_copy, in_place_add, load_state, assign_state, replaced_parameter, moved_storage)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_output_follows_a_changed_weight(change, lowering):
    model, new, x = frozen(nn.Linear(IN, OUT)), frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model, options={"lowering": lowering})
    before = run(x)
    change(model, new)
    after = run(x)
    assert relative_error(after, before) > 0.1
    assert_follows_reference(after, model, x)


def test_cast_model_is_quantized_again():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model)
    run(x)
    model.to(torch.bfloat16)
    assert_follows_reference(run(x.bfloat16()), model, x.bfloat16())


def test_edits_through_data_are_noticed_after_requantize():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model, options={"outlier_weights": "dequantized"})
    before = run(x)
    model.weight.data.mul_(-2)
    assert torch.equal(run(x), before)
    requantize(model)
    assert_follows_reference(run(x), model, x, outlier_weights="dequantized")


def test_requantize_takes_a_compiled_model():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model)
    run(x)
    model.weight.data.mul_(-2)
    requantize(run)
    assert_follows_reference(run(x), model, x)


def test_weight_that_becomes_nan_is_float_until_it_is_finite_again():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model)
    run(x)
    model.weight.fill_(torch.nan)
    assert run(x).isnan().all() and run(x).isnan().all()
    model.weight.fill_(0.5)
    assert_follows_reference(run(x), model, x)


def test_weight_that_is_nan_from_the_start_is_left_alone():
    model, x = frozen(Mlp()), activation(5)
    model.up.weight[0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(model)(x).isnan().all()


def test_weights_follow_a_change_of_grad_requirement():
    model, x = Mlp().eval(), activation(5)
    run = compiled(model)
    with torch.no_grad():
        run(x)
    frozen(model)
    assert_close_to_float(run(x), model, x)
    model.requires_grad_(True)
    with pytest.warns(UserWarning, match="int8mixed left Linears in float"):
        torch.testing.assert_close(run(x), model(x), rtol=0, atol=0)


def test_weight_dies_with_its_model():
    model = frozen(nn.Linear(IN, OUT))
    run = compiled(model)
    run(activation(5))
    codes = weakref.ref(int8pass.weight_cache.WEIGHTS.get(model.weight, "", lambda weight: weight).quantized.codes)
    assert codes() is not None
    del model, run
    torch._dynamo.reset()
    assert codes() is None
