"""Planted outliers: in float the model stays what it was, and the inputs of its Linears have them."""

import numpy as np
import pytest
import torch

from int8pass.experiments.amplification import amplify, largest_features
from int8pass.experiments.language_model import LanguageModel, ModelSize

SIZE = ModelSize(width=32, depth=2, heads=2, context=16)


@pytest.fixture(scope="module")
def model():
    made = LanguageModel(SIZE).eval().requires_grad_(False)
    for parameter in made.parameters():  # far from initial weights, biases of norms that are not 0
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return made


def tokens():
    return torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(1))


def inputs_of(model, name):
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(tokens())
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("count", "scale"), [(1, 16), (6, 60), (20, 8)])
def test_logits_do_not_change(model, count, scale):
    before, after = model(tokens()), amplify(model, range(1, 1 + count), scale)(tokens())
    assert torch.allclose(before, after, rtol=0, atol=2e-5 * float(before.abs().max()))


@pytest.mark.parametrize("name", ["q", "k", "v", "fc1"])
def test_every_linear_behind_a_norm_meets_the_features(model, name):
    features = [0, 7, 30]
    amplified = amplify(model, features, 50.0)
    before, after = (inputs_of(each, f"layers.1.{name}") for each in (model, amplified))
    growth = (after.norm(dim=(0, 1)) / before.norm(dim=(0, 1))).double()
    expected = torch.ones(32, dtype=torch.float64)
    expected[features] = 50.0
    assert torch.allclose(growth, expected, rtol=1e-4)


def test_the_model_itself_is_left_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    amplify(model, [0, 5], 60.0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_largest_features_are_those_of_all_norms_together(model):
    names = [f"layers.{layer}.{name}" for layer in range(2) for name in ("q", "fc1")]
    magnitudes = [np.abs(inputs_of(model, name).double().numpy()).mean((0, 1)) for name in names]
    order = np.mean(magnitudes, 0).argsort()[::-1]
    for count in (0, 1, 6):
        assert largest_features(model, tokens(), count) == sorted(order[:count])
    assert largest_features(amplify(model, [3, 9], 60.0), tokens(), 2) == [3, 9]
