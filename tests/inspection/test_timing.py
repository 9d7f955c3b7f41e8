"""Times of each rewritten Linear: every part is there, they add up, and what is slower in int8 is said."""

import dataclasses
import json

import pytest
import torch

from int8pass import explain
from int8pass.inspection.timing import Timing
from int8pass.kernels.cpu import fused
from tests.inspection.test_report import NAMELESS, REWRITTEN, report
from tests.linear_models import Mlp, activation, frozen

FAST = Timing(float=4e-3, int8=1e-3, quantize=1e-4, gemm=7e-4, dequantize=None, outliers=2e-4)
SLOW = dataclasses.replace(FAST, int8=8e-3)


def timed(seconds, module="encoder.up"):
    return dataclasses.replace(REWRITTEN, module=module, timing=seconds)


@pytest.mark.parametrize("lowering", ("inductor", "eager"))
@pytest.mark.parametrize("threshold", (6.0, 0.0))
@pytest.mark.parametrize("outlier_weights", ("original", "dequantized"))
def test_every_part_is_timed(lowering, threshold, outlier_weights):
    torch.manual_seed(0)
    torch._dynamo.reset()
    options = {
        "lowering": lowering,
        "threshold": threshold,
        "outlier_weights": outlier_weights,
        "skip_modules": ["down"],
    }
    up, down = explain(frozen(Mlp()), (activation(64),), options=options, timings=True).rows
    assert down.timing is None
    parts = dataclasses.asdict(up.timing)
    assert all(parts[name] > 0 for name in ("float", "int8", "quantize")) and parts["gemm"] >= 0
    if lowering == "eager" or not fused.is_available():
        assert parts["dequantize"] > 0 and (parts["outliers"] > 0) == (threshold > 0)
    else:
        assert parts["dequantize"] is None and parts["outliers"] >= 0.0


def test_timing_leaves_the_report_as_it_is():
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(16)
    plain, with_times = explain(model, (x,)), explain(model, (x,), timings=True)
    assert [dataclasses.replace(row, timing=None) for row in with_times.rows] == list(plain.rows)
    assert all(row.timing for row in with_times.rows) and "us int8" not in str(plain)


def test_slower_layers_are_suggested_to_be_skipped():
    found = report(timed(FAST), timed(SLOW, "encoder.down"), NAMELESS)
    assert found.slower_in_int8 == ("encoder.down",)
    lines = str(found).splitlines()
    assert lines[0].endswith("MB peak  us int8  us float  quantize  GEMM  dequantize  outliers")
    assert lines[2].split()[-6:] == ["1000", "4000", "100", "700", "fused", "200"]
    assert "time of the Linears, each alone: 9.00 ms in int8, 8.00 ms in float" in lines
    assert found.saved_by_skipping == pytest.approx(4e-3)
    assert "faster in float, by 4.00 ms: skip_modules=['encoder.down']" in lines


def test_linears_of_one_module_are_judged_together_and_noise_is_not_slower():
    noise = dataclasses.replace(FAST, int8=4.2e-3)
    assert report(timed(noise)).slower_in_int8 == () and report(timed(noise)).saved_by_skipping == 0.0
    assert "faster in float" not in str(report(timed(noise)))
    assert report(timed(FAST), timed(dataclasses.replace(FAST, int8=5e-3))).slower_in_int8 == ()


def test_times_are_in_the_json_and_null_where_not_measured():
    rows = json.loads(report(timed(FAST), SKIPPED_ROW).to_json())["rows"]
    assert rows[0]["timing"] == dataclasses.asdict(FAST) and rows[1]["timing"] is None


SKIPPED_ROW = dataclasses.replace(REWRITTEN, rewritten=False, reason="lm_head")


def test_command_times(run):
    code, out, _ = run("report", "tests.test_cli:make", "--timings")
    assert code == 0 and "us int8" in out and "time of the Linears, each alone" in out
