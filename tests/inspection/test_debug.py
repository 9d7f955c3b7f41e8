"""`int8pass debug`: planted bad layers are named, repairs repair, proposals reach what was wanted."""

import json
import math

import pytest
import torch
from torch import nn

from int8pass import quantize_
from int8pass.errors import CaptureError
from int8pass.inspection.debug import diagnose
from int8pass.inspection.diagnosis import Diagnosis
from int8pass.inspection.weight_facts import weight_facts
from int8pass.weights import quantize_weight
from tests import minilm, reference
from tests.linear_models import Mlp, activation, frozen

PLANTED = "encoder.layer.3.attention.output.dense"
QUERY, INTERMEDIATE = "encoder.layer.4.attention.self.query", "encoder.layer.2.intermediate.dense"
# with these the pooler's outlier column reaches the threshold; with others it hides just under it
SENTENCES = ["Based on PEP 282 and comments thereto in comp.lang.python.", "A short one."]


class Shrunk(nn.Module):
    """A Linear of the same function whose input is a fraction of what it was: its outliers are under the threshold."""

    def __init__(self, linear, by):
        super().__init__()
        self.by, self.linear = by, nn.Linear(linear.in_features, linear.out_features)
        self.linear.weight = nn.Parameter(linear.weight * by, requires_grad=False)
        self.linear.bias = linear.bias

    def forward(self, x):
        return self.linear(x / self.by)


def diagnosed(model, tokenizer, **keywords):
    torch._dynamo.reset()
    keywords = {"compiled": False, **keywords}
    return diagnose(model, (), dict(tokenizer(SENTENCES, padding=True, return_tensors="pt")), **keywords)


def op_by_op(*arguments, **keywords):
    return diagnose(*arguments, compiled=False, **keywords)


def decibels(expected, found):
    return 10 * math.log10(expected.double().square().sum() / (expected.double() - found.double()).square().sum())


# --- the numbers


def test_errors_are_those_of_the_reference():
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    found = op_by_op(model, (x,))
    expected = model.up(x)

    def int8(part, x):
        return torch.from_numpy(reference.linear(x.numpy(), part.weight.numpy(), part.bias.numpy())[0])

    up, down = found.layers
    assert up.own_db == up.running_db == pytest.approx(decibels(expected, int8(model.up, x)), abs=0.01)
    hidden, running = torch.relu(expected), torch.relu(int8(model.up, x).float())
    y = model(x)
    assert down.own_db == down.alone_db == pytest.approx(decibels(y, int8(model.down, hidden)), abs=0.01)
    assert down.running_db == found.total_db == pytest.approx(decibels(y, int8(model.down, running)), abs=0.01)
    assert up.alone_db == pytest.approx(decibels(y, model.down(running)), abs=0.01)


def test_weight_facts():
    weight = torch.full((3, 5), 0.5)
    weight[1, 2] = 40.0
    facts = weight_facts(weight, quantize_weight(weight))
    assert (facts.row, facts.column, facts.peak) == (1, 2, pytest.approx(80.0))
    assert facts.rms == pytest.approx(math.sqrt((14 * 0.25 + 1600) / 15))
    codes, scale = reference.quantize_weight(weight.numpy())
    assert facts.int8_db == pytest.approx(decibels(weight, torch.from_numpy(codes * scale[:, None])), abs=0.01)


def test_wanted_output_is_reached_with_the_fewest_layers():
    torch.manual_seed(1)
    model, x = frozen(nn.Sequential(*[nn.Linear(32, 32) for _ in range(6)])), activation(4)
    plain = op_by_op(model, (x,))
    assert (plain.wanted_db, plain.skip_modules) == (None, ())
    wanted = plain.total_db + 3
    found = op_by_op(model, (x,), wanted_db=wanted)
    assert 0 < len(found.skip_modules) < 6 and found.reached_db >= wanted
    again = op_by_op(model, (x,), options={"skip_modules": list(found.skip_modules)})
    assert again.total_db == pytest.approx(found.reached_db, abs=0.01)
    fewer = op_by_op(model, (x,), options={"skip_modules": list(found.skip_modules[:-1])})
    assert fewer.total_db < wanted
    assert "nothing needs to be skipped" in str(op_by_op(model, (x,), wanted_db=5.0))
    everything = op_by_op(model, (x,), wanted_db=500.0)
    assert len(everything.skip_modules) == 6 and everything.reached_db == math.inf


def test_graph_breaks_and_layers_that_run_twice():
    torch.manual_seed(0)
    found = op_by_op(frozen(Broken()), (activation(4),))
    assert [layer.module for layer in found.layers] == ["up", "down"] and 20 < found.total_db < 60


def test_exported_program():
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    found = op_by_op(torch.export.export(model, (x,)))
    torch._dynamo.reset()
    assert found.total_db == pytest.approx(diagnose(model, (x,)).total_db, abs=0.01)


def test_models_without_anything_to_compare():
    with pytest.raises(CaptureError, match="no floating-point tensors"):
        op_by_op(nn.Sequential(frozen(Mlp()), ArgMax()), (activation(4),))
    found = op_by_op(quantize_(nn.Sequential(nn.Linear(4, 4))), (torch.randn(2, 4),))
    assert found.layers == () and "no layer was rewritten" in str(found)


class Broken(Mlp):
    def forward(self, x):
        hidden = self.up(x)
        torch._dynamo.graph_break()
        return self.down(torch.relu(hidden)) + self.down(torch.relu(-hidden))


class ArgMax(nn.Module):
    def forward(self, x):
        return x.argmax(-1)


# --- the compiled model


class Coarse(Mlp):
    """Between its Linears values pass a coarse grid in bfloat16; Inductor computes that in float32, without one."""

    def forward(self, x):
        return self.down(torch.relu((self.up(x) + 64) - 64))


@pytest.mark.inductor
def test_compiled_model_is_as_far_from_float_as_its_ops():
    torch.manual_seed(0)
    torch._dynamo.reset()
    found = diagnose(frozen(Mlp()), (activation(5),))
    assert found.compiled_db == pytest.approx(found.total_db, abs=0.1) and not found.leaves_when_compiled
    for layer in found.layers:
        assert layer.compiled_db == pytest.approx(layer.running_db, abs=0.1)
    assert f"compiled: {found.compiled_db:.1f} dB" in str(found) and "than rounding" not in str(found)


@pytest.mark.inductor
def test_the_layer_at_which_the_compiled_model_leaves_its_ops_is_named():
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = frozen(Coarse()).bfloat16(), activation(16).bfloat16()
    found = diagnose(model, (x,))
    assert found.leaves_when_compiled and found.leaves_at.module == "down"
    compiled = torch.compile(model, backend="int8mixed")
    with torch.no_grad():
        assert found.compiled_db == pytest.approx(decibels(model(x), compiled(x)), abs=0.1)
    assert "differs from its ops by more than rounding: before or in down" in str(found)
    torch._dynamo.reset()
    assert diagnose(model, (x,), options={"lowering": "eager"}).compiled_db is None


@pytest.mark.inductor
def test_compiled_programs_graph_breaks_and_freed_weights():
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = frozen(Broken()), activation(4)
    found = diagnose(model, (x,), options={"free_weights": True})
    assert found.compiled_db == pytest.approx(found.total_db, abs=0.1)
    assert all(layer.compiled_db == pytest.approx(layer.running_db, abs=0.1) for layer in found.layers)
    assert torch.isfinite(model(x)).all()  # no weight was released
    torch._dynamo.reset()
    found = diagnose(torch.export.export(frozen(Mlp()), (activation(5),)))
    assert found.compiled_db == pytest.approx(found.total_db, abs=0.1)
    assert [layer.compiled_db is None for layer in found.layers] == [False, False]


# --- planted layers in a trained model


@pytest.mark.parametrize(
    "module", (PLANTED, *(pytest.param(module, marks=pytest.mark.slow) for module in (QUERY, INTERMEDIATE)))
)
def test_weight_scaled_by_1000_is_named(module):
    model, tokenizer = minilm.load()
    model.get_submodule(module).weight.data *= 1000
    found = diagnosed(model, tokenizer)
    assert found.suspect.module == module and "times as large as the middle layer's" in found.why
    assert f"look at {module}: " in str(found)


def test_single_value_scaled_by_1000_is_named_with_its_place():
    model, tokenizer = minilm.load()
    weight = model.get_submodule(PLANTED).weight.data
    column = int(weight[7].abs().argmax())
    weight[7, column] *= 1000
    found = diagnosed(model, tokenizer)
    assert found.suspect.module == PLANTED and f"weight [7, {column}] is " in found.suspect.unusual


def test_weight_changed_after_it_was_quantized_is_named():
    model, tokenizer = minilm.load()
    diagnosed(model, tokenizer)  # quantizes every weight
    model.get_submodule(PLANTED).weight.data *= 1000  # leaves no trace
    found = diagnosed(model, tokenizer)
    assert found.suspect.module == PLANTED and "int8pass.requantize(model)" in found.why
    assert found.suspect.own_db < 1 and found.repair.option == "skip_modules"


def test_suppressed_outliers_are_named_and_a_lower_threshold_repairs_them():
    model, tokenizer = minilm.load()
    healthy = diagnosed(model, tokenizer)
    assert not any(layer.unusual for layer in healthy.layers) and "it loses most to encoder.layer.0.output" in str(
        healthy
    )
    layer = model.encoder.layer[3].intermediate
    layer.dense = Shrunk(layer.dense, 10.0)
    found = diagnosed(model, tokenizer)
    assert found.suspect.module == "encoder.layer.3.intermediate.dense.linear"
    assert "its outliers are under the threshold" in found.why
    was = {each.module: each for each in healthy.layers}["encoder.layer.3.intermediate.dense"]
    assert found.suspect.own_db < was.own_db - 6 and found.suspect.alone_db < was.alone_db - 6
    assert found.repair.option == "threshold" and found.repair.value < 2.9
    repaired = diagnosed(model, tokenizer, options={found.repair.option: found.repair.value})
    assert repaired.total_db == pytest.approx(found.repair.total_db, abs=0.1)
    there = {each.module: each for each in repaired.layers}[found.suspect.module]
    assert there.own_db == pytest.approx(found.repair.own_db, abs=0.1) and there.own_db > found.suspect.own_db + 2


# --- the command


def test_command_prints_text_or_json(run):
    code, out, err = run("debug", "tests.test_cli:make", "--want", "60", "--no-compile")
    assert (code, err) == (0, "")
    assert "look at up: " in out and "for 60 dB: skip_modules=['up'], which gives exact dB" in out
    code, out, _ = run("debug", "tests.test_cli:make", "--json", "--threshold", "3", "--no-compile")
    document = json.loads(out)
    assert (
        document["schema"] == 2
        and document["compiled_db"] is None
        and [layer["module"] for layer in document["layers"]] == ["up"]
    )
    assert {"total_db", "suspect", "repairs", "repair"} <= document.keys() and Diagnosis.__doc__
