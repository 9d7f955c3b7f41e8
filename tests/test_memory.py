"""What compiled code keeps alive, without torch.compiler.reset: nothing of the models it ran for."""

import gc
import weakref

import pytest
import torch
from torch import nn

from int8pass.weight_cache import WEIGHTS
from tests.backend.models import Layers
from tests.linear_models import IN, OUT, Mlp, activation, frozen

LOWERINGS = ("eager", pytest.param("inductor", marks=pytest.mark.inductor))


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def references(model, *inputs):
    """Weak references, by name, to all that a model and its int8 weights hold, and to inputs."""
    found = {"model": model, **{f"input {number}": x for number, x in enumerate(inputs)}}
    found |= dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[f"int8 form of {name}"] = WEIGHTS.get(module.weight, "", lambda weight: weight).quantized
    return {name: weakref.ref(held) for name, held in found.items()}


def alive(held):
    gc.collect()
    return [name for name, reference in held.items() if reference() is not None]


def run_once(options):
    """Compile a model, run it, and let go of it."""
    model, x = frozen(Mlp()), activation(5)
    torch.compile(model, backend="int8mixed", options=options)(x)
    return references(model, x)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_compiled_code_keeps_nothing_of_a_dead_model(lowering):
    assert alive(run_once({"lowering": lowering})) == []


def test_shared_code_keeps_nothing_of_dead_models():
    held = [run_once({"lowering": "eager"}) for _ in range(3)]
    assert [alive(references) for references in held] == [[], [], []]


def run_layers_that_differ():
    """The same with layers that share graphs, of which one is skipped and so runs op by op."""
    model, x = frozen(Layers()), activation(5)
    options = {"lowering": "eager", "skip_modules": ("layers.1",)}
    torch.compile(model, backend="int8mixed", options=options)(x)
    return references(model, x)


@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_op_by_op_variant_keeps_nothing_of_a_dead_model(caplog):
    held = run_layers_that_differ()
    assert any("runs op by op" in record.getMessage() for record in caplog.records)
    assert alive(held) == []


def run_until_not_finite():
    """The same, with a weight that int8 cannot hold at the later calls. References to the weights and the inputs."""
    model, inputs = frozen(Mlp()), [activation(5) for _ in range(3)]
    run = torch.compile(model, backend="int8mixed", options={"lowering": "eager"})
    run(inputs[0])
    model.up.weight[0, 0] = torch.inf
    for x in inputs[1:]:
        run(x)
    return {"weight": weakref.ref(model.up.weight), **{f"input {i}": weakref.ref(x) for i, x in enumerate(inputs)}}


def test_weight_that_is_not_finite_and_its_log_record_keep_nothing_of_a_dead_model(caplog):
    held = run_until_not_finite()
    assert any("NaN or infinity" in record.getMessage() for record in caplog.records)
    assert alive(held) == []


@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_inputs_are_released_while_a_weight_is_not_finite():
    model = frozen(nn.Linear(IN, OUT))
    run = torch.compile(model, backend="int8mixed", options={"lowering": "eager"})
    run(activation(5))
    model.weight[0, 0] = torch.inf
    inputs = [activation(5) for _ in range(3)]
    held = {f"input {number}": weakref.ref(x) for number, x in enumerate(inputs)}
    while inputs:
        run(inputs.pop())
    assert alive(held) == []


def test_first_input_is_released_while_the_model_lives():
    model, x = frozen(Mlp()), activation(5)
    run = torch.compile(model, backend="int8mixed", options={"lowering": "eager"})
    run(x)
    held = {"input": weakref.ref(x)}
    del x
    assert alive(held) == []
    run(activation(5))
