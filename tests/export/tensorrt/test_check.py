"""`check` on files: errors, external data, functions, real operators; and the list of operators that it bundles."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
from onnx.reference import ReferenceEvaluator

from int8pass.errors import ConfigError, Int8PassError, MissingDependencyError, OnnxFileError
from int8pass.export.tensorrt import check
from int8pass.export.tensorrt.operators import operator_list
from int8pass.export.tensorrt.restrictions import RESTRICTIONS
from tests import reference
from tests.export.tensorrt.onnx_text import OUTLIERS, PLAIN, changed, write
from tests.export.tensorrt.violations import VIOLATIONS


@pytest.fixture
def path(tmp_path):
    return write(PLAIN, tmp_path / "model.onnx")


# --- the valid model computes what it should


@pytest.mark.parametrize("text, threshold", ((PLAIN, 0.0), (OUTLIERS, 6.0)), ids=("plain", "outliers"))
def test_the_valid_model_is_llm_int8(text, threshold, tmp_path):
    x = np.random.default_rng(0).uniform(-4, 4, (5, 4)).astype(np.float32)
    x[:, 2] *= 1 if threshold == 0 else 10
    x[1, 2] = 1.0 if threshold == 0 else 25.0
    x[3] = 0
    session = ReferenceEvaluator(onnx.load(write(text, tmp_path / "model.onnx")))
    weight = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "model.onnx").graph.initializer
    }
    dense = (weight["weight"] * weight["weight_scale"]).T.astype(np.float32)
    (y,) = session.run(None, {"x": x})
    expected, _ = reference.linear(x, dense, threshold=threshold)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# --- files that cannot be checked


def one_error(path):
    with pytest.raises(OnnxFileError) as caught:
        check(path)
    assert "\n" not in str(caught.value).strip().splitlines()[0]
    return str(caught.value)


def test_a_missing_file(tmp_path):
    assert one_error(tmp_path / "absent.onnx") == f"there is no file '{tmp_path / 'absent.onnx'}'"


def test_a_folder_is_no_file(tmp_path):
    assert "there is no file" in one_error(tmp_path)


@pytest.mark.parametrize("content", (b"", b"not a model", b"\x08\x0a", b"PK\x03\x04" + bytes(64)))
def test_what_is_not_onnx(content, tmp_path):
    (tmp_path / "model.onnx").write_bytes(content)
    assert "is not an ONNX file" in one_error(tmp_path / "model.onnx")


def test_an_invalid_model(tmp_path):
    write(changed(PLAIN, ("MatMul (activation, dequantized)", "MatMul (activation, absent)")), tmp_path / "model.onnx")
    assert "is not a valid ONNX model" in one_error(tmp_path / "model.onnx")


def test_shapes_that_do_not_fit(tmp_path):
    write(changed(PLAIN, ("[rows, 4] x", "[rows, 5] x")), tmp_path / "model.onnx")
    assert "is not a valid ONNX model" in one_error(tmp_path / "model.onnx")


def test_an_unknown_target(path):
    with pytest.raises(ConfigError, match="no rules for 'openvino'; the targets are: tensorrt"):
        check(path, "openvino")


def test_without_onnx(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'int8pass\[onnx\]'"):
        check(path)


# --- external data


def with_external_data(path):
    """The model with its weights in weights.bin."""
    onnx_ir.save(onnx_ir.load(path), path, external_data="weights.bin", size_threshold_bytes=0)
    assert (path.parent / "weights.bin").stat().st_size > 24
    return path


@pytest.fixture
def external(path):
    return with_external_data(path)


def test_external_data_is_read(external):
    assert check(external) == []


def test_rules_read_external_data(tmp_path):
    path = with_external_data(write(changed(PLAIN, ("{0.5, 0.25,", "{0.5, -1,")), tmp_path / "model.onnx"))
    assert [finding.rule for finding in check(path)] == ["scale-positive"]


def test_missing_external_data(external):
    (external.parent / "weights.bin").unlink()
    message = one_error(external)
    assert "in 'weights.bin', which is not beside it" in message


def test_cut_external_data(external):
    with open(external.parent / "weights.bin", "r+b") as file:
        file.truncate(3)
    assert "too short to hold" in one_error(external)


# --- functions, subgraphs


def test_the_body_of_a_function_is_checked(tmp_path):
    text = changed(PLAIN, ('"" : 21', '"" : 21, "local" : 1'), ("y = Mul (product, row)", "y = local.turned (product)"))
    function = """
        <domain: "local", opset_import: ["" : 21]>
        turned (a) => (b) { b = BitwiseNot (a) }
    """
    findings = check(write(text + function, tmp_path / "model.onnx"))
    assert [(finding.rule, finding.operator) for finding in findings] == [("supported-operator", "BitwiseNot")]


def test_the_branches_of_an_if_are_checked(tmp_path):
    branches = """y = If (always) <
        then_branch = yes () => (float[rows, 3] one) { one = BitwiseNot (product) },
        else_branch = no () => (float[rows, 3] two) { two = Abs (product) }
    >"""
    text = changed(PLAIN, ("int64[1] last", "bool always = {1}, int64[1] last"), ("y = Mul (product, row)", branches))
    findings = check(write(text, tmp_path / "model.onnx"))
    assert [(finding.rule, finding.operator) for finding in findings] == [("supported-operator", "BitwiseNot")]


# --- findings


def test_a_finding_names_the_node_and_cites_the_rule(tmp_path):
    (case,) = (case for case in VIOLATIONS if case.name == "along the inputs")
    (finding,) = check(write(case.text, tmp_path / "model.onnx"))
    assert (finding.node, finding.operator) == ("dequantized", "DequantizeLinear")
    assert finding.message == "scales along axis 0; the output channels of MatMul are axis 1"
    assert "Q/DQ Layer-Placement Recommendations" in finding.citation


def test_a_node_without_a_name_goes_by_its_output(tmp_path):
    model = onnx.parser.parse_model(changed(PLAIN, ("zero = {0}", "zero = {3}")))
    onnx.save(model, tmp_path / "model.onnx")
    assert [finding.node for finding in check(tmp_path / "model.onnx")] == ["codes", "activation"]


# --- the list of operators


def test_every_listed_operator_is_one_of_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    older = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # experimental operators that ONNX has removed
    operators = operator_list()
    newest = {"Optional", "OptionalGetElement", "OptionalHasElement"}
    assert set(operators.supported) - known <= older
    assert set(operators.unsupported) - known <= newest
    assert not set(operators.supported) & set(operators.unsupported)


def test_every_restriction_that_is_checked_is_in_the_list():
    for name in RESTRICTIONS:
        assert operator_list().supported[name].restriction, name


# --- the command line


def test_command_passes(run, path):
    code, out, err = run("check", path, "--target", "tensorrt")
    assert (code, err) == (0, "")
    assert out.endswith("keeps all 25 rules of tensorrt\n")


def test_command_shows_what_is_wrong_and_cites_it(run, tmp_path):
    write(changed(PLAIN, ("zero = {0}", "zero = {3}")), tmp_path / "model.onnx")
    code, out, _ = run("check", tmp_path / "model.onnx")
    assert code == 1
    for words in (
        "zero-point",
        "QuantizeLinear",
        "not zero",
        "only symmetric quantization is supported",
        "1 of 25 rules",
    ):
        assert words in out


def test_command_writes_json(run, tmp_path):
    write(changed(PLAIN, ("zero = {0}", "zero = {3}")), tmp_path / "model.onnx")
    code, out, _ = run("check", tmp_path / "model.onnx", "--json", "-")
    document = json.loads(out)
    assert code == 1 and document["passed"] is False and len(document["rules"]) == 25
    assert [(each["rule"], each["node"]) for each in document["findings"]] == [
        ("zero-point", "codes"),
        ("zero-point", "activation"),
    ]
    code, _, _ = run("check", tmp_path / "model.onnx", "--json", tmp_path / "findings.json")
    assert code == 1 and json.loads((tmp_path / "findings.json").read_text()) == document


def test_command_on_a_bad_file_is_one_error(run, tmp_path):
    code, out, err = run("check", tmp_path / "absent.onnx")
    assert (code, out) == (2, "") and err.startswith("error: there is no file")


def test_command_help_says_what_it_needs(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run("check", "--help")
    assert code == 0 and "Needs neither TensorRT nor a GPU" in out


def test_errors_are_errors_of_int8pass():
    assert issubclass(OnnxFileError, Int8PassError)


def test_the_checker_is_imported_without_onnx():
    script = "import sys, int8pass.export.tensorrt; print([name for name in sys.modules if name.startswith('onnx')])"
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"
