"""`int8pass calibrate` and `int8pass export onnx`, from the entry point."""

import re

import pytest
import torch
from torch import nn

from int8pass import Profile, calibrate
from int8pass.export.shapes import dynamic_example
from int8pass.models import LoadedModel
from tests.export.files import OnnxModel
from tests.linear_models import Mlp, activation, frozen, relative_error

MODEL = "tests.export.test_commands:make"


def make():
    torch.manual_seed(0)
    return Mlp(), (activation(1),), {}


def make_failing():
    return Mlp(), (torch.randn(3, 5),), {}


def batches():
    torch.manual_seed(1)
    return [activation(4), (activation(2),), {"x": activation(3)}]


def test_calibrate_and_export(run, tmp_path):
    profile, file = tmp_path / "profile.json", tmp_path / "model.onnx"
    code, out, _ = run("calibrate", MODEL, "-o", profile, "--batches", "tests.export.test_commands:batches")
    assert code == 0 and "of 2 weights have outlier columns" in out
    assert Profile.load(profile).batches == 3
    code, out, error = run("export", "onnx", MODEL, "-o", file, "--profile", profile)
    assert code == 0 and "model.onnx: 0.0 MB" in out, error
    model = make()[0]
    for rows in (1, 5):  # the example's one row is no fixed size
        x = activation(rows)
        assert relative_error(OnnxModel(file)(x)[0], model(x)) < 0.02


def test_rounded_weights_are_written_and_exported(run, tmp_path):
    profile, file = tmp_path / "profile.json", tmp_path / "model.onnx"
    code, out, error = run("calibrate", MODEL, "-o", profile, "--rounding", "gptq", "--migration")
    assert code == 0 and "profile.safetensors: 2 int8 weights" in out, error
    code, _, error = run("export", "onnx", MODEL, "-o", file, "--profile", profile)
    assert code == 0, error
    model, (x,), _ = make()
    assert relative_error(OnnxModel(file)(x)[0], model(x)) < 0.03


def test_one_example_where_no_batches_are_named(run, tmp_path):
    code, _, error = run("calibrate", MODEL, "-o", tmp_path / "profile.json")
    assert code == 0 and "calibrating" in error
    assert Profile.load(tmp_path / "profile.json").batches == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (("export", "onnx", MODEL, "-o", "missing/model.onnx"), "no folder"),
        (("export", "onnx", MODEL, "-o", "model.onnx", "--target", "tensort"), "did you mean 'tensorrt'"),
        (("export", "onnx", MODEL, "-o", "model.onnx", "--profile", "none.json"), "no profile to read"),
        (("export", "onnx", MODEL, "-o", "model.onnx", "--outlier-columns", "profile"), "int8pass.calibrate"),
        (("export", "onnx", MODEL.replace("make", "make_failing"), "-o", "model.onnx"), "could not capture"),
        (("calibrate", MODEL, "-o", "missing/profile.json"), "no folder"),
        (("calibrate", MODEL, "-o", "profile.json", "--batches", "tests"), "MODULE:FUNCTION"),
        (("calibrate", MODEL, "-o", "profile.json", "--observer", "median"), "observer must be one of"),
    ),
    ids=str,
)
def test_errors(arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*arguments)
    assert code == 2 and message in error
    assert "Traceback" not in re.sub(r"(?m)^[EW]\d{4} .*$", "", error)  # but for torch's own log, which has one in 2.15
    assert list(tmp_path.iterdir()) == []


def test_a_profile_of_another_model_is_one_error(run, tmp_path):
    profile, file = tmp_path / "profile.json", tmp_path / "model.onnx"
    calibrate(frozen(Mlp()), [activation(2)], progress=False).save(profile)
    code, _, error = run("export", "onnx", MODEL, "-o", file, "--profile", profile)
    assert code == 2 and "the profile is of another model" in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == [profile]


def test_help_says_what_has_not_run(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run("export", "onnx", "--help")
    assert "Not yet run on the real thing" in out and "tensorrt" in out


class Mixed(nn.Module):
    def forward(self, x, scale, **tokens):
        return x * scale + tokens["ids"]


def test_dynamic_examples_name_every_input():
    loaded = LoadedModel(Mixed(), (torch.ones(1, 3), 2.0), {"ids": torch.ones(1, 3)})
    example, shapes = dynamic_example(loaded)
    auto = torch.export.Dim.AUTO
    assert shapes == {"x": {0: auto, 1: auto}, "scale": None, "tokens": {"ids": {0: auto, 1: auto}}}
    assert example.args[0].shape == example.kwargs["ids"].shape == (2, 3)
