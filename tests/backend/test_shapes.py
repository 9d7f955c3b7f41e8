"""Graphs of the backend: dynamic shapes, recompiles, graph breaks, inputs of any rank."""

import pytest
import torch
from torch import nn

from int8pass import int8mixed
from tests.backend.models import (
    Broken,
    Counted,
    assert_close_to_float,
    assert_follows_reference,
    compiled,
    counted_int8mixed,
)
from tests.linear_models import HIDDEN, IN, OUT, Mlp, activation, frozen


def test_dynamic_batch_and_length_share_one_graph():
    model, backend = frozen(Mlp()), counted_int8mixed()
    run = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for batch, length in ((2, 3), (5, 7), (3, 11)):
        x = activation(batch, length)
        assert_close_to_float(run(x), model, x)
    assert backend.graphs == 1


def test_dynamic_shapes_follow_the_reference():
    model = frozen(nn.Linear(IN, OUT))
    run = compiled(model, dynamic=True, fullgraph=True)
    for leading in ((2, 3), (5, 7), (4, 2)):
        x = activation(*leading)
        assert_follows_reference(run(x), model, x)


def grow_and_shrink(run):
    for shape in ((4, IN), (4, IN), (6, IN), (9, IN), (1, IN), (2, 5, IN), (3, 5, IN), (3, 8, IN), (IN,), (4, IN)):
        run(torch.randn(shape))


def switch_grad_modes(run):
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.enable_grad, torch.no_grad):
        with mode():
            run(torch.randn(4, IN))


def switch_autocast(run):
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            run(torch.randn(4, IN))


def change_weights(run):
    linear = run._orig_mod.up
    for change in (lambda weight: weight.add_(0.1), lambda weight: weight.copy_(torch.randn(HIDDEN, IN))):
        run(torch.randn(4, IN))
        with torch.no_grad():
            change(linear.weight)
    run(torch.randn(4, IN))
    linear.weight = nn.Parameter(torch.randn(HIDDEN, IN), requires_grad=False)
    run(torch.randn(4, IN))


SCENARIOS = (grow_and_shrink, switch_grad_modes, switch_autocast, change_weights)


def graphs_compiled(scenario, backend):
    torch.manual_seed(0)
    torch._dynamo.reset()
    scenario(torch.compile(frozen(Mlp()), backend=backend))
    return backend.graphs


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("free_weights", (False, True))
def test_recompiles_as_often_as_without_the_pass(scenario, free_weights):
    if free_weights and scenario is change_weights:
        pytest.skip("freed weights cannot be changed")
    plain = graphs_compiled(scenario, Counted(lambda graph_module, example_inputs: graph_module.forward))
    assert graphs_compiled(scenario, counted_int8mixed(free_weights=free_weights)) == plain >= 1


@pytest.mark.inductor
@pytest.mark.parametrize("scenario", (grow_and_shrink, switch_grad_modes))
def test_inductor_recompiles_as_often_as_plain_inductor(scenario):
    from torch._inductor.compile_fx import compile_fx

    plain = graphs_compiled(scenario, Counted(compile_fx))
    assert graphs_compiled(scenario, counted_int8mixed(lowering="inductor")) == plain >= 1


def test_weights_are_quantized_once_over_all_graphs(quantized_shapes, programs):
    model = frozen(Broken())
    run = compiled(model)
    for rows in (4, 4, 6, 8):
        x = activation(rows)
        assert_close_to_float(run(x), model, x)
    assert len(programs) >= 2
    assert sorted(quantized_shapes) == [(OUT, IN), (IN, IN), (IN, IN)]


def test_empty_batch():
    run = compiled(frozen(Mlp()))
    assert run(torch.empty(0, IN)).shape == (0, OUT)
    assert run(torch.empty(2, 0, IN)).shape == (2, 0, OUT)


def test_rank_one():
    model, x = frozen(nn.Linear(IN, OUT)), activation()
    assert_follows_reference(compiled(model)(x), model, x)


def test_rank_four():
    model, x = frozen(nn.Linear(IN, OUT)), activation(2, 3, 4)
    assert_follows_reference(compiled(model)(x), model, x)


@pytest.mark.inductor
@pytest.mark.parametrize("leading", ((0,), (), (2, 3)))
def test_any_rank_under_inductor(leading):
    model, x = frozen(nn.Linear(IN, OUT)), activation(*leading)
    assert_follows_reference(compiled(model, options={"lowering": "inductor"})(x), model, x)


def test_plain_function():
    linear = frozen(nn.Linear(IN, OUT))
    x = activation(5)
    run = compiled(lambda x: linear(x))
    assert_follows_reference(run(x), linear, x)


def test_dynamo_graph_is_left_as_it_was():
    graphs = []

    def backend(graph_module, example_inputs):
        before = graph_module.code
        run = int8mixed(graph_module, example_inputs, options={"lowering": "eager"})
        graphs.append((before, graph_module.code))
        return run

    torch.compile(frozen(Mlp()), backend=backend)(activation(4))
    ((before, after),) = graphs
    assert before == after
