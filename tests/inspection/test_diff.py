"""`int8pass diff`: what changed between two reports or two folders of dumps."""

import json

import pytest

from int8pass.errors import ReportFileError
from int8pass.inspection.diff import compare, compare_reports, graph_differences, read_report
from tests.inspection.test_report import REWRITTEN, SKIPPED, report

MODEL = "tests.test_cli:make"


def document(*rows, **keywords):
    return json.loads(report(*rows, **keywords).to_json())


def texts(a, b, **keywords):
    return list(map(str, compare_reports(a, b, **keywords)))


def row(**changes):
    return {**document(REWRITTEN)["rows"][0], **changes}


def with_row(**changes):
    return {**document(REWRITTEN), "rows": [row(**changes)]}


def test_equal_reports_do_not_differ():
    assert texts(document(REWRITTEN, SKIPPED), document(REWRITTEN, SKIPPED)) == []


@pytest.mark.parametrize(
    "changes, expected",
    (
        ({"rewritten": False, "reason": "lm_head"}, "decision int8 -> skipped: lm_head"),
        ({"outlier_columns": [3, 9]}, "outliers [3, 7] -> [3, 9]"),
        ({"snr_db": 31.25}, "error 41.2 dB -> 31.2 dB"),
        ({"snr_db": None}, "error 41.2 dB -> no error"),
        ({"weight_shape": [48, 64]}, "weight float32 48x32 -> float32 48x64"),
        ({"dtype": "bfloat16"}, "weight float32 48x32 -> bfloat16 48x32"),
    ),
)
def test_each_kind_of_change(changes, expected):
    assert texts(document(REWRITTEN), with_row(**changes)) == [f"encoder.up: {expected}"]


def test_small_errors_count_as_equal():
    assert texts(document(REWRITTEN), with_row(snr_db=41.3)) == []
    assert len(texts(document(REWRITTEN), with_row(snr_db=41.3), tolerance_db=0.01)) == 1


def test_change_beyond_the_columns_shown_is_a_change():
    many = list(range(20))
    found = texts(with_row(outlier_columns=many), with_row(outlier_columns=[*many[:-1], 30]))
    assert found == ["encoder.up: outliers [0, 1, 2, 3, 4, 5, 6, 7, ... (20)] -> [0, 1, 2, 3, 4, 5, 6, 7, ... (20)]"]


def test_layers_of_one_report_only():
    assert texts(document(REWRITTEN), document(REWRITTEN, SKIPPED)) == [
        "lm_head: layer absent -> skipped: named in skip_modules ('lm_head')"
    ]
    assert texts(document(REWRITTEN, REWRITTEN), document(REWRITTEN)) == ["encoder.up (call 2): layer int8 -> absent"]


def test_options_that_differ_come_first():
    assert texts(document(REWRITTEN), document(REWRITTEN, threshold=3.0)) == ["options: threshold 6.0 -> 3.0"]


@pytest.mark.parametrize(
    "text, words",
    (("{", "is not JSON"), ("[]", "no report"), ('{"rows": [], "schema": 1}', "has schema 1"), ("{}", "no report")),
)
def test_what_is_no_report_is_refused(text, words, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ReportFileError, match=words):
        read_report(tmp_path / "a.json")


def test_absent_or_mixed_paths_are_refused(tmp_path):
    with pytest.raises(ReportFileError, match="there is no file"):
        compare(tmp_path / "a.json", tmp_path / "b.json")
    (tmp_path / "b").mkdir()
    with pytest.raises(ReportFileError, match="two of a kind, not a JSON report and a folder of dumps"):
        compare(tmp_path / "a.json", tmp_path / "b")
    with pytest.raises(ReportFileError, match=r"has no report\.json"):
        compare(tmp_path / "b", tmp_path / "b")


# --- the command


def test_two_thresholds(run, tmp_path):
    for name, threshold in (("a", "6"), ("b", "4.5")):
        assert run("dump", MODEL, "--out", tmp_path / name, "--threshold", threshold)[0] == 0
    code, out, _ = run("diff", tmp_path / "a", tmp_path / "b")
    lines = out.splitlines()
    assert code == 0
    assert lines[:2] == ["options: threshold 6.0 -> 4.5", "up: outliers [9] -> [3, 9]"]
    assert lines[2].startswith("up: error ") and not any("lm_head" in line for line in lines)
    assert "graph-000/04-linear_to_int8_mixed: graph -1 lines -> +1 lines" not in lines  # the rewrite is a later stage
    changed = [line for line in lines if "graph-000/" in line]
    assert changed == [
        f"graph-000/{stage}: graph -1 lines -> +1 lines"
        for stage in ("05-linear_to_int8_mixed", "06-share_activation_quantize")
    ]
    _, out, _ = run("diff", tmp_path / "a", tmp_path / "b", "--text")
    assert "+%outlier_mask : bool[32] = int8pass.outlier_mask(%l_x_, 4.5, 'column')" in out
    assert graph_differences(tmp_path / "a", tmp_path / "a") == ""


def test_two_reports_and_the_exit_code(run, tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    run("report", MODEL, "--json", a)
    run("report", MODEL, "--json", b, "--skip-modules", "up")
    assert run("diff", a, a, "--exit-code") == (0, "no differences\n", "")
    code, out, _ = run("diff", a, b, "--exit-code")
    assert code == 1
    assert "up: decision int8 -> skipped: named in skip_modules ('up')\n" in out
    code, _, err = run("diff", a, tmp_path / "absent.json")
    assert code == 2 and "there is no file" in err
