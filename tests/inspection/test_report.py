"""Report: rows, totals, text and JSON."""

import dataclasses
import json
import math

import pytest

from int8pass.inspection.report import SCHEMA_VERSION, Report, Row

REWRITTEN = Row(
    module="encoder.up",
    operation="linear",
    weight_shape=(48, 32),
    dtype="float32",
    rewritten=True,
    reason="",
    outlier_columns=(3, 7),
    snr_db=41.25,
    bytes_before=6144,
    bytes_after=7872,
    bytes_peak=9000,
)
SKIPPED = dataclasses.replace(
    REWRITTEN,
    module="lm_head",
    rewritten=False,
    reason="named in skip_modules ('lm_head')",
    outlier_columns=(),
    snr_db=None,
    bytes_after=6144,
    bytes_peak=6144,
)
NAMELESS = Row("", "bmm", None, "float16", False, "activation x activation, no weight", (), None, 0, 0, 0)


def report(*rows, **keywords):
    return Report(rows, **{"threshold": 6.0, "outliers": "column"} | keywords)


def test_totals():
    quiet = dataclasses.replace(REWRITTEN, module="encoder.down", outlier_columns=())
    totals = report(REWRITTEN, quiet, SKIPPED, NAMELESS, NAMELESS).totals
    assert dataclasses.asdict(totals) == {
        "linears": 5,
        "rewritten": 2,
        "skipped": 3,
        "with_outliers": 1,
        "bytes_before": 3 * 6144,
        "bytes_after": 2 * 7872 + 6144,
        "bytes_peak": 7872 + 9000 + 6144,
        "reasons": {"named in skip_modules ('lm_head')": 1, "activation x activation, no weight": 2},
    }


def weight_row(name, before, int8, peak, view="", keeps_float=False):
    """A rewritten row with its bytes only; peak: what quantizing holds beside the float weight."""
    after = int8 + before if keeps_float else int8
    peak += before
    return Row(
        name, "linear", (1, 1), "float32", True, "", (), None, before, after, peak, keeps_float, f"{name}.weight", view
    )


def test_weight_that_several_linears_read_counts_once():
    first, again = weight_row("fc", 400, 110, 120), weight_row("fc", 400, 110, 120)
    skipped = dataclasses.replace(first, rewritten=False, reason="skipped", bytes_after=400, bytes_peak=400)
    kept = dataclasses.replace(first, keeps_float=True, bytes_after=510)
    for rows, after in (((first, again), 110), ((skipped, kept), 510), ((kept, skipped), 510)):
        totals = report(*rows).totals
        assert (totals.linears, totals.bytes_before, totals.bytes_after) == (2, 400, after)


def test_views_of_a_weight_count_each():
    totals = report(*(weight_row("qkv", 400, 110, 120, view=f"[{part}]") for part in range(3))).totals
    assert (totals.bytes_before, totals.bytes_after) == (1200, 330)
    assert totals.bytes_peak == 1200 + 2 * 110 + 120  # all in float until the last is int8


def test_peak_of_weights_that_are_freed_one_by_one():
    small, large = weight_row("small", 400, 110, 120), weight_row("large", 4000, 1100, 1200)
    assert small.bytes_int8 == 110
    assert report(large, small).totals.bytes_peak == 4400 + 1200
    assert report(small, large).totals.bytes_peak == 110 + 4000 + 1200


def test_peak_of_weights_that_are_kept_is_when_the_last_form_of_the_largest_is_made():
    small, large = (
        weight_row("small", 400, 110, 220, keeps_float=True),
        weight_row("large", 4000, 1100, 2200, keeps_float=True),
    )
    assert small.bytes_int8 == 110
    assert report(large, small).totals.bytes_peak == report(small, large).totals.bytes_peak == 510 + 4000 + 2200


def test_text():
    assert str(report(REWRITTEN, SKIPPED, NAMELESS)).splitlines() == [
        "module      weight  dtype    decision                                     outlier columns  SNR dB  MB before  "
        "MB after  MB peak",
        "-" * 127,
        "encoder.up  48x32   float32  int8                                         3, 7             41.2    0.01       "
        "0.01      0.01",
        "lm_head     48x32   float32  skipped: named in skip_modules ('lm_head')                            0.01       "
        "0.01      0.01",
        "(root)      -       float16  skipped: activation x activation, no weight                           0.00       "
        "0.00      0.00",
        "",
        "1 of 3 Linears rewritten to int8 (threshold 6, outliers by column); 1 of them met outlier columns",
        "weights: 0.01 MB before, 0.01 MB after, 0.02 MB at the peak in between",
        "skipped 1: named in skip_modules ('lm_head')",
        "skipped 1: activation x activation, no weight",
    ]


def test_text_of_a_file_that_was_run():
    text = str(report(REWRITTEN, file="model.onnx", inputs="the inputs of a model"))
    assert "\nrun in ONNX Runtime on the inputs of a model" in text


def test_text_of_an_empty_report():
    assert "0 of 0 Linears rewritten" in str(report())


def test_text_shortens_long_lists_of_columns():
    many = dataclasses.replace(REWRITTEN, outlier_columns=tuple(range(100)))
    assert "0, 1, 2, 3, 4, 5, ... (100)" in str(report(many))


def test_json_holds_every_field():
    rows = (REWRITTEN, SKIPPED, NAMELESS)
    document = json.loads(report(*rows, scheme="zeropoint", threshold=2.5, outliers="token", graphs=3).to_json())
    options = {"scheme", "threshold", "outliers", "profile", "file", "inputs"}
    assert document.keys() == options | {"schema", "graphs", "totals", "rows"}
    assert document["schema"] == SCHEMA_VERSION == 4
    assert (document["threshold"], document["outliers"], document["graphs"]) == (2.5, "token", 3)
    assert document["scheme"] == "zeropoint"
    assert document["totals"]["rewritten"] == 1
    for row, expected in zip(document["rows"], rows, strict=True):
        assert row.keys() == {field.name for field in dataclasses.fields(Row)}
        shape = None if expected.weight_shape is None else list(expected.weight_shape)
        plain = {"weight_shape": shape, "outlier_columns": list(expected.outlier_columns)}
        assert row == dataclasses.asdict(expected) | plain | {"missed_columns": [], "schemes": []}


@pytest.mark.parametrize("ratio", (math.inf, -math.inf, math.nan))
def test_json_has_no_infinite_numbers(ratio):
    row = dataclasses.replace(REWRITTEN, snr_db=ratio)
    text = report(row).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["rows"][0]["snr_db"] is None


def test_json_in_one_line():
    assert "\n" not in report(REWRITTEN).to_json(indent=None)
