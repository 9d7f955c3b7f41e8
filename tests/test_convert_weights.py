"""int8pass.convert: what becomes of weights, buffers, constants and outputs, also after saving and loading."""

import copy

import pytest
import torch
from torch import nn

import int8pass.notices
from int8pass import convert
from tests import zoo
from tests.linear_models import IN, OUT, Mlp, activation, exported, frozen, op_counts, relative_error, reloaded

OUTLIER_WEIGHTS = ("original", "dequantized")


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    """Each test starts with the same seed, without compiled code and without warnings that were given already."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(int8pass.notices, "_warned", set())


# --- weights


def test_original_is_left_as_it_was():
    model, x = Mlp().eval(), activation(4)
    before, tensors = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    expected = model(x)
    convert(model, (x,), options={"free_weights": False})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter is tensors[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(x), expected)


def test_freed_weights_are_gone_from_the_program_and_results_are_those_of_dequantized_columns():
    model, x = frozen(Mlp()), activation(4)
    expected = convert(copy.deepcopy(model), (x,), options={"outlier_weights": "dequantized"})(x)
    converted = convert(model, (x,), options={"free_weights": True})
    assert torch.equal(converted(x), expected)
    assert not any(name.endswith(".weight") for name in converted.state_dict())


def test_freed_program_can_be_saved():
    x = activation(4)
    converted = convert(exported(frozen(Mlp()), x), options={"free_weights": True})
    assert torch.equal(reloaded(converted).module()(x), converted.module()(x))


class Tied(nn.Module):
    """An embedding and an output layer that share one table."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(OUT, IN)
        self.body = nn.Linear(IN, IN)
        self.output = nn.Linear(IN, OUT, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids):
        return self.output(self.body(self.embedding(ids)))


def test_weight_tied_to_an_embedding_is_skipped():
    ids = torch.arange(5)
    converted = convert(frozen(Tied()), (ids,))
    assert op_counts(converted)["int8_mm"] == 1 and op_counts(converted)["linear"] == 1


@pytest.mark.parametrize("outlier_weights", OUTLIER_WEIGHTS)
def test_embedding_keeps_its_table_where_the_tied_linear_is_rewritten(outlier_weights):
    model, ids = frozen(Tied()), torch.arange(5)
    options = {"skip_modules_default": False, "outlier_weights": outlier_weights}
    converted = convert(exported(model, ids), options=options)
    assert op_counts(converted)["int8_mm"] == 2
    assert relative_error(reloaded(converted).module()(ids), model(ids)) < 0.03


@pytest.mark.parametrize("outlier_weights", OUTLIER_WEIGHTS)
def test_tied_linears_share_one_int8_weight(outlier_weights):
    model, x = frozen(nn.Sequential(nn.Linear(IN, IN), nn.ReLU(), nn.Linear(IN, IN))), activation(4)
    model[2].weight = model[0].weight
    converted = convert(exported(model, x), options={"outlier_weights": outlier_weights})
    codes = [tensor for tensor in converted.state_dict.values() if tensor.dtype == torch.int8]
    floats = [tensor for tensor in converted.state_dict.values() if tensor.is_floating_point() and tensor.dim() == 2]
    assert len(codes) == 1
    assert len({tensor.data_ptr() for tensor in floats}) == (outlier_weights == "original")
    assert torch.equal(reloaded(converted).module()(x), converted.module()(x))


@pytest.mark.parametrize("outlier_weights", OUTLIER_WEIGHTS)
def test_views_of_one_parameter_become_buffers_of_their_own(outlier_weights):
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3 * OUT, IN))

        def forward(self, x):
            return tuple(nn.functional.linear(x, part) for part in self.weight.chunk(3))

    model, x = frozen(Stacked()), activation(4)
    converted = convert(exported(model, x), options={"outlier_weights": outlier_weights})
    assert op_counts(converted)["int8_mm"] == 3
    for result, expected in zip(reloaded(converted).module()(x), model(x), strict=True):
        assert 0 < relative_error(result, expected) < 0.03


# --- what else is in a program


class Counting(Mlp):
    """Counts its calls in a buffer, and keeps a running mean of its outputs in another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(OUT))

    def forward(self, x):
        y = super().forward(x)
        self.calls.add_(1)
        self.mean.mul_(0.5).add_(y.mean(0), alpha=0.5)
        return y + self.mean


@pytest.mark.parametrize("load", (lambda program: program, reloaded))
def test_mutated_buffers_are_mutated_still(load):
    model, x = frozen(Counting()), activation(4)
    program = exported(copy.deepcopy(model), x)  # a program shares its tensors with the model it was made from
    converted = load(convert(program, options={"outlier_weights": "dequantized"})).module()
    for call in range(1, 4):
        assert relative_error(converted(x), model(x)) < 0.03
        assert int(converted.calls) == int(model.calls) == call
    assert relative_error(converted.mean, model.mean) < 0.03


def test_constants_and_unsaved_buffers_are_kept():
    class Constants(Mlp):
        def __init__(self):
            super().__init__()
            self.constant = torch.full((OUT,), 3.0)
            self.register_buffer("unsaved", torch.full((OUT,), 5.0), persistent=False)

        def forward(self, x):
            return super().forward(x) + self.constant * self.unsaved

    model, x = frozen(Constants()), activation(4)
    converted = convert(exported(model, x), options={"outlier_weights": "dequantized"})
    assert relative_error(converted.module()(x), model(x)) < 0.03
    assert torch.equal(reloaded(converted).module()(x), converted.module()(x))


def test_inputs_are_outputs_and_results_are_in_a_dictionary():
    class Dictionary(Mlp):
        def forward(self, x, unread):
            y = super().forward(x)
            return {"y": y, "again": (y, x), "none": None, "number": 2}

    model, x = frozen(Dictionary()), activation(4)
    result = convert(exported(model, x, torch.ones(1))).module()(x, torch.ones(1))
    assert list(result) == ["y", "again", "none", "number"]
    assert torch.equal(result["again"][1], x) and torch.equal(result["again"][0], result["y"])
    assert result["none"] is None and result["number"] == 2


@pytest.mark.parametrize("name", ("bert", "gpt2", "t5"))
def test_transformers_models_give_their_model_output(name):
    model, args, kwargs = zoo.build(name)
    converted = convert(model, args, kwargs)
    result, expected = converted(*args, **kwargs), model(*args, **kwargs)
    assert type(result) is type(expected)
    assert result.keys() == expected.keys()
    assert 0 < relative_error(result.logits, expected.logits) < 0.05
    assert op_counts(converted)["int8_mm"] >= 8


def test_gpt2_program_can_be_saved():
    model, args, kwargs = zoo.build("gpt2")
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs)
    converted = convert(program, options={"outlier_weights": "dequantized"})
    assert torch.equal(reloaded(converted).module()(**kwargs).logits, converted.module()(**kwargs).logits)
