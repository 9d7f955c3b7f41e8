"""int8pass.Int8Linear: numbers, state dicts, dtypes and gradients."""

import copy

import pytest
import torch
from torch import nn

from int8pass import Int8Linear, quantize_
from int8pass.errors import ConfigError, WeightError
from tests import reference, zoo
from tests.linear_models import IN, OUT, Mlp, activation, relative_error

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts with the same seed and without compiled code."""
    torch.manual_seed(0)
    torch._dynamo.reset()


def conv1d(out_features, in_features):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(out_features, in_features)


def assert_follows_reference(result, weight, bias, x, **options):
    """weight: [N, K] and bias: [N] or None, the float ones; x: [..., K]."""
    bias = None if bias is None else bias.detach().float().numpy()
    rows = x.detach().reshape(-1, x.shape[-1]).float().numpy()
    weight = weight.detach().float().numpy()
    y, magnitude = reference.linear(rows, weight, bias, outlier_weights="dequantized", **options)
    bound = reference.tolerance(y, magnitude, x.shape[-1], torch.finfo(x.dtype).eps)
    assert result.shape == (*x.shape[:-1], weight.shape[0]) and result.dtype == x.dtype
    assert (abs(result.detach().double().reshape(y.shape).numpy() - y) <= bound).all()


# --- numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("leading", ((6,), (2, 3), (), (0,)))
def test_follows_the_reference(dtype, bias, leading):
    linear, x = nn.Linear(IN, OUT, bias=bias, dtype=dtype), activation(*leading).to(dtype)
    assert_follows_reference(Int8Linear.from_linear(linear)(x), linear.weight, linear.bias, x)


@pytest.mark.parametrize("threshold", (0.0, 2.5, 6.0))
@pytest.mark.parametrize("outliers", reference.OUTLIERS)
def test_options_follow_the_reference(threshold, outliers):
    linear, x = nn.Linear(IN, OUT), activation(6)
    module = Int8Linear.from_linear(linear, threshold=threshold, outliers=outliers)
    assert_follows_reference(module(x), linear.weight, linear.bias, x, threshold=threshold, outliers=outliers)


def test_result_is_the_same_in_every_grad_mode():
    module, x = Int8Linear.from_linear(nn.Linear(IN, OUT)), activation(5)
    results = [module(x)]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results.append(module(x))
    for result in results[1:]:
        assert torch.allclose(results[0], result, rtol=1e-6, atol=1e-6)


def test_int8_weight_and_scale_are_those_of_the_reference():
    linear = nn.Linear(IN, OUT)
    module = Int8Linear.from_linear(linear)
    codes, scale = reference.quantize_weight(linear.weight.detach().numpy())
    assert torch.equal(module.weight, torch.from_numpy(codes))
    assert torch.equal(module.scale, torch.from_numpy(scale))
    assert torch.equal(module.dequantized(), module.weight.float() * module.scale[:, None])
    assert float((module.dequantized() - linear.weight).detach().abs().max()) <= 0.51 * float(module.scale.max())


def test_conv1d_is_transposed():
    linear, x = conv1d(OUT, IN), activation(6)
    nn.init.normal_(linear.bias)
    module = Int8Linear.from_linear(linear)
    assert module.weight.shape == (OUT, IN) and module.transposed
    assert_follows_reference(module(x), linear.weight.t(), linear.bias, x)


def test_bias_is_shared_and_no_float_weight_is_kept():
    linear = nn.Linear(IN, OUT)
    module = Int8Linear.from_linear(linear)
    assert module.bias is linear.bias
    assert [name for name, _ in module.named_parameters()] == ["bias"]
    assert module.weight.dtype == torch.int8 and module.scale.dtype == torch.float32


@pytest.mark.parametrize("value", (float("nan"), float("inf"), 3e38))
def test_weight_that_cannot_be_quantized_is_refused(value):
    linear = nn.Linear(IN, OUT)
    with torch.no_grad():
        linear.weight[1, 2] = value
    with pytest.raises(WeightError):
        Int8Linear.from_linear(linear)


@pytest.mark.parametrize("options", ({"threshold": -1.0}, {"outliers": "row"}))
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError):
        Int8Linear(IN, OUT, **options)


def test_representation_says_shapes_and_options():
    text = repr(Int8Linear(IN, OUT, bias=False, threshold=5.0, outliers="token"))
    expected = "in_features=32, out_features=24, bias=False, scheme='llm.int8', threshold=5.0, outliers='token'"
    assert text == f"Int8Linear({expected})"


# --- state dicts


def test_state_dict_round_trip():
    source, x = Int8Linear.from_linear(nn.Linear(IN, OUT)), activation(4)
    target = Int8Linear(IN, OUT)
    assert sorted(source.state_dict()) == ["bias", "scale", "weight"]
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


def test_float_state_dict_is_quantized_while_it_is_loaded():
    model, x = Mlp(bias=False), activation(4)
    expected = quantize_(copy.deepcopy(model))
    target = quantize_(Mlp(bias=False))
    state = model.state_dict()
    target.load_state_dict(state)
    assert torch.equal(target(x), expected(x))
    assert state["up.weight"].dtype == torch.float32 and "up.scale" not in state


def test_meta_model_takes_a_float_state_dict():
    model, x = Mlp(bias=False), activation(4)
    with torch.device("meta"):
        target = quantize_(Mlp(bias=False))
    assert all(tensor.is_meta for tensor in target.state_dict().values())
    target.load_state_dict(model.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in target.state_dict().values())
    assert torch.equal(target(x), quantize_(model)(x))


def test_meta_conv1d_takes_a_float_state_dict():
    linear, x = conv1d(OUT, IN), activation(4)
    with torch.device("meta"):
        target = quantize_(nn.Sequential(conv1d(OUT, IN)))
    target.load_state_dict({"0.weight": linear.weight, "0.bias": linear.bias}, assign=True)
    assert torch.equal(target(x), Int8Linear.from_linear(linear)(x))


def test_meta_gpt2_takes_a_float_state_dict():
    model, args, kwargs = zoo.build("gpt2")
    with torch.device("meta"):
        target = quantize_(type(model)(model.config)).eval()
    target.load_state_dict(model.state_dict(), assign=True)
    target.tie_weights()
    assert sum(isinstance(module, Int8Linear) for module in target.modules()) == 8
    assert relative_error(target(*args, **kwargs).logits, model(*args, **kwargs).logits) < 0.05


def test_strict_loading_names_what_is_wrong():
    module, state = Int8Linear(IN, OUT), Int8Linear.from_linear(nn.Linear(IN, OUT)).state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*scale"):
        module.load_state_dict({name: tensor for name, tensor in state.items() if name != "scale"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*extra"):
        module.load_state_dict({**state, "extra": torch.ones(1)})
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        module.load_state_dict({**state, "weight": state["weight"][:, :5]})
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        module.load_state_dict(nn.Linear(IN + 1, OUT).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        module.load_state_dict({"bias": state["bias"]})


def test_deepcopy_computes_the_same():
    module, x = Int8Linear.from_linear(conv1d(OUT, IN), threshold=3.0, outliers="token"), activation(4)
    copied = copy.deepcopy(module)
    assert torch.equal(copied(x), module(x))
    assert copied.weight.data_ptr() != module.weight.data_ptr()
    assert copied.extra_repr() == module.extra_repr() and copied.transposed


# --- dtypes


@pytest.mark.parametrize("cast", (nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.float16)))
def test_cast_leaves_codes_and_scale_alone(cast):
    linear = nn.Linear(IN, OUT)
    module = Int8Linear.from_linear(linear)
    weight, scale = module.weight.clone(), module.scale.clone()
    cast(module)
    assert torch.equal(module.weight, weight) and torch.equal(module.scale, scale)
    assert module.scale.dtype == torch.float32 and module.weight.dtype == torch.int8
    x = activation(4).to(module.bias.dtype)
    assert_follows_reference(module(x), linear.weight, module.bias, x)


def test_cast_of_a_model_reaches_every_layer():
    model = quantize_(Mlp(bias=False)).half()
    assert model.up.scale.dtype == model.down.scale.dtype == torch.float32
    assert model(activation(4).half()).dtype == torch.float16


def test_moves_to_another_device():
    module = Int8Linear.from_linear(nn.Linear(IN, OUT)).to("meta", torch.bfloat16)
    assert module.weight.is_meta and module.scale.is_meta and module.bias.is_meta
    assert module.scale.dtype == torch.float32


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast_decides_the_dtype_of_the_result(dtype):
    linear, x = nn.Linear(IN, OUT), activation(4)
    module = Int8Linear.from_linear(linear)
    with torch.autocast("cpu", dtype):
        assert module(x).dtype == linear(x).dtype == dtype
    assert module(x).dtype == torch.float32


# --- gradients


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_dequantized_weight(dtype):
    linear = nn.Linear(IN, OUT, dtype=dtype)
    module, x = Int8Linear.from_linear(linear), activation(5).to(dtype).requires_grad_()
    weights = torch.randn(5, OUT).to(dtype)
    (module(x) * weights).sum().backward()
    expected = weights.double() @ module.dequantized().double()
    epsilon = torch.finfo(dtype).eps
    magnitude = weights.double().abs() @ module.dequantized().double().abs()
    bound = epsilon * expected.abs() + IN * torch.finfo(torch.float32).eps * magnitude
    assert x.grad.dtype == dtype and ((x.grad.double() - expected).abs() <= bound).all()
    assert relative_error(module.bias.grad, weights.double().sum(0)) <= 5 * epsilon


def test_no_gradient_reaches_the_int8_weight():
    module = Int8Linear.from_linear(nn.Linear(IN, OUT))
    module(activation(3)).sum().backward()
    assert module.weight.grad is None and module.scale.grad is None and module.bias.grad is not None
