"""int8pass.quantize_: which Linears are replaced, and the result under torch.compile and torch.export."""

import copy
import logging

import pytest
import torch
from torch import nn

from int8pass import Int8Linear, Int8MixedConfig, quantize_
from int8pass.errors import ConfigError
from tests import zoo
from tests.graphs import compiled
from tests.linear_models import HIDDEN, IN, OUT, Mlp, activation, op_counts, relative_error


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts with the same seed and without compiled code."""
    torch.manual_seed(0)
    torch._dynamo.reset()


def conv1d(out_features, in_features):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(out_features, in_features)


def int8_linears(model):
    return [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]


# --- quantize_


def test_replaces_every_linear_in_place():
    model, x = Mlp(bias=False), activation(4)
    expected = model(x)
    assert quantize_(model) is model
    assert int8_linears(model) == ["up", "down"]
    assert model.down.bias is None
    assert 0 < relative_error(model(x), expected) < 0.03


def test_passes_on_options_and_mode():
    model = quantize_(Mlp(bias=False).eval(), options=Int8MixedConfig(threshold=3.0, outliers="token"))
    assert model.up.threshold == 3.0 and model.up.outliers == "token"
    assert not model.up.training


def test_skips_named_modules(caplog):
    caplog.set_level(logging.DEBUG, "int8pass.int8_linear")
    model = nn.ModuleDict({"first": Mlp(bias=False), "second": Mlp(bias=False), "lm_head": nn.Linear(IN, OUT)})
    quantize_(model, options={"skip_modules": ("second", "re:.*down")})
    assert int8_linears(model) == ["first.up"]
    assert any("second.up" in message and "skip_modules" in message for message in caplog.messages)


def test_skips_the_head_unless_told_otherwise():
    model = nn.ModuleDict({"up": nn.Linear(IN, OUT), "lm_head": nn.Linear(IN, OUT)})
    assert int8_linears(quantize_(copy.deepcopy(model))) == ["up"]
    assert int8_linears(quantize_(model, options={"skip_modules_default": False})) == ["up", "lm_head"]


def test_skips_what_is_tied_to_an_embedding():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(OUT, IN)
            self.body = nn.Linear(IN, IN)
            self.output = nn.Linear(IN, OUT, bias=False)
            self.output.weight = self.table.weight

    model = quantize_(Tied())
    assert int8_linears(model) == ["body"]
    assert model.output.weight is model.table.weight


def test_skips_the_tied_head_of_gpt2():
    model, args, kwargs = zoo.build("gpt2")
    expected = model(*args, **kwargs).logits
    quantize_(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert len(int8_linears(model)) == 8
    assert 0 < relative_error(model(*args, **kwargs).logits, expected) < 0.05


def test_layer_used_in_two_places_is_replaced_in_both():
    shared = nn.Linear(IN, IN)
    model = quantize_(nn.Sequential(shared, nn.ReLU(), shared))
    assert isinstance(model[0], Int8Linear) and model[0] is model[2]


def test_attention_runs_with_its_projection_untouched():
    model, x = nn.MultiheadAttention(IN, 4, batch_first=True).eval(), torch.randn(2, 5, IN)
    expected, _ = model(x, x, x)
    quantize_(model)
    assert int8_linears(model) == []
    assert torch.equal(model(x, x, x)[0], expected)


@pytest.mark.parametrize("padded", (False, True))
def test_transformer_encoder_runs(padded):
    layer = nn.TransformerEncoderLayer(IN, 4, HIDDEN, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, IN)
    mask = torch.tensor([[False] * 5, [False, False, False, True, True]]) if padded else None
    kept = slice(None) if mask is None else ~mask
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        quantize_(model)
        result = model(x, src_key_padding_mask=mask)
    assert int8_linears(model) == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    assert 0 < relative_error(result[kept], expected[kept]) < 0.05


def test_weight_that_cannot_be_quantized_is_skipped(caplog):
    caplog.set_level(logging.DEBUG, "int8pass.int8_linear")
    model = Mlp(bias=False)
    with torch.no_grad():
        model.up.weight[0, 0] = float("nan")
    assert int8_linears(quantize_(model)) == ["down"]
    assert "up: the weight holds NaN or infinity" in caplog.messages


def test_other_dtypes_and_subclasses_are_skipped():
    class Own(nn.Linear):
        pass

    model = quantize_(nn.Sequential(nn.Linear(IN, OUT, dtype=torch.float64), Own(IN, OUT)))
    assert int8_linears(model) == []


@pytest.mark.parametrize("linear", (nn.Linear(IN, OUT), lambda: conv1d(OUT, IN)))
def test_a_linear_itself_is_refused(linear):
    model = linear if isinstance(linear, nn.Module) else linear()
    with pytest.raises(ConfigError, match="from_linear"):
        quantize_(model)


def test_original_outlier_weights_are_refused():
    with pytest.raises(ConfigError, match="no float weights"):
        quantize_(Mlp(bias=False), options={"outlier_weights": "original"})


def test_quantizing_twice_changes_nothing():
    model, x = quantize_(Mlp(bias=False)), activation(4)
    before, expected = model.up, model(x)
    quantize_(model)
    assert model.up is before and torch.equal(model(x), expected)


# --- under torch.compile


def test_backend_recognises_it_and_gives_the_result_of_eager():
    model, x = quantize_(Mlp(bias=False)).eval().requires_grad_(False), activation(4)
    result = compiled(model, x)
    assert torch.equal(result.output, model(x))
    assert result.reasons == {"already int8 (Int8Linear)": 2}
    assert result.operations["int8_mm"] == 2


def test_backend_rewrites_the_linears_beside_it():
    model, x = Mlp(bias=False).eval().requires_grad_(False), activation(4)
    model.up = Int8Linear.from_linear(model.up)
    result = compiled(model, x, outlier_weights="dequantized")
    assert result.reasons == {"already int8 (Int8Linear)": 1, "rewritten": 1}
    assert torch.equal(result.output, quantize_(model)(x))


@pytest.mark.inductor
@pytest.mark.parametrize("backend", ("int8mixed", "inductor"))
def test_inductor_gives_the_result_of_eager(backend):
    model, x = quantize_(Mlp(bias=False)).eval().requires_grad_(False), activation(4)
    with torch.no_grad():
        assert relative_error(torch.compile(model, backend=backend)(x), model(x)) < 1e-6


def test_plain_compile_and_gradients():
    model, x = quantize_(Mlp(bias=False)), activation(4).requires_grad_()
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert torch.allclose(x.grad, expected, rtol=1e-5, atol=1e-6)


def test_export_keeps_the_ops():
    model, x = quantize_(Mlp(bias=False)).eval(), activation(4)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    assert op_counts(program)["int8_mm"] == 2
    assert torch.equal(program.module()(x), model(x))
