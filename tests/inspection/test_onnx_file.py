"""Reports, dumps and differences of ONNX files that int8pass exported, and models dumped as ONNX."""

import json
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from int8pass import calibrate, explain, export_onnx
from int8pass.errors import OnnxFileError, ReportFileError
from int8pass.export.targets import TARGETS
from int8pass.inspection.diff import compare
from int8pass.inspection.onnx_file import explain_file
from int8pass.inspection.page import page_data
from tests import reference
from tests.export.files import OnnxModel
from tests.linear_models import HIDDEN, IN, OUT, Mlp, activation, frozen, relative_error

MODEL = "tests.export.test_commands:make"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return frozen(Mlp())


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """By name, a file of the model with a profile, with columns found in each call, and without an outlier branch."""
    torch.manual_seed(0)
    folder, x = tmp_path_factory.mktemp("files"), activation(5)
    options = {
        "profile": {"profile": calibrate(model, [x], progress=False)},
        "call": {"skip_modules": ["down"]},
        "none": {"threshold": 0.0},
    }
    return {name: export_onnx(model, (x,), folder / f"{name}.onnx", options=each) for name, each in options.items()}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A valid ONNX file that int8pass did not export."""
    path = tmp_path_factory.mktemp("foreign") / "foreign.onnx"
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


# --- what a file tells


def test_rows_are_those_of_the_model(model, files):
    torch.manual_seed(0)
    x = activation(5)
    torch._dynamo.reset()
    ran = explain(model, (x,), options={"skip_modules": ["down"]})
    read = explain_file(files["call"])
    same = ("module", "weight_shape", "dtype", "rewritten", "reason", "bytes_before", "weight", "view")
    for row, expected in zip(read.rows, ran.rows, strict=True):
        assert [getattr(row, name) for name in same] == [getattr(expected, name) for name in same]
        assert row.snr_db is None and row.timing is None
    assert (read.threshold, read.outliers, read.file) == (6.0, "column", "call.onnx")


def test_outlier_columns_are_the_profiles_unknown_or_none(files):
    assert explain_file(files["profile"]).rows[0].outlier_columns == (3, 7)
    assert [row.outlier_columns for row in explain_file(files["call"]).rows] == [None, ()]
    assert [row.outlier_columns for row in explain_file(files["none"]).rows] == [(), ()]


@pytest.mark.parametrize("name", ("profile", "call", "none"))
def test_bytes_are_those_in_the_file(files, name):
    tensors = {each.name: numpy_helper.to_array(each) for each in onnx.load(files[name]).graph.initializer}
    for row in explain_file(files[name]).rows:
        if row.rewritten:
            held = sum(tensors[f"{row.weight}_{part}"].nbytes for part in ("inputs_first", "scale"))
            columns = len(row.outlier_columns or ())
            kept = [each.nbytes for each in tensors.values() if each.dtype == np.float16 and len(each) == columns]
            assert row.bytes_after == held + sum(kept) and len(kept) == bool(columns)


def test_weights_on_the_grid_are_those_of_the_reference(model, files):
    report = explain_file(files["none"])
    for row, details in zip(report.rows, report.details, strict=True):
        codes, scale = reference.quantize_weight(model.get_submodule(row.module).weight.numpy())
        assert details.weights.counts == tuple(int((codes == level).sum()) for level in range(-127, 128))
        assert details.weights.scales[2] == pytest.approx(scale.max()) and details.activations is None


def test_text_of_a_small_file(files):
    ((stage,),) = explain_file(files["none"]).stages
    lines = stage.text.splitlines()
    assert lines[0] == f"%x : f32[5, {IN}] = input"
    assert f"%up.weight_inputs_first : i8[{IN}, {HIDDEN}] = weight 'up.weight_inputs_first'" in lines
    assert any(re.search(rf" : f32\[5, {IN}\] = Abs\(%x\)$", line) for line in lines)
    assert sum("= DequantizeLinear(%up.weight_inputs_first, %up.weight_scale, axis=1)" in line for line in lines) == 1
    assert sum(" = QuantizeLinear(" in line and ", 1, 128, axis=1)" in line for line in lines) == 2
    assert lines[-1].startswith("return (%")
    assert stage.text == explain_file(files["none"]).stages[0][0].text


@pytest.mark.parametrize("target", TARGETS)
def test_nodes_carry_their_modules(model, tmp_path, target):
    torch.manual_seed(0)
    x = activation(5)
    options = {"profile": calibrate(model, [x], progress=False)}
    path = export_onnx(model, (x,), tmp_path / "model.onnx", options=options, target=target)
    names = [node.name for node in onnx.load(path).graph.node]
    assert len(set(names)) == len(names) and {"up/QuantizeLinear", "down/QuantizeLinear", "Relu"} <= set(names)
    ((stage,),) = explain_file(path).stages
    assert {node.module for node in stage.nodes if node.kind == "call"} == {"up", "down", ""}
    part = page_data(explain_file(path), "")["rows"][1]["after"]
    texts = {node.name: node.text for node in stage.nodes}
    assert sum(" = QuantizeLinear(" in texts[name] for name in part["own"]) == 1
    assert "%" not in "".join(part["beside"]) and any("Relu(" in texts[name] for name in part["beside"])


# --- files of another origin


def test_other_files_are_refused(foreign, files, tmp_path):
    with pytest.raises(OnnxFileError, match="was not exported by int8pass"):
        explain_file(foreign)
    with pytest.raises(OnnxFileError, match="there is no file"):
        explain_file(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no ONNX")
    with pytest.raises(OnnxFileError, match="not an ONNX file"):
        explain_file(tmp_path / "text.onnx")
    old = onnx.load(files["none"])
    next(entry for entry in old.metadata_props if entry.key == "int8pass.schema").value = "1"
    onnx.save(old, tmp_path / "old.onnx")
    with pytest.raises(OnnxFileError, match="another version of int8pass"):
        explain_file(tmp_path / "old.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (("report", "FOREIGN"), "was not exported by int8pass"),
        (("dump", "FOREIGN"), "was not exported by int8pass"),
        (("diff", "FOREIGN", "FOREIGN"), "was not exported by int8pass"),
        (("debug", "FILE"), "name the model that it was made from (--against MODEL)"),
        (("debug", "FILE", "--against", MODEL, "--threshold", "3"), "options were chosen when it was exported"),
        (("debug", MODEL, "--against", MODEL), "--against compares an exported ONNX file with its model"),
        (("report", MODEL, "--against", MODEL), "--against compares an exported ONNX file with its model"),
        (("report", "FILE", "--threshold", "3"), "options were chosen when it was exported"),
        (("report", "FILE", "--schemes"), "name the model"),
        (("dump", "FILE", "--stage", "captured"), "the stages are: file"),
        (("dump", "FILE", "--module", "nowhere"), "no module matches 'nowhere'"),
        (("diff", "FILE", "report.json"), "two of a kind"),
    ),
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_errors_are_one_message(run, foreign, files, arguments, message):
    places = {"FOREIGN": foreign, "FILE": files["none"]}
    code, _, error = run(*(places.get(each, each) for each in arguments))
    assert code == 2 and message in error and "Traceback" not in error


# --- the commands


def test_report_of_a_file(run, files, tmp_path):
    code, out, _ = run("report", files["profile"], "--html", tmp_path / "page.html", "--json", tmp_path / "report.json")
    assert code == 0 and "2 of 2 Linears rewritten to int8 (threshold 6, outliers by profile)" in out
    assert "MB in the file" in out and "at the peak" not in out
    assert json.loads((tmp_path / "report.json").read_text())["file"] == "profile.onnx"
    assert "<title>int8pass report of profile.onnx</title>" in (tmp_path / "page.html").read_text()
    assert "in each call" in run("report", files["call"])[1]


def test_dump_of_a_file(run, files, tmp_path):
    text = run("dump", files["none"])[1]
    assert " = QuantizeLinear(" in text and text == run("dump", files["none"], "--stage", "file")[1]
    part = run("dump", files["none"], "--module", "up")[1]
    assert part.count(" = QuantizeLinear(") == 1 and "(left out)" not in part.splitlines()[-1]
    assert run("dump", files["none"], "--format", "svg")[1].startswith("<svg")
    assert run("dump", files["none"], "--format", "dot")[1].startswith("digraph")
    assert json.loads(run("dump", files["none"], "--format", "json")[1])["stage"] == "file"
    code, _, _ = run("dump", files["none"], "--out", tmp_path / "dump")
    assert code == 0 and (tmp_path / "dump" / "graph-000" / "00-file.txt").read_text() == text


def test_differences_of_files(run, files):
    changes = [str(change) for change in compare(files["profile"], files["call"])]
    assert any(change.startswith("up: outliers [3, 7] -> in each call") for change in changes)
    assert any(change.startswith("down: decision int8 -> skipped: named in skip_modules") for change in changes)
    assert any(change.startswith("file: graph -") for change in changes)
    assert compare(files["none"], files["none"]) == []
    code, out, _ = run("diff", files["profile"], files["none"], "--text", "--exit-code")
    assert code == 1 and "options: threshold 6.0 -> 0.0" in out and "--- a/file" in out
    with pytest.raises(ReportFileError, match="two of a kind"):
        compare(files["none"], files["none"].parent)


def test_dump_of_a_model_as_onnx(run, tmp_path):
    code, _, error = run("dump", MODEL, "--format", "onnx", "--out", tmp_path)
    assert code == 0, error
    model, (x,), _ = __import__("tests.export.test_commands", fromlist=["make"]).make()
    assert relative_error(OnnxModel(tmp_path / "model.onnx")(x)[0], model(x)) < 0.02
    stages = sorted((tmp_path / "graph-000").glob("*.onnx"))
    assert [stage.stem.partition("-")[2] for stage in stages][::6] == ["captured", "share_activation_quantize"]
    for path in stages:
        onnx.checker.check_model(onnx.load(path))
    last = onnx.load(stages[-1]).graph
    node = next(node for node in last.node if node.op_type == "int8_mm")
    assert node.domain == "int8pass" and node.name.startswith("up/") and "= int8pass.int8_mm(" in node.doc_string
    assert [entry.value for entry in node.metadata_props] == ["up"] and node.input[1] == "up.weight (int8 codes)"
    assert {"x", "up.weight", "up.bias", "up.weight (int8 scale)"} <= {
        each.name.removeprefix("l_").strip("_") for each in last.input
    }
    (result,) = last.output
    assert [size.dim_value for size in result.type.tensor_type.shape.dim] == [1, OUT]
    printed = tmp_path / "printed.onnx"
    code, _, error = run("dump", MODEL, "--format", "onnx", "--target", "tensorrt", "--out", tmp_path / "tensorrt")
    assert code == 2 and "cannot find outlier columns in each call" in error and not printed.exists()
    code, _, error = run("dump", MODEL, "--format", "onnx", "--target", "tensort", "--stage", "captured")
    assert code == 2 and "did you mean 'tensorrt'" in error


@pytest.mark.parametrize(
    ("options", "message"),
    (
        (("--break-even", "measured"), "break_even='measured' times Linears"),
        (("--scheme", "zeropoint"), "which scheme 'zeropoint' has"),
        (("--activations", "static", "--profile", "PROFILE"), "a file finds the ranges of activations in each call"),
    ),
    ids=lambda each: each[0],
)
def test_what_no_file_holds_is_refused_before_anything_is_written(run, model, tmp_path, options, message):
    torch.manual_seed(0)
    profile = tmp_path / "profile.json"
    calibrate(model, [activation(5)], progress=False).save(profile)
    arguments = (profile if each == "PROFILE" else each for each in options)
    code, _, error = run("dump", MODEL, "--format", "onnx", "--out", tmp_path / "dump", *arguments)
    assert code == 2 and message in error and not (tmp_path / "dump").exists()


def test_dumped_onnx_is_the_same_in_two_runs(run, tmp_path):
    for name in ("a", "b"):
        torch._dynamo.reset()
        run("dump", MODEL, "--format", "onnx", "--out", tmp_path / name)
    first, second = (sorted((tmp_path / name).rglob("*.onnx")) for name in ("a", "b"))
    assert len(first) == 8 and [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_gpt2_shaped_file(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    from int8pass.export.decoder import with_past

    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64)
    gpt2 = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    module, example, shapes = with_past(gpt2)
    path = export_onnx(module, None, tmp_path / "gpt2.onnx", kwargs=example, dynamic_shapes=shapes)
    report = explain_file(path)
    assert [row.module for row in report.rows if row.rewritten][:2] == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.attn.c_proj",
    ]
    assert report.totals.rewritten == 8
    grids = [details.weights for row, details in zip(report.rows, report.details, strict=True) if row.rewritten]
    assert all(grids) and [sum(grid.counts) for grid in grids[:2]] == [32 * 96, 32 * 32]
    data = page_data(report, "gpt2")
    part = next(row for row in data["rows"] if row["module"] == "transformer.h.1.mlp.c_fc")["after"]
    assert len(part["own"]) > 10 and part["beside"]
