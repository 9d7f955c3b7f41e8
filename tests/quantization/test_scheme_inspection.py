"""What reads a rewritten graph, under every scheme: report, timings, debug, diff, the command line and files."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from int8pass import explain, export_onnx, quantize_
from int8pass.errors import ConfigError, ExportError
from int8pass.inspection.debug import diagnose
from int8pass.inspection.diff import compare
from int8pass.inspection.memory import weight_memory
from int8pass.quantization import SCHEMES
from int8pass.weight_cache import WEIGHTS
from int8pass.weight_expression import WeightExpression
from tests import reference_schemes
from tests.export.files import OnnxModel, exported
from tests.linear_models import IN, OUT, Mlp, activation, frozen, relative_error

MODEL = "tests.test_cli:make"
schemes = pytest.mark.parametrize("name", SCHEMES)


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts with the same seed and without compiled code."""
    torch.manual_seed(0)
    torch._dynamo.reset()


@schemes
def test_ratio_and_levels_are_those_of_the_reference(name):
    layer, x, scheme = frozen(nn.Linear(IN, OUT)), activation(16), SCHEMES[name]
    report = explain(layer, (x,), options={"scheme": name})
    weight, bias, options = layer.weight.numpy(), layer.bias.numpy(), {"threshold": scheme.default_threshold}
    y, _ = reference_schemes.linear(x.numpy(), weight, bias, scheme, **options)
    exact = x.double().numpy() @ weight.astype(np.float64).T + bias
    (row,), (details,) = report.rows, report.details
    assert row.snr_db == pytest.approx(10 * math.log10((exact**2).sum() / ((exact - y) ** 2).sum()), abs=0.01)
    assert (row.outlier_columns != ()) == scheme.decomposition
    mask = np.zeros(IN, bool)
    mask[list(row.outlier_columns)] = True
    form = scheme.activations
    codes, _, _ = reference_schemes.quantize_activation(x.numpy(), mask, form.granularity, form.symmetric)
    counts = np.bincount(codes[:, ~mask].reshape(-1) + 127, minlength=255)
    assert details.activations.counts == tuple(counts)


@schemes
def test_report_names_its_scheme(name):
    report = explain(frozen(Mlp()), (activation(4),), options={"scheme": name})
    assert report.scheme == name and json.loads(report.to_json())["scheme"] == name
    assert (f"(scheme {name}, threshold" in str(report)) == (name != "llm.int8")


@schemes
@pytest.mark.parametrize("lowering", ("eager", "inductor"))
def test_bytes_are_those_held(name, lowering):
    scheme = SCHEMES[name]
    layer = frozen(nn.Linear(IN, OUT, bias=False))
    memory = weight_memory(layer.weight, WeightExpression("w"), kept_float=False, fused=False, scheme=scheme)
    held = WEIGHTS.get(layer.weight, "", lambda weight: weight, scheme.weights).quantized
    if not scheme.activations.symmetric:
        _ = held.code_sums
    assert memory.int8 == memory.after == held.nbytes
    (row,) = explain(layer, (activation(4),), options={"scheme": name, "lowering": lowering}).rows
    packed = scheme.has_default_form and lowering == "inductor"
    assert row.bytes_int8 == (held.packed.nbytes + 8 * OUT if packed else memory.int8)


@schemes
def test_timings(name):
    options = {"scheme": name, "lowering": "eager"}
    (row,) = explain(frozen(nn.Linear(IN, OUT)), (activation(64),), options=options, timings=True).rows
    parts = dataclasses.asdict(row.timing)
    assert all(parts[part] > 0 for part in ("float", "int8", "quantize", "gemm", "dequantize"))
    assert (parts["outliers"] > 0) == SCHEMES[name].decomposition


@schemes
def test_debug_measures_a_scheme_and_proposes_one_with_outlier_branch(name):
    model, x = frozen(Mlp()), activation(5)
    found = diagnose(model, (x,), options={"scheme": name})
    compiled = torch.compile(model, backend="int8mixed", options={"scheme": name, "lowering": "eager"})
    assert found.total_db == pytest.approx(-20 * math.log10(relative_error(compiled(x), model(x))), abs=0.05)
    proposed = {repair.option: repair for repair in found.repairs}
    assert ("scheme" in proposed) == (not SCHEMES[name].decomposition)
    if "scheme" in proposed:
        better = "llm.int8" if SCHEMES[name].activations.symmetric else "llm.int8-zeropoint"
        assert proposed["scheme"].value == better
        repaired = diagnose(model, (x,), options={"scheme": better}).total_db
        assert proposed["scheme"].total_db == pytest.approx(repaired, abs=0.01) and repaired > found.total_db


def test_diff_names_the_scheme(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, name in zip(paths, ("llm.int8", "absmax"), strict=True):
        path.write_text(explain(frozen(Mlp()), (activation(4),), options={"scheme": name}).to_json())
    changes = compare(*paths)
    assert str(changes[0]) == "options: scheme llm.int8 -> absmax"
    old = json.loads(paths[0].read_text())
    del old["scheme"]  # a report of before there were others
    paths[1].write_text(json.dumps(old))
    assert "scheme" not in [change.what for change in compare(*paths)]


@pytest.mark.parametrize("command", ("report", "dump", "debug"))
def test_commands_take_a_scheme(run, command):
    options = ("--stage", "share_activation_quantize") if command == "dump" else ()
    code, out, err = run(command, MODEL, "--scheme", "zeropoint", *options)
    assert (code, err) == (0, "")
    assert {"report": "scheme zeropoint, threshold 0", "dump": "int8pass.asymmetric_scale", "debug": "scheme="}[
        command
    ] in out
    code, _, err = run(command, MODEL, "--scheme", "zero-point", *options)
    assert code == 2 and "did you mean 'zeropoint'" in err


def test_command_refuses_a_threshold_without_outlier_branch(run):
    code, _, err = run("report", MODEL, "--scheme", "absmax", "--threshold", "6")
    assert code == 2 and "scheme 'absmax' has no outlier branch, which threshold would need" in err


# --- files


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.has_default_form])
def test_files_take_the_schemes_of_the_default_form(name, tmp_path):
    model, x = frozen(Mlp()), activation(5)
    path = exported(tmp_path / "model.onnx", model, x, options={"scheme": name})
    options = {"scheme": name, "lowering": "eager"}
    if SCHEMES[name].decomposition:
        options["outlier_weights"] = "dequantized"
    wanted = torch.compile(model, backend="int8mixed", options=options)(x)
    assert relative_error(OnnxModel(path)(x)[0], wanted) < 1e-3


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if not scheme.has_default_form])
def test_files_refuse_the_others(name, tmp_path, run):
    message = "the schemes of files are 'absmax-rowwise', 'absmax-vectorwise', 'llm.int8'"
    with pytest.raises(ConfigError, match=message):
        export_onnx(frozen(Mlp()), (activation(4),), tmp_path / "model.onnx", options={"scheme": name})
    model = quantize_(frozen(Mlp()), options={"scheme": name})
    with pytest.raises(ExportError):
        export_onnx(model, (activation(4),), tmp_path / "model.onnx")
    code, _, err = run("export", "onnx", MODEL, "-o", tmp_path / "model.onnx", "--scheme", name)
    assert code == 2 and message in err
    assert list(tmp_path.iterdir()) == []
