"""Reports, timings and `debug` with a calibrated profile: what is measured is what the profile's columns give."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from int8pass import calibrate, explain
from int8pass.errors import ProfileError
from int8pass.inspection.debug import diagnose
from int8pass.inspection.diff import compare
from int8pass.kernels.cpu import fused
from tests import reference
from tests.linear_models import IN, OUT, Mlp, bounded, frozen

SEEN, MISSED = 3, 17


@pytest.fixture(autouse=True)
def fresh_state():
    torch.manual_seed(0)
    torch._dynamo.reset()


def batch(*columns):
    """Values below the threshold, but for the columns: 40."""
    x = bounded(16, IN)
    x[:, list(columns)] = 40.0
    return x


def profile_of(model, *columns):
    return calibrate(model, [batch(*columns)], progress=False)


def reference_snr(linear, x, columns):
    """In dB, with just these columns in 16 bits: the rest is quantized without an outlier branch (float64 NumPy)."""
    weight, bias, x = linear.weight.numpy(), linear.bias.numpy(), x.numpy()
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    rest = x.copy()
    rest[:, columns] = 0.0
    y, _ = reference.linear(rest, weight, bias, threshold=0.0)
    unit = abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    kept = (weight[:, columns] / unit).astype(np.float16).astype(np.float64) * unit
    y = y + x[:, columns].astype(np.float64) @ kept.T
    return 10 * math.log10((exact**2).sum() / ((exact - y) ** 2).sum())


def test_error_is_that_of_the_profiles_columns():
    linear = frozen(nn.Linear(IN, OUT))
    whole, part = profile_of(linear, SEEN, MISSED), profile_of(linear, SEEN)
    x = batch(SEEN, MISSED)
    (knows,), (misses,) = (explain(linear, (x,), options={"profile": each}).rows for each in (whole, part))
    assert knows.snr_db == pytest.approx(reference_snr(linear, x, [SEEN, MISSED]), abs=0.01)
    assert misses.snr_db == pytest.approx(reference_snr(linear, x, [SEEN]), abs=0.01)
    assert misses.snr_db < knows.snr_db - 6
    assert (knows.outlier_columns, knows.missed_columns) == ((SEEN, MISSED), ())
    assert (misses.outlier_columns, misses.missed_columns) == ((SEEN,), (MISSED,))


def test_columns_of_a_profile_are_outliers_whatever_the_input_holds():
    linear = frozen(nn.Linear(IN, OUT))
    x = batch()
    result = explain(linear, (x,), options={"profile": profile_of(linear, SEEN)})
    (row,), (details,) = result.rows, result.details
    assert row.outlier_columns == (SEEN,) and row.snr_db == pytest.approx(reference_snr(linear, x, [SEEN]), abs=0.01)
    assert details.outlier_values == len(x) and sum(details.activations.counts) == x.numel() - len(x)


def test_no_columns_is_no_outlier_branch():
    linear = frozen(nn.Linear(IN, OUT))
    x = batch(MISSED)
    result = explain(linear, (x,), options={"profile": profile_of(linear)})
    (row,) = result.rows
    assert row.snr_db == pytest.approx(reference_snr(linear, x, []), abs=0.01)
    assert (row.outlier_columns, row.missed_columns) == ((), (MISSED,))
    assert result.details[0].outlier_values == 0


def test_text_and_json_name_what_is_missed():
    linear = frozen(nn.Linear(IN, OUT))
    profile = profile_of(linear, SEEN)
    result = explain(linear, (batch(SEEN, MISSED),), options={"profile": profile})
    assert "outliers by profile" in str(result) and f"3 (missed: {MISSED})" in str(result)
    assert "the profile misses outlier columns of 1: calibrate on inputs like these too" in str(result)
    assert f'"profile": "{profile.fingerprint}"' in result.to_json()
    assert "missed" not in str(explain(linear, (batch(SEEN),), options={"profile": profile}))


def test_profile_of_another_model_is_refused():
    with pytest.raises(ProfileError, match="of another model"):
        explain(frozen(nn.Linear(IN, OUT)), (batch(),), options={"profile": profile_of(frozen(nn.Linear(IN, OUT)))})


@pytest.mark.parametrize("lowering", ("inductor", "eager"))
@pytest.mark.parametrize("columns", ((SEEN,), ()))
def test_timings_are_those_of_what_runs(lowering, columns):
    linear = frozen(nn.Linear(IN, OUT))
    options = {"profile": profile_of(linear, *columns), "lowering": lowering}
    (row,) = explain(linear, (batch(SEEN),), options=options, timings=True).rows
    op_by_op = lowering == "eager" or not fused.is_available()
    assert (row.timing.dequantize is not None) == op_by_op
    assert not op_by_op or (row.timing.outliers > 0) == bool(columns)


def test_debug_names_the_layer_whose_column_the_profile_misses():
    model = frozen(Mlp())
    found = diagnose(model, (batch(SEEN, MISSED),), options={"profile": profile_of(model, SEEN)}, compiled=False)
    assert found.suspect.module == "up" and f"misses outlier columns of it, {MISSED}: " in found.why
    assert [repair.option for repair in found.repairs] == ["profile", "skip_modules"]
    assert str(found.repair) == "profile=None" and found.repair.own_db > found.suspect.own_db + 6
    torch._dynamo.reset()
    knows = diagnose(
        model, (batch(SEEN, MISSED),), options={"profile": profile_of(model, SEEN, MISSED)}, compiled=False
    )
    assert not any(layer.unusual for layer in knows.layers)


def test_commands_take_a_profile(run, tmp_path):
    path = tmp_path / "profile.json"
    assert run("calibrate", "tests.test_cli:make", "-o", path)[0] == 0
    code, out, _ = run("report", "tests.test_cli:make", "--profile", path, "--json", "-")
    assert code == 0 and '"missed_columns": []' in out and '"profile": ""' not in out
    assert run("debug", "tests.test_cli:make", "--profile", path, "--no-compile")[0] == 0
    code, out, _ = run("dump", "tests.test_cli:make", "--profile", path, "--stage", "linear_to_int8_mixed")
    assert code == 0 and "int8pass.column_mask(" in out
    assert run("report", "tests.test_cli:make", "--profile", tmp_path / "none.json")[0] == 2


def test_diff_tells_what_is_missed(tmp_path):
    linear = frozen(nn.Linear(IN, OUT))
    options = {"profile": profile_of(linear, SEEN)}
    for name, x in (("a", batch(SEEN)), ("b", batch(SEEN, MISSED))):
        (tmp_path / name).write_text(explain(linear, (x,), options=options).to_json())
    assert f"(root): missed [] -> [{MISSED}]" in map(str, compare(tmp_path / "a", tmp_path / "b"))
