"""Bad input gets one clear error of its own type, and leaves no part of a file."""

import importlib.metadata
import os
from collections import OrderedDict

import pytest
import torch
from torch import nn

from int8pass import Int8PassError, calibrate, export_onnx
from int8pass.errors import CaptureError, ConfigError, ExportError, MissingDependencyError, OutputError, ProfileError
from int8pass.export import model_file
from tests.linear_models import Mlp, activation, frozen
from tests.test_files import full_disk, ordinary_user, read_only_folder


@pytest.fixture
def model():
    torch.manual_seed(0)
    return frozen(Mlp())


def refused(error, match, tmp_path, model, *args, path=None, **keywords):
    with pytest.raises(error, match=match) as caught:
        export_onnx(model, args or (activation(4),), path or tmp_path / "model.onnx", **keywords)
    assert isinstance(caught.value, Int8PassError)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_missing_folder(tmp_path, model):
    refused(OutputError, "no folder", tmp_path, model, path=tmp_path / "missing" / "model.onnx")


def test_a_folder_in_place_of_a_file(tmp_path, model):
    refused(OutputError, "it is a folder", tmp_path, model, path=tmp_path)


def test_read_only_path(model):
    with read_only_folder() as folder, ordinary_user():
        refused(OutputError, "Permission denied", folder, model)


@pytest.mark.parametrize("largest_file", (model_file.LARGEST_FILE_BYTES, 100), ids=("one file", "two files"))
def test_full_disk(largest_file, tmp_path, model, monkeypatch):
    monkeypatch.setattr(model_file, "LARGEST_FILE_BYTES", largest_file)
    with full_disk(1000):
        refused(OutputError, "cannot write", tmp_path, model)


def test_full_disk_for_a_profile(tmp_path, model):
    profile = calibrate(model, [activation(4)], progress=False)
    with full_disk(100), pytest.raises(OutputError, match="cannot write"):
        profile.save(tmp_path / "profile.json")
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_outlives_a_failure(tmp_path, model):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(CaptureError):
        export_onnx(model, (torch.randn(4, 5),), path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model.onnx"]


def test_wrong_args(tmp_path, model):
    refused(CaptureError, "torch.export could not capture", tmp_path, model, torch.randn(4, 5))


def test_no_args(tmp_path, model):
    with pytest.raises(CaptureError, match="example inputs"):
        export_onnx(model, None, tmp_path / "model.onnx")


class Unexportable(nn.Module):
    """Its Linear is fine; an op of its own is not in ONNX."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(32, 8)

    def forward(self, x):
        return torch.linalg.eigvals(self.dense(x)[:, :4] @ self.dense(x)[:, :4].t()).real


def test_a_model_that_onnx_cannot_hold(tmp_path):
    refused(ExportError, "could not write this model", tmp_path, frozen(Unexportable()))


@pytest.mark.parametrize(
    ("keywords", "match"),
    (
        ({"target": "onnxruntime-cud"}, "did you mean 'onnxruntime-cuda'"),
        ({"outlier_columns": "static"}, "'profile' or 'runtime'"),
        ({"outlier_columns": "profile"}, "int8pass.calibrate"),
        ({"options": {"outlier_weights": "original"}}, "every float weight"),
        ({"options": {"treshold": 3.0}}, "did you mean 'threshold'"),
        ({"opset": 17}, "at least 18"),
    ),
    ids=str,
)
def test_options(keywords, match, tmp_path, model):
    refused(ConfigError, match, tmp_path, model, **keywords)


def test_a_profile_of_another_model(tmp_path, model):
    other = frozen(Mlp())
    profile = calibrate(other, [activation(4)], progress=False)
    refused(ProfileError, "'up.weight' differ", tmp_path, model, options={"profile": profile})


@pytest.mark.parametrize(
    "name, features, match", (("other", 32, "no such layer"), ("up", 64, r"has it with shape \[8, 64\]")), ids=str
)
def test_a_profile_of_another_architecture(name, features, match, tmp_path, model):
    other = frozen(nn.Sequential(OrderedDict({name: nn.Linear(features, 8)})))
    profile = calibrate(other, [activation(4, columns=features)], progress=False)
    refused(ProfileError, match, tmp_path, model, options={"profile": profile})


def test_a_profile_that_is_not_there(tmp_path, model):
    refused(ProfileError, "no profile to read", tmp_path, model, options={"profile": str(tmp_path / "p.json")})


def test_both_packages_of_onnxruntime(tmp_path, model, monkeypatch):
    """A second package's metadata, as pip writes it, found on the path."""
    installed = tmp_path / "site"
    for name in ("onnxruntime_gpu", "onnxruntime"):
        folder = installed / f"{name}-1.22.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.22.0\n")
    monkeypatch.syspath_prepend(str(installed))
    assert importlib.metadata.version("onnxruntime-gpu") == "1.22.0"
    out = tmp_path / "out"
    out.mkdir()
    refused(MissingDependencyError, "both installed", out, model)


def test_columns_in_each_call_for_tensorrt(tmp_path, model):
    refused(ConfigError, "cannot find outlier columns in each call", tmp_path, model, target="tensorrt")


def test_a_file_that_breaks_a_rule_of_its_target(tmp_path, model):
    class WithDeterminant(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            y = self.model(x)
            return torch.linalg.det(y @ y.transpose(-1, -2))

    given = {"target": "tensorrt", "options": {"threshold": 0.0}}
    refused(ExportError, "not written, as it would break rules(.|\n)*Det", tmp_path, WithDeterminant(), **given)
