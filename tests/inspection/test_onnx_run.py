"""Exported files that are run: errors, activations and times of their Linears, and the layer that goes wrong."""

import copy
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from int8pass import calibrate, export_onnx
from int8pass.errors import MissingDependencyError, OnnxFileError
from int8pass.export.decoder import with_past
from int8pass.export.targets import TARGETS
from int8pass.inspection.onnx_debug import diagnose_file
from int8pass.inspection.onnx_file import read_file
from int8pass.inspection.onnx_report import explain_run, opened
from int8pass.models import LoadedModel
from tests import reference
from tests.linear_models import IN, Mlp, activation, frozen

MODEL = "tests.export.test_commands:make"


class Attention(nn.Module):
    """Three Linears that share their input, and one after them; the last bias is a residual's neighbour."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(IN, IN) for _ in range(4))

    def forward(self, x):
        scores = torch.softmax(self.query(x) @ self.key(x).transpose(-1, -2), -1)
        return x + self.out(scores @ self.value(x))


def loaded(model, *args, **kwargs):
    return LoadedModel(model, args, kwargs)


@pytest.fixture
def seeded():
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.fixture
def mlp(seeded):
    return frozen(Mlp())


def snr_db(expected, found):
    difference = expected - found
    return 10 * math.log10((expected**2).sum() / (difference**2).sum())


# --- errors


@pytest.mark.parametrize("outliers", reference.OUTLIERS)
@pytest.mark.parametrize("target", TARGETS)
def test_errors_and_activations_are_those_of_the_reference(mlp, tmp_path, outliers, target):
    x = activation(5)
    options = {"outliers": outliers} if target != "tensorrt" else {"profile": calibrate(mlp, [x], progress=False)}
    path = export_onnx(mlp, (x,), tmp_path / "model.onnx", options=options, target=target)
    report = explain_run(path, loaded(mlp, x), "a model")
    assert report.inputs == "the inputs of a model" and "run in ONNX Runtime on the inputs of a model" in str(report)
    given = x.double().numpy()
    how = {"outliers": "column" if target == "tensorrt" else outliers}
    how["outlier_weights"] = "original" if target == "tensorrt" else "dequantized"
    for row, layer, details in zip(report.rows, (mlp.up, mlp.down), report.details, strict=True):
        weight, bias = layer.weight.numpy(), layer.bias.numpy()
        exact = given @ weight.astype(np.float64).T + bias
        y, _ = reference.linear(given.astype(np.float32), weight, bias, threshold=6.0, **how)
        assert row.snr_db == pytest.approx(snr_db(exact, y), abs=0.2)
        assert sum(details.activations.counts) + details.outlier_values == given.size
        given = np.maximum(exact, 0)
    codes, _, mask = reference.quantize_activation(x.numpy(), 6.0, how["outliers"])
    inside = codes[~(mask if mask.ndim == 2 else np.broadcast_to(mask, codes.shape))]
    assert report.details[0].activations.counts == tuple(int((inside == level).sum()) for level in range(-127, 128))
    assert report.rows[0].outlier_columns == (3, 7) and report.details[0].peaks[0][1] == pytest.approx(x.abs().max())


def test_columns_that_a_profile_misses(mlp, tmp_path):
    x = activation(5)
    options = {"profile": calibrate(mlp, [x], progress=False)}
    path = export_onnx(mlp, (x,), tmp_path / "model.onnx", options=options)
    x[:, 11] = 40.0
    row = explain_run(path, loaded(mlp, x)).rows[0]
    assert row.outlier_columns == (3, 7) and row.missed_columns == (11,)
    found = diagnose_file(path, loaded(mlp, x))
    assert "the profile misses outlier columns of it, 11" in found.layers[0].unusual


def test_linears_that_share_their_input_and_16_bits(seeded, tmp_path):
    model, x = frozen(Attention()).half(), activation(2, 6).half()
    path = export_onnx(model, (x,), tmp_path / "model.onnx")
    rows = [row for row in explain_run(path, loaded(model, x), timings=True).rows if row.rewritten]
    assert [row.module for row in rows] == ["query", "key", "value", "out"]
    assert all(row.snr_db > 30 and row.outlier_columns[:2] == (3, 7) for row in rows[:3])
    with opened(read_file(path)) as run:
        assert {linear.x for linear in run.linears[:3]} == {"x"} and len({linear.y for linear in run.linears}) == 4
    quantize = {row.module: row.timing.quantize for row in rows}
    assert 0.0 < quantize["query"] == quantize["key"] == quantize["value"]  # each a third of what they share


# --- inputs and times


def test_times_are_sums_of_kernels(run, mlp, tmp_path):
    path = export_onnx(mlp, (activation(5),), tmp_path / "model.onnx")
    report = explain_run(path, None, timings=True)
    assert report.inputs.startswith("made-up inputs") and report.file == "model.onnx"
    for row in report.rows:
        parts = (row.timing.quantize, row.timing.gemm, row.timing.dequantize, row.timing.outliers)
        assert min(parts) > 0 and sum(parts) == pytest.approx(row.timing.int8) and row.timing.float > 0
        assert row.snr_db is None and row.outlier_columns == ()
    code, out, _ = run("report", path, "--timings", "--html", tmp_path / "page.html")
    assert code == 0 and "time of the Linears, in ONNX Runtime" in out and "us float" in out


def test_nothing_runs_unless_asked(run, mlp, tmp_path):
    path = export_onnx(mlp, (activation(5),), tmp_path / "model.onnx")
    code, out, _ = run("report", path)
    assert code == 0 and "run in ONNX Runtime" not in out


def test_decoder_is_run_with_its_past(seeded, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)
    gpt2 = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    module, example, shapes = with_past(gpt2)
    path = export_onnx(module, None, tmp_path / "gpt2.onnx", kwargs=example, dynamic_shapes=shapes)
    model = loaded(gpt2, input_ids=torch.arange(8)[None])
    rows = [row for row in explain_run(path, model, timings=True).rows if row.rewritten]
    assert len(rows) == 4 and all(row.snr_db > 30 and row.timing.float > 0 for row in rows)
    found = diagnose_file(path, model)
    assert len(found.layers) == 4 and found.compiled_db == pytest.approx(found.total_db, abs=1)
    assert not found.leaves_when_compiled and all(layer.compiled_db > 20 for layer in found.layers)


# --- debug


def test_layer_that_is_not_the_models_is_named(mlp, tmp_path):
    x = activation(5)
    path = export_onnx(mlp, (x,), tmp_path / "model.onnx")
    right = diagnose_file(path, loaded(mlp, x))
    assert right.total_db > 30 and right.compiled_db == pytest.approx(right.total_db, abs=0.5)
    assert "file dB" in str(right) and "the whole file in ONNX Runtime" in str(right) and right.file == "model.onnx"
    assert "outlier_weights" not in [repair.option for repair in right.repairs]
    mlp.down.weight.neg_()
    wrong = diagnose_file(path, loaded(mlp, x))
    assert wrong.suspect.module == "down" and wrong.suspect.own_db < 0 < right.layers[1].own_db


def test_file_that_computes_something_else_between_its_linears(mlp, tmp_path):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = mlp.up, mlp.down

        def forward(self, x):
            return self.down(torch.sigmoid(self.up(x)))

    x = activation(5)
    path = export_onnx(frozen(Other()), (x,), tmp_path / "model.onnx")
    found = diagnose_file(path, loaded(mlp, x))
    assert found.leaves_when_compiled and found.leaves_at.module == "down"
    assert "the whole file differs from its Linears in the float model" in str(found)


def test_commands(run, tmp_path):
    code, _, error = run("export", "onnx", MODEL, "-o", tmp_path / "model.onnx")
    assert code == 0, error
    code, out, _ = run("report", tmp_path / "model.onnx", "--against", MODEL)
    assert code == 0 and f"run in ONNX Runtime on the inputs of {MODEL}" in out
    code, out, _ = run("debug", tmp_path / "model.onnx", "--against", MODEL, "--want", "60")
    assert code == 0 and "would repair it" in out and "for 60 dB" in out


# --- what cannot be run


def test_another_model_is_refused(mlp, tmp_path):
    x = activation(5)
    path = export_onnx(mlp, (x,), tmp_path / "model.onnx")
    other = frozen(nn.Sequential(nn.Linear(IN, 8)))
    with pytest.raises(OnnxFileError, match=r"has no int8 form of '0\.weight': it was made from another model"):
        explain_run(path, loaded(other, x))
    with pytest.raises(OnnxFileError, match=r"takes 1 inputs \(x\) and the model's example has 2"):
        explain_run(path, loaded(mlp, x, x))
    with pytest.raises(OnnxFileError, match="ONNX Runtime could not run"):
        explain_run(path, loaded(mlp, activation(7)))


def test_file_without_the_ops_of_its_nodes_is_refused(mlp, tmp_path):
    import onnx

    path = export_onnx(mlp, (activation(5),), tmp_path / "model.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(OnnxFileError, match="does not say which nodes compute 'up': export it again"):
        explain_run(Path(path), None, timings=True)


# --- what is refused


def test_a_file_without_onnxruntime(mlp, tmp_path, monkeypatch):
    path = export_onnx(mlp, (activation(5),), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="needs onnxruntime"):
        explain_run(path, None, timings=True)


def test_bfloat16_is_not_run(mlp, tmp_path):
    x = activation(5)
    halves = tmp_path / "bfloat16.onnx"
    export_onnx(copy.deepcopy(mlp).bfloat16(), (x.bfloat16(),), halves)
    for against in (None, loaded(mlp, x)):
        with pytest.raises(OnnxFileError, match="computes in bfloat16"):
            explain_run(halves, against, timings=True)
    path = export_onnx(mlp, (x,), tmp_path / "model.onnx")
    with pytest.raises(OnnxFileError, match="the model computes in bfloat16"):
        explain_run(path, loaded(copy.deepcopy(mlp).bfloat16(), x.bfloat16()))


class Twice(nn.Module):
    """Two Linears; the smaller model runs one of them."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(IN, IN) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_model_with_fewer_of_the_linears(seeded, tmp_path):
    x, deep, shallow = activation(5), frozen(Twice(2)), frozen(Twice(1))
    shallow.layers[0].load_state_dict(deep.layers[0].state_dict())
    path = export_onnx(deep, (x,), tmp_path / "model.onnx")
    for ask in (explain_run, diagnose_file):
        with pytest.raises(OnnxFileError, match=r"runs 'layers.1' 1 times more than the model does"):
            ask(path, loaded(shallow, x))


def test_repairs_are_what_a_file_can_be_exported_with(mlp, tmp_path):
    x = activation(5)
    options = {"profile": calibrate(mlp, [x], progress=False)}
    offered = {}
    for target in TARGETS:
        path = export_onnx(mlp, (x,), tmp_path / f"{target}.onnx", options=options, target=target)
        offered[target] = {repair.option for repair in diagnose_file(path, loaded(mlp, x), whole=False).repairs}
    assert "profile" not in set.union(*offered.values())
    assert not offered["tensorrt"] & {"threshold", "outliers", "scheme"}
