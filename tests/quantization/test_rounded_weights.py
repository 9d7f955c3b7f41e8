"""Rounded weights: calibrated once, kept beside the profile, used by every way of running the model."""

import json

import pytest
import torch
from torch import nn

from int8pass import Int8MixedConfig, Profile, calibrate, convert, export_onnx, pipeline, quantize_
from int8pass.errors import ConfigError, OutputError, ProfileError
from int8pass.exported import program_from_exported
from int8pass.inspection.text import graph_text
from int8pass.quantization import round_weights
from int8pass.weights import quantize_weight
from tests.export.files import OnnxModel
from tests.linear_models import IN, Mlp, bounded, exported, frozen, op_counts, relative_error, reloaded


@pytest.fixture
def model():
    torch.manual_seed(0)
    return frozen(Mlp())


def inputs(rows=200):
    """Correlated rows, with an outlier in column 3."""
    torch.manual_seed(1)
    x = bounded(rows, IN // 4).repeat(1, 4) * torch.linspace(0.2, 1.0, IN) + 0.05 * bounded(rows, IN)
    x[0, 3] = 8.0
    return x


def gptq(model, x, **options):
    return calibrate(model, list(x.split(50)), rounding="gptq", progress=False, **options)


@pytest.fixture
def profile(model):
    return gptq(model, inputs())


def error(model, x, profile):
    return relative_error(convert(model, (x,), options={"profile": profile})(x), model(x))


def test_a_linear_loses_less():
    torch.manual_seed(0)
    linear, x = frozen(nn.Linear(IN, 24)), inputs()
    plain = calibrate(linear, [x], progress=False)
    assert error(linear, x, gptq(linear, x)) < 0.92 * error(linear, x, plain)


def test_the_scale_leaves_out_outlier_columns_that_stay_in_float():
    linear, x = frozen(nn.Linear(IN, 24)), inputs()
    linear.weight[:, 3] *= 20
    (kept,) = gptq(linear, x).rounded.weights.values()
    (covering,) = gptq(linear, x, options={"outlier_weights": "dequantized"}).rounded.weights.values()
    others = linear.weight[:, [column for column in range(IN) if column != 3]]
    torch.testing.assert_close(kept.scale, others.abs().amax(1) / 127)
    torch.testing.assert_close(covering.scale, linear.weight.abs().amax(1) / 127)


def test_round_trip(profile, tmp_path):
    profile.save(tmp_path / "profile.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.json", "profile.safetensors"]
    read = Profile.load(tmp_path / "profile.json")
    assert read == profile
    assert [each.weight for each in read.rounded.weights.values()] == ["down.weight", "up.weight"]


def test_every_way_runs_the_same_codes(model, profile, tmp_path):
    x = inputs(5)
    options = {"profile": profile, "lowering": "eager"}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="int8mixed", options=options)(x)
    converted = convert(exported(model, x), options=options)
    codes = {name: tensor for name, tensor in converted.state_dict.items() if name.endswith("_codes")}
    expected = {f"{each.weight}_codes": each.codes for each in profile.rounded.weights.values()}
    assert codes.keys() == expected.keys() and all(torch.equal(codes[name], expected[name]) for name in codes)
    assert torch.equal(converted.module()(x), compiled)
    export_onnx(model, (x,), tmp_path / "model.onnx", options={"profile": profile})
    torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(x)[0], compiled, rtol=1e-3, atol=1e-3)


def test_one_input_at_a_time_gives_the_same(model, profile, monkeypatch):
    monkeypatch.setattr(round_weights, "LARGEST_MOMENTS", 1)
    assert gptq(model, inputs()) == profile


def test_progress_names_what_is_done(model, capsys):
    calibrate(model, [inputs()], rounding="gptq")
    shown = capsys.readouterr().err
    assert "moments of the inputs" in shown and "rounding weights" in shown


def test_changed_weights_are_refused(model, profile):
    x = inputs(5)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="int8mixed", options={"profile": profile, "lowering": "eager"})
    compiled(x)
    model.up.weight[7, 7] += 0.25  # not one that the profile's own fingerprint looks at
    with pytest.raises(ProfileError, match="no rounded form of a weight"):
        compiled(x)


def test_refusals(model, profile, tmp_path):
    x = inputs(5)
    for options, match in (
        ({"outlier_weights": "dequantized"}, "'outlier_weights': 'dequantized'"),
        ({"free_weights": True}, "'outlier_weights': 'dequantized'"),
        ({"threshold": 0.0}, "'threshold': 0.0"),
    ):
        with pytest.raises(ConfigError, match=match):
            Int8MixedConfig(profile=profile, **options)
    with pytest.raises(ConfigError, match="outlier_columns='runtime' would leave out"):
        export_onnx(model, (x,), tmp_path / "m.onnx", options={"profile": profile}, outlier_columns="runtime")
    with pytest.raises(ConfigError, match="quantize_ takes no weights"):
        quantize_(model, options={"profile": profile})
    with pytest.raises(ConfigError, match="rounding must be"):
        calibrate(model, [x], rounding="stochastic", progress=False)
    with pytest.raises(ConfigError, match="rounding='gptq' read the batches more than once"):
        calibrate(model, iter([x]), rounding="gptq", progress=False)
    with pytest.raises(OutputError, match="take the suffix"):
        profile.save(tmp_path / "profile.safetensors")


def test_files_that_do_not_belong_together(model, profile, tmp_path):
    path = tmp_path / "profile.json"
    profile.save(path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "weights": "0" * 32}))
    with pytest.raises(ProfileError, match="does not hold the weights"):
        Profile.load(path)
    path.with_suffix(".safetensors").write_bytes(b"no tensors")
    with pytest.raises(ProfileError, match="not a safetensors file"):
        Profile.load(path)
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.load(path)


def test_free_weights_with_columns_that_are_covered(model):
    x = inputs()
    profile = gptq(model, x, options={"outlier_weights": "dequantized"})
    expected = model(x)
    torch._dynamo.reset()
    options = {"profile": profile, "free_weights": True, "lowering": "eager"}
    with torch.no_grad():
        y = torch.compile(model, backend="int8mixed", options=options)(x)
    assert relative_error(y, expected) < 0.02


class Attention(nn.Module):
    """q and k read one input, as in attention; `out` reads another."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(IN)
        self.q, self.k, self.out = nn.Linear(IN, 16), nn.Linear(IN, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = self.norm(x)
        return self.out(torch.tanh(self.q(x) * self.k(x)))


def attention():
    """Features of the norm's output differ much in size, and weights make up for it."""
    torch.manual_seed(0)
    model = frozen(Attention())
    model.norm.weight.copy_(torch.logspace(-1.5, 1.0, IN))
    for linear in (model.q, model.k):
        linear.weight /= model.norm.weight
    return model


def migrated(model, x, rounding="nearest"):
    return calibrate(model, [x], rounding=rounding, migration=True, progress=False, options={"threshold": 40})


def test_migration_leaves_the_float_function_as_it_is():
    model, x = attention(), bounded(200, IN)
    profile = migrated(model, x)
    by_name = {each.weight: each for each in profile.rounded.weights.values()}
    assert by_name["q.weight"].input_factor is not None and by_name["out.weight"].input_factor is None
    factor = by_name["q.weight"].input_factor.double()
    rows, weight = model.norm(x).double(), model.q.weight.double()
    torch.testing.assert_close((rows * factor) @ (weight / factor).T, rows @ weight.T, rtol=1e-12, atol=1e-12)
    each = by_name["q.weight"]
    lost = each.codes.double() * each.scale.double()[:, None] - weight / factor
    assert float((lost.abs() / each.scale[:, None]).max()) <= 0.5 + 1e-4


def test_migration_takes_most_of_the_error_off():
    model, x = attention(), bounded(200, IN)
    plain = calibrate(model, [x], progress=False, options={"threshold": 40})
    errors = [
        relative_error(convert(model, (x,), options={"profile": profile, "threshold": 40})(x), model(x))
        for profile in (plain, migrated(model, x), migrated(model, x, "gptq"))
    ]
    assert max(errors[1:]) < 0.1 * errors[0]


def test_linears_of_one_input_share_its_factor():
    model, x = attention(), bounded(200, IN)
    options = {"profile": migrated(model, x), "threshold": 40}
    program = convert(exported(model, x), options=options)
    assert op_counts(program)["scale_features"] == 1 and op_counts(program)["quantize_per_token"] == 2
    assert [name for name in program.state_dict if name.endswith("input_factor")] == ["q.weight_input_factor"]
    assert torch.equal(reloaded(program).module()(x), program.module()(x))


def test_a_factor_is_1_at_outlier_columns():
    model, x = attention(), bounded(200, IN)
    model.norm.bias[5] = 50.0
    profile = migrated(model, x)
    (each,) = [each for each in profile.rounded.weights.values() if each.weight == "k.weight"]
    assert profile.layers[0].outlier_columns == (5,)
    assert each.input_factor[5] == 1.0 and each.input_factor.ne(1.0).any()
    assert relative_error(convert(model, (x,), options={"profile": profile, "threshold": 40})(x), model(x)) < 0.03


def test_migration_in_the_backend_in_files_and_backwards(tmp_path):
    model, x = attention(), bounded(20, IN)
    options = {"profile": migrated(model, x), "threshold": 40, "lowering": "eager"}
    expected = convert(model, (x,), options=options)(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="int8mixed", options=options)
    with torch.no_grad():
        assert torch.equal(compiled(x), expected)
    for target in ("onnxruntime-cpu", "tensorrt"):
        file = {"options": {"profile": options["profile"], "threshold": 40}, "target": target}
        export_onnx(model, (x,), tmp_path / "model.onnx", **file)
        torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(x)[0], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="calibrate without migration"):
        Int8MixedConfig(profile=options["profile"], threshold=40, lowering="tensorrt")
    gradients = []
    for run in (compiled, model):
        leaf = x.clone().requires_grad_()
        run(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert relative_error(gradients[0], gradients[1]) < 0.05


@pytest.mark.inductor
def test_inductor_fuses_the_factor():
    model, x = attention(), bounded(20, IN)
    options = {"profile": migrated(model, x), "threshold": 40}
    expected = convert(model, (x,), options=options)(x)
    torch._dynamo.reset()
    with torch.no_grad():
        y = torch.compile(model, backend="int8mixed", options=options)(x)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


def test_a_gain_too_small_changes_nothing(model):
    profile = calibrate(model, [inputs()], migration=True, progress=False)
    assert all(each.input_factor is None for each in profile.rounded.weights.values() if each.weight == "down.weight")


def test_text_of_a_linear_with_a_factor():
    torch.manual_seed(0)
    linear, x = frozen(nn.Linear(IN, 16)), bounded(200, IN) * torch.logspace(-1.5, 1.0, IN)
    linear.weight /= torch.logspace(-1.5, 1.0, IN)
    options = Int8MixedConfig(profile=migrated(linear, x), threshold=40)
    program = pipeline.run(program_from_exported(exported(linear, x[:4]), options))
    text = graph_text(program.graph, program.labels)
    assert "%p_weight_input_factor : f32[32] = input factor of 'weight'" in text
    assert "%scale_features : f32[4, 32] = int8pass.scale_features(%input, %p_weight_input_factor)" in text
    assert "int8pass.quantize_per_token(%scale_features, %scale_per_token" in text


class Reused(nn.Module):
    """One Linear reads the input that `q` reads too, and later another one."""

    def __init__(self):
        super().__init__()
        self.q, self.shared = nn.Linear(IN, IN), nn.Linear(IN, IN)

    def forward(self, x):
        return self.shared(torch.tanh(self.q(x) + self.shared(x)))


def test_a_linear_of_several_inputs_has_no_factor():
    torch.manual_seed(0)
    model, x = frozen(Reused()), bounded(200, IN) * torch.logspace(-1.5, 1.0, IN)
    for linear in (model.q, model.shared):
        linear.weight /= torch.logspace(-1.5, 1.0, IN)
    profile = migrated(model, x, "gptq")
    assert [each.input_factor for each in profile.rounded.weights.values()] == [None, None]


def test_equal_weights_of_different_inputs_are_rounded_to_nearest():
    torch.manual_seed(0)
    model, x = frozen(nn.Sequential(nn.Linear(IN, IN), nn.Tanh(), nn.Linear(IN, IN))), inputs()
    model[2].weight.copy_(model[0].weight)
    (each,) = gptq(model, x).rounded.weights.values()
    expected = quantize_weight(model[0].weight)
    assert torch.equal(each.codes, expected.codes) and torch.equal(each.scale, expected.scale)
