"""Gradients go through the dequantized weights; an adapter trains over a frozen base."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests import reference
from tests.backend.models import assert_close_to_float, compiled
from tests.linear_models import HIDDEN, IN, OUT, activation, frozen


def dequantized(linear):
    codes, scale = reference.quantize_weight(linear.weight.detach().numpy())
    return torch.from_numpy(codes * scale[:, None].astype(np.float64))


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
@pytest.mark.parametrize("outlier_weights", ("original", "dequantized"))
def test_gradients_go_through_the_dequantized_weights(lowering, outlier_weights):
    model = nn.Sequential(nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, OUT))
    for linear in model:
        linear.weight.requires_grad_(False)
    x, gradient = activation(2, 5).requires_grad_(), torch.randn(2, 5, OUT)
    options = {"lowering": lowering, "outlier_weights": outlier_weights}
    result = compiled(model, options=options)(x)
    assert_close_to_float(result, model, x)
    result.backward(gradient)

    hidden = gradient.double() @ dequantized(model[1])
    torch.testing.assert_close(x.grad.double(), hidden @ dequantized(model[0]), rtol=1e-4, atol=1e-4)
    for linear, expected in zip(model, (hidden, gradient.double()), strict=True):
        torch.testing.assert_close(linear.bias.grad.double(), expected.sum((0, 1)), rtol=1e-4, atol=1e-4)
        assert linear.weight.grad is None


def test_gradient_of_half_precision_input_keeps_its_dtype():
    model = frozen(nn.Linear(IN, OUT)).bfloat16()
    x = activation(5).bfloat16().requires_grad_()
    compiled(model)(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    expected = dequantized(copy.deepcopy(model).float()).sum(0).expand(5, IN)
    torch.testing.assert_close(x.grad.double(), expected, rtol=0.02, atol=0.02)


class Lora(nn.Module):
    """A frozen base with a trained low-rank addition."""

    def __init__(self, rank=4):
        super().__init__()
        self.base = nn.Linear(IN, OUT).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, IN) / IN**0.5)
        self.up = nn.Parameter(torch.zeros(OUT, rank))

    def forward(self, x):
        return self.base(x) + x @ self.down.t() @ self.up.t()


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
@pytest.mark.filterwarnings("ignore:int8mixed left")
def test_lora_adapter_trains_over_a_frozen_base(lowering, programs):
    model = nn.Sequential(Lora(), nn.Tanh(), nn.Linear(OUT, OUT).requires_grad_(False))
    base = copy.deepcopy(model[0].base.weight)
    x, target = torch.randn(64, IN), torch.randn(64, OUT)
    run = compiled(model, options={"lowering": lowering})
    optimizer = torch.optim.Adam((model[0].down, model[0].up), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(run(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(model[0].base.weight, base)
    rewritten = {decision.module for program in programs for decision in program.decisions if decision.rewritten}
    assert rewritten == {"0.base", "2"}
    assert len(programs) == 1
