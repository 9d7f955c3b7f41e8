"""Weights that change after compilation without a trace in their version, or to values that int8 cannot hold."""

import copy
import logging

import pytest
import torch
from torch import nn

from tests.linear_models import IN, OUT, Mlp, activation, frozen, relative_error

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compiled(model):
    return torch.compile(model, backend="int8mixed", options={"lowering": "eager"})


def assert_follows(run, model, x):
    """The output is that of the model as it is now, up to int8's rounding."""
    assert 0 < relative_error(run(x), model(x)) < 0.03


@pytest.mark.parametrize("optimizer", (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))
def test_output_follows_a_step_of_a_fused_optimizer(optimizer):
    model, x = nn.Linear(IN, OUT), activation(5)
    run, step = compiled(model), optimizer(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        with torch.no_grad():
            before = run(x)
        model(x).square().sum().backward()
        step.step()
        with torch.no_grad():
            assert_follows(run, model, x)
            assert relative_error(run(x), before) > 0.1


def test_output_follows_a_storage_that_is_released_and_allocated_again():
    model, x = frozen(nn.Linear(64, 64)), torch.randn(4, 64)
    run = compiled(model)
    for _ in range(20):  # the allocator gives the same address again
        run(x)
        model.weight.data = torch.empty(0)
        model.weight.data = torch.randn(64, 64)
        assert_follows(run, model, x)


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_weight_that_is_no_longer_finite_computes_in_float(value, caplog):
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model)
    run(x)
    model.weight[0, 0] = value
    with caplog.at_level(logging.WARNING, logger="int8pass"):
        for _ in range(3):
            torch.testing.assert_close(run(x), model(x), rtol=0, atol=0, equal_nan=True)
    assert len([record for record in caplog.records if record.name.startswith("int8pass")]) == 1


@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_second_weight_that_is_no_longer_finite_computes_in_float():
    model, x = frozen(Mlp()), activation(5)
    run = compiled(model)
    run(x)
    for linear in (model.up, model.down):
        linear.weight[0, 0] = torch.inf
        torch.testing.assert_close(run(x), model(x), rtol=0.1, atol=1.0, equal_nan=True)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_block_with_an_infinite_weight_computes_in_float_where_blocks_share_a_graph(number):
    blocks, x = frozen(nn.ModuleList(Mlp() for _ in range(3))), activation(5)
    blocks[number].down.weight[0, 0] = torch.inf
    blocks[number].up.weight[0, 0] = torch.inf
    floats = copy.deepcopy(blocks)
    for block in blocks:
        block.compile(backend="int8mixed", options={"lowering": "eager"})
    for _ in range(2):
        results = [block(x) for block in blocks]
    torch.testing.assert_close(results[number], floats[number](x), rtol=0, atol=0, equal_nan=True)
    for other in {0, 1, 2} - {number}:
        assert relative_error(results[other], floats[other](x)) < 0.03
