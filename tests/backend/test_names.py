"""Names of modules: skip_modules after graph breaks, in graphs that layers share, in nested compilations."""

import pytest
import torch
from torch import nn

from tests.backend.models import Broken, Layers, compiled, counted_int8mixed
from tests.linear_models import OUT, Mlp, activation, frozen, relative_error


class Nested(nn.Module):
    """Dynamo names what follows the inner graph break relative to `inner`."""

    def __init__(self):
        super().__init__()
        self.inner = Broken()
        self.head = nn.Linear(OUT, OUT)

    def forward(self, x):
        return self.head(self.inner(x))


def compile_by_function(model, backend):
    return torch.compile(model, backend=backend)


def compile_by_method(model, backend):
    model.compile(backend=backend)
    return model


@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
@pytest.mark.parametrize("compile_model", (compile_by_function, compile_by_method))
@pytest.mark.parametrize(
    ("skip_modules", "skipped"),
    (
        (("inner.second",), {"inner.second"}),
        (("inner.shared", "head"), {"inner.shared", "head"}),
        (("inner",), {"inner.first", "inner.shared", "inner.second"}),
        (("second",), set()),
        (("re:.*second",), {"inner.second"}),
        (("*.shared",), {"inner.shared"}),
    ),
)
def test_skip_modules_hold_after_a_graph_break(compile_model, skip_modules, skipped, programs):
    compile_model(frozen(Nested()), counted_int8mixed(skip_modules=skip_modules))(activation(4))
    decisions = [decision for program in programs for decision in program.decisions]
    assert {decision.module for decision in decisions} == {"inner.first", "inner.shared", "inner.second", "head"}
    assert {decision.module for decision in decisions if not decision.rewritten} == skipped
    assert all("skip_modules" in decision.reason for decision in decisions if not decision.rewritten)


def layer_errors(model, states):
    return [
        relative_error(after, layer(before))
        for layer, before, after in zip(model.layers, states, states[1:], strict=False)
    ]


def test_layers_that_share_a_graph_use_their_own_weights():
    model, backend = frozen(Layers()), counted_int8mixed()
    states = torch.compile(model, backend=backend)(activation(4))
    assert backend.graphs == 2
    assert all(0 < error < 0.03 for error in layer_errors(model, states))


@pytest.mark.parametrize("skipped", (0, 1, 2))
@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_skip_of_one_layer_holds_where_layers_share_a_graph(skipped):
    model = frozen(Layers())
    states = compiled(model, options={"skip_modules": (f"layers.{skipped}",)})(activation(4))
    assert [error == 0 for error in layer_errors(model, states)] == [number == skipped for number in range(3)]


def test_names_are_those_of_the_outermost_of_two_nested_compilations(programs):
    model = frozen(nn.Sequential(Mlp(), nn.Linear(OUT, OUT)))
    model[0].compile(backend=counted_int8mixed())
    compiled(model)(activation(4))
    names = {decision.module for program in programs for decision in program.decisions}
    assert names == {"0.up", "0.down", "1"}
