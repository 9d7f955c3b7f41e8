"""Linears that hold int8 weights already are recorded and left alone."""

import pytest
import torch
from torch import nn

from int8pass import Int8Linear
from int8pass.passes.recognize_int8_linear import ALREADY_INT8, recognize_int8_linear
from tests.graphs import compiled, exported, program_of, signs, text_of

captures = pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))


class Mixed(nn.Module):
    """One Linear in int8, one in float."""

    def __init__(self):
        super().__init__()
        layers = nn.Linear(16, 12), nn.Linear(12, 6)
        for layer in layers:
            layer.weight.data.copy_(signs(*layer.weight.shape))
        self.first, self.second = Int8Linear.from_linear(layers[0]), layers[1]
        self.requires_grad_(False)

    def forward(self, x):
        return self.second(self.first(x))


@captures
def test_recorded_and_left_alone(capture):
    model, x = Mixed(), signs(4, 16)
    result = capture(model, x)
    assert result.reasons == {ALREADY_INT8: 1, "rewritten": 1}
    torch.testing.assert_close(result.output, model(x), rtol=0, atol=0.03 * float(model(x).abs().max()))


def test_decision():
    (decision,) = (found for found in compiled(Mixed(), signs(4, 16)).program.decisions if found.reason)
    assert (decision.module, decision.weight_shape, decision.dtype) == ("first", (12, 16), "int8")
    assert decision.operation == "int8_mm"
    assert decision.weight_bytes == decision.int8_bytes == 12 * 16


def test_the_graph_is_left_as_it_is():
    program = program_of(Mixed(), signs(4, 16))
    before = text_of(program)
    assert recognize_int8_linear(program) == 1
    assert text_of(program) == before


def test_none():
    program = program_of(nn.Linear(16, 6).requires_grad_(False), signs(4, 16))
    assert recognize_int8_linear(program) == 0
    assert program.decisions == []


@captures
def test_values_are_those_of_the_module(capture):
    model, x = Int8Linear.from_linear(nn.Linear(16, 6)).requires_grad_(False), torch.randn(4, 16)
    result = capture(model, x)
    assert result.reasons == {ALREADY_INT8: 1}
    assert torch.equal(result.output, model(x))
