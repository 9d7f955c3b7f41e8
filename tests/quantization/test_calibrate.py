"""calibrate finds the columns that the batches show, and a profile puts them into every way of running the model."""

import json

import pytest
import torch
from torch import nn

from int8pass import Profile, calibrate, convert
from int8pass.errors import CaptureError, ConfigError, OutputError, ProfileError
from tests import reference
from tests.linear_models import IN, Mlp, activation, bounded, exported, frozen, op_counts, reloaded


@pytest.fixture
def model():
    torch.manual_seed(0)
    return frozen(Mlp())


def columns(profile):
    return {layer.weight: layer.outlier_columns for layer in profile.layers}


def with_columns(*features):
    x = bounded(5, IN)
    x[0, list(features)] = 8.0
    return x


def test_columns_of_any_batch_and_absmax(model):
    profile = calibrate(model, [with_columns(3), (with_columns(3, 7),), {"x": bounded(2, IN)}], progress=False)
    assert profile.batches == 3 and profile.threshold == 6.0
    assert [(layer.weight, layer.shape) for layer in profile.layers] == [
        ("up.weight", (48, 32)),
        ("down.weight", (24, 48)),
    ]
    assert columns(profile)["up.weight"] == (3, 7)
    assert profile.layers[0].absmax == 8.0


def test_min_batches(model):
    batches = [with_columns(3), with_columns(3, 7)]
    assert columns(calibrate(model, batches, min_batches=2, progress=False))["up.weight"] == (3,)


def test_exported_programs_give_the_same_profile(model):
    batches = [with_columns(3), with_columns(4)]
    assert calibrate(exported(model, batches[0]), batches, progress=False) == calibrate(model, batches, progress=False)


def test_progress_is_shown(model, capsys):
    calibrate(model, [with_columns(3)])
    assert "calibrating" in capsys.readouterr().err


def test_round_trip(model, tmp_path):
    profile = calibrate(model, [with_columns(3)], progress=False)
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile
    document = json.loads((tmp_path / "profile.json").read_text())
    assert document["schema"] == 2 and document["model"] == profile.fingerprint


@pytest.mark.parametrize("outlier_weights", reference.OUTLIER_WEIGHTS)
def test_a_profile_decides_in_the_backend_and_in_convert(outlier_weights):
    torch.manual_seed(1)
    linear, x = frozen(nn.Linear(IN, 24)), with_columns(3)
    profile = calibrate(linear, [x], progress=False)
    options = {"profile": profile, "outlier_weights": outlier_weights, "lowering": "eager"}
    expected = reference.PROFILE_WEIGHTS if outlier_weights == "original" else outlier_weights
    y, magnitude = reference.linear(x.numpy(), linear.weight.numpy(), linear.bias.numpy(), outlier_weights=expected)
    tolerance = reference.tolerance(y, magnitude, IN, torch.finfo(torch.float32).eps)
    torch._dynamo.reset()
    for run in (torch.compile(linear, backend="int8mixed", options=options), convert(linear, (x,), options=options)):
        with torch.no_grad():
            assert (abs(run(x).numpy() - y) <= tolerance).all()


@pytest.mark.inductor
@pytest.mark.parametrize("features", [(3,), ()])
def test_inductor_runs_a_profile(features):
    torch.manual_seed(1)
    linear, x = frozen(nn.Linear(IN, 24)), with_columns(*features)
    profile = calibrate(linear, [x], progress=False)
    torch._dynamo.reset()
    compiled = torch.compile(linear, backend="int8mixed", options={"profile": profile})
    expected = convert(linear, (x,), options={"profile": profile})(x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)


def test_the_mask_is_a_constant_and_a_linear_without_columns_has_none(model):
    profile = calibrate(model, [with_columns(3)], progress=False)
    assert columns(profile)["down.weight"] == ()
    counts = op_counts(convert(exported(model, with_columns(3)), options={"profile": profile}))
    assert counts["column_mask"] == 1 and counts["outlier_mm"] == 1 and counts["outlier_mask"] == 0
    assert counts["int8_mm"] == 2


def test_another_model_is_named_by_its_first_layer(model):
    profile = calibrate(model, [with_columns(3)], progress=False)
    x = activation(4)
    changed = frozen(Mlp())
    changed.load_state_dict(model.state_dict())
    changed.down.weight.data *= 2
    with pytest.raises(ProfileError, match=r"'down\.weight' differ"):
        convert(changed, (x,), options={"profile": profile})
    with pytest.raises(ProfileError, match="no such layer"):
        convert(frozen(nn.Linear(IN, 4)), (x,), options={"profile": profile})


@pytest.mark.parametrize(
    ("text", "match"),
    (
        ("not json", "not JSON"),
        ("[]", "not a profile"),
        ('{"schema": 99, "layers": []}', "schema version 99"),
        ('{"schema": 1, "layers": [{}], "threshold": 6, "batches": 1}', "not a whole profile"),
        ('{"schema": 1, "layers": [], "threshold": 6, "batches": 1, "model": "x"}', "changed by hand"),
    ),
)
def test_files_that_are_no_profile(text, match, tmp_path):
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(ProfileError, match=match):
        Profile.load(tmp_path / "profile.json")


def test_refusals(model, tmp_path):
    with pytest.raises(ConfigError, match="no batch"):
        calibrate(model, [], progress=False)
    with pytest.raises(ConfigError, match="a batch is"):
        calibrate(model, [3], progress=False)
    with pytest.raises(ConfigError, match="min_batches"):
        calibrate(model, [with_columns(3)], min_batches=0, progress=False)
    with pytest.raises(CaptureError, match="not function"):
        calibrate(lambda x: x, [with_columns(3)], progress=False)
    profile = calibrate(model, [with_columns(3)], progress=False)
    with pytest.raises(OutputError, match="no folder"):
        profile.save(tmp_path / "missing" / "profile.json")
    with pytest.raises(ConfigError, match="'column'"):
        convert(model, (with_columns(3),), options={"profile": profile, "outliers": "token"})
    with pytest.raises(ConfigError, match="profile must be"):
        convert(model, (with_columns(3),), options={"profile": 3})


def test_a_converted_program_with_a_profile_is_saved_and_loaded(model):
    x = with_columns(3)
    program = convert(exported(model, x), options={"profile": calibrate(model, [x], progress=False)})
    assert torch.equal(reloaded(program).module()(x), program.module()(x))


def test_a_range_leaves_out_the_outlier_columns(model):
    x = with_columns(3)
    x[1, 5], x[2, 6] = -4.5, 3.5
    layer = calibrate(model, [x[:2], x[2:]], progress=False).layers[0]
    assert (layer.minimum, layer.maximum) == (-4.5, 3.5) and layer.absmax == 8.0
    assert calibrate(model, [x], options={"threshold": 0.0}, progress=False).layers[0].maximum == 8.0


def test_a_range_leaves_out_what_is_not_finite():
    linear, x = frozen(nn.Linear(IN, 24)), bounded(5, IN)
    x[0, 0], x[1, 1], x[2, 2] = torch.nan, torch.inf, -4.0
    layer = calibrate(linear, [x], options={"threshold": 0.0}, progress=False).layers[0]
    finite = x[x.isfinite()]
    assert (layer.minimum, layer.maximum) == (-4.0, float(finite.max()))


@pytest.mark.parametrize("observer", ("percentile", "mse", "entropy"))
def test_an_observer_clips_the_range_whatever_the_batches(model, observer):
    x = bounded(400, IN)
    x[7, 9], x[:, 3] = 5.9, 7.0  # one far value, and an outlier column
    options = dict(observer=observer, percentile=99.0, progress=False)
    clipped = calibrate(model, [x], **options)
    assert clipped.observer == observer
    layer = clipped.layers[0]
    assert layer.outlier_columns == (3,)
    absmax = calibrate(model, [x], progress=False).layers[0]
    assert absmax.maximum == pytest.approx(5.9) and layer.maximum < (5.9 if observer == "mse" else 5.0)
    assert absmax.minimum <= layer.minimum < 0
    assert calibrate(model, list(x.split(37)), **options).layers[0] == layer
    values = x[:, [column for column in range(IN) if column != 3]]
    if observer == "percentile":
        assert layer.maximum == pytest.approx(values.abs().flatten().quantile(0.99).item(), abs=2 * 5.9 / 2048)


def test_a_profile_of_version_1_has_no_ranges(model, tmp_path):
    profile = calibrate(model, [with_columns(3)], progress=False)
    document = json.loads(profile.to_json())
    document["schema"] = 1
    del document["observer"]
    for layer in document["layers"]:
        del layer["minimum"], layer["maximum"]
    read = Profile.from_document(document)
    assert [(layer.minimum, layer.maximum) for layer in read.layers] == [(None, None)] * 2
    assert columns(read) == columns(profile) and read.observer == "absmax"


def test_ranges_that_cannot_be(model):
    document = json.loads(calibrate(model, [with_columns(3)], progress=False).to_json())
    document["layers"][0]["minimum"] = 9.0
    with pytest.raises(ProfileError, match=r"the range of 'up\.weight' is 9"):
        Profile.from_document(document)


def test_observers_refuse_what_they_cannot_do(model):
    batches = (with_columns(3) for _ in range(2))
    with pytest.raises(ConfigError, match="'mse' read the batches more than once"):
        calibrate(model, batches, observer="mse", progress=False)
    assert calibrate(model, batches, progress=False).batches == 2
    with pytest.raises(ConfigError, match="observer must be one of"):
        calibrate(model, [with_columns(3)], observer="median", progress=False)
    for percentile in (0, 101, "99", True):
        with pytest.raises(ConfigError, match="percentile must be"):
            calibrate(model, [with_columns(3)], observer="percentile", percentile=percentile, progress=False)
