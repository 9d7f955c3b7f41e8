"""The TensorRT rules: valid files pass, and every hand-made violation is rejected by its own rule and by no other."""

import pytest

from int8pass.export.tensorrt import check, rules_of
from tests.export.tensorrt import onnx_text
from tests.export.tensorrt.violations import VIOLATIONS

VALID = {
    "plain": onnx_text.PLAIN,
    "outliers": onnx_text.OUTLIERS,
    "plain in float16": onnx_text.in_float16(onnx_text.PLAIN),
    "outliers in float16": onnx_text.in_float16(onnx_text.OUTLIERS),
}


def found(text, tmp_path):
    return check(onnx_text.write(text, tmp_path / "model.onnx"))


@pytest.mark.parametrize("name", VALID)
def test_row_normalised_qdq_passes(name, tmp_path):
    assert found(VALID[name], tmp_path) == []


@pytest.mark.parametrize("case", VIOLATIONS, ids=lambda case: f"{case.rule}: {case.name}")
def test_a_violation_is_rejected_by_its_own_rule_and_by_no_other(case, tmp_path):
    findings = found(case.text, tmp_path)
    assert {finding.rule for finding in findings} == {case.rule}, findings


def test_every_rule_has_a_violation():
    rules = [rule.id for rule in rules_of("tensorrt")]
    assert len(rules) == len(set(rules)) >= 12
    assert {case.rule for case in VIOLATIONS} == set(rules)
