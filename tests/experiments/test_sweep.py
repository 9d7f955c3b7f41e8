"""`int8pass sweep`: errors against float64, every scheme with its thresholds, files, and refusals."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError, ConfigError
from int8pass.experiments import sweep_report
from int8pass.experiments.sweep import Candidate, Sweep, SweepRow, candidates, output_errors, run_sweep
from int8pass.quantization.scheme import SCHEMES
from tests import reference

pytestmark = pytest.mark.usefixtures("fresh_compiler")
EAGER = Int8MixedConfig(lowering="eager")


def linear_with_outliers():
    """A Linear, and two batches whose features 3 and 17 reach past 6."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 32).requires_grad_(False)
    linear.weight.copy_(torch.randn(32, 64, generator=generator))
    batches = [torch.randn(5, 64, generator=generator) for _ in range(2)]
    for x in batches:
        x[:, [3, 17]] *= 30
    return linear, batches


def test_candidates_are_all_schemes_with_thresholds_where_there_is_an_outlier_branch():
    found = candidates(thresholds=(3.0, 6.0))
    assert list(dict.fromkeys(each.scheme for each in found)) == list(SCHEMES)
    for name, scheme in SCHEMES.items():
        expected = [3.0, 6.0] if scheme.decomposition else [None]
        assert [each.threshold for each in found if each.scheme == name] == expected
    assert candidates(["llm.int8"], (5.0,)) == (Candidate("llm.int8", 5.0),)
    assert candidates(["absmax", "llm.int8"], (5.0,), static=True) == (
        Candidate("absmax"), Candidate("llm.int8", 5.0),
        Candidate("absmax", None, "static"), Candidate("llm.int8", 5.0, "static"),
    )  # fmt: skip


def test_errors_are_those_of_the_reference():
    linear, batches = linear_with_outliers()
    weight, bias = linear.weight.numpy(), linear.bias.numpy()
    tried = candidates(["absmax-vectorwise", "llm.int8"], (6.0,))
    result = run_sweep(linear, [((x,), {}) for x in batches], tried, EAGER, rounds=2)
    exact = np.concatenate([x.double().numpy() @ weight.astype(np.float64).T + bias for x in batches])
    for row, threshold in zip(result.rows, (0.0, 6.0), strict=True):
        parts = [reference.linear(x.numpy(), weight, bias, threshold=threshold)[0] for x in batches]
        y = np.concatenate(parts).astype(np.float64)
        expected = np.linalg.norm(y - exact) / np.linalg.norm(exact)
        cosine = (y * exact).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(exact, axis=1)
        assert row.relative_error == pytest.approx(expected, rel=1e-3)
        assert row.cosine_error == pytest.approx((1 - cosine).mean(), rel=1e-2)
        assert row.time > 0 and len(row.seconds) == 2
    assert result.rows[1].relative_error < 0.2 * result.rows[0].relative_error


def test_static_ranges_and_columns_are_those_of_the_calibration_data():
    linear, batches = linear_with_outliers()
    weight, bias = linear.weight.numpy(), linear.bias.numpy()
    calibration = batches[0].clamp(-5.5, 5.5)  # the outlier columns, 3 and 17, and a range of 5.5 where there are none
    calibration[:, 3] *= 2
    tried = candidates(["absmax-vectorwise", "llm.int8"], (6.0,), static=True)
    data = [((x,), {}) for x in batches]
    result = run_sweep(linear, data, tried, EAGER, 1, calibration=[((calibration,), {})])
    exact = np.concatenate([x.double().numpy() @ weight.astype(np.float64).T + bias for x in batches])
    for row, columns in zip(result.rows[2:], ([], [3]), strict=True):
        kept = np.delete(calibration.numpy(), columns, axis=1)
        parts = [static_linear(x.numpy(), weight, bias, np.abs(kept).max(), columns) for x in batches]
        expected = np.linalg.norm(np.concatenate(parts) - exact) / np.linalg.norm(exact)
        assert (row.activations, row.relative_error) == ("static", pytest.approx(expected, rel=1e-3))


def static_linear(x, weight, bias, largest, columns):
    """A Linear whose inputs share the scale `largest` / 127, but for these columns, in float64."""
    weight_scale = np.abs(weight).max(1) / 127
    codes = np.clip(np.rint(x / (largest / 127)), -127, 127)
    codes[:, columns] = 0
    weight_codes = np.rint(weight / weight_scale[:, None])
    y = (codes @ weight_codes.T.astype(np.float64)) * (largest / 127) * weight_scale + bias
    return y + x[:, columns].astype(np.float64) @ weight[:, columns].T


def test_static_without_calibration_data_is_an_error():
    linear, batches = linear_with_outliers()
    with pytest.raises(ConfigError, match="no batch to calibrate on"):
        run_sweep(linear, [((batches[0],), {})], candidates(["absmax"], static=True), EAGER)


def test_a_row_of_zeros_has_no_direction():
    expected = [[torch.tensor([[3.0, 4.0], [0.0, 0.0]])], [torch.tensor(5.0)]]
    found = [[torch.tensor([[4.0, -3.0], [0.0, 0.0]])], [torch.tensor(5.0)]]
    assert output_errors(expected, found) == pytest.approx({"relative_error": (50 / 50) ** 0.5, "cosine_error": 0.5})


def test_progress_is_told_of_each_candidate_and_round():
    linear, batches = linear_with_outliers()
    told = []
    run_sweep(linear, [((batches[0],), {})], candidates(["llm.int8"], (3.0, 6.0)), EAGER, 2, told.append)
    assert told == ["llm.int8, 3", "llm.int8, 6", "timing, round 1", "timing, round 2"]


@pytest.mark.parametrize(
    ("model", "batches", "error"),
    [(nn.Linear(4, 4), [], ConfigError), (nn.Embedding(4, 4).bfloat16(), None, CaptureError)],
)
def test_nothing_to_compare_is_an_error(model, batches, error):
    class Tokens(nn.Module):
        def forward(self, x):
            return x.argmax()

    batches = [((torch.ones(2, 4),), {})] if batches is None else batches
    with pytest.raises(error):
        run_sweep(Tokens() if error is CaptureError else model, batches, candidates(["absmax"]), EAGER)


def made_row(scheme, threshold, error, time, activations="dynamic"):
    return SweepRow(scheme, threshold, activations, error**0.5, error, time, (time,))


ROWS = (
    made_row("absmax", None, 1e-2, 0.5), made_row("absmax-vectorwise", None, 2e-3, 0.5),
    made_row("llm.int8", 3.0, 3e-4, 0.8), made_row("llm.int8", 6.0, 6e-4, 0.6), made_row("llm.int8", 12.0, 6e-4, 0.7),
    made_row("llm.int8", 6.0, 6e-3, 0.55, "static"),
)  # fmt: skip


def test_best_is_what_no_other_beats_in_both():
    best = Sweep(ROWS, (1.0,), "eager", {}).best
    assert [(row.scheme, row.threshold) for row in best] == [
        ("absmax-vectorwise", None), ("llm.int8", 6.0), ("llm.int8", 3.0)
    ]  # fmt: skip


def test_a_candidate_that_gives_nan_has_no_error_in_json():
    sweep = Sweep((made_row("absmax", None, float("nan"), 0.5),), (1.0,), "eager", {})
    assert json.loads(sweep.to_json())["rows"][0]["cosine_error"] is None


def test_the_picture_is_drawn(tmp_path):
    from matplotlib.image import imread

    pixels = imread(sweep_report.plot(Sweep(ROWS, (1.0,), "eager", {}), tmp_path / "sweep.png", "a model"))
    assert pixels.shape[:2] == (600, 1000) and pixels.std() > 0.05


# --- the command line

FACTORY = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), (torch.randn(4, 16),), {}

def data():
    torch.manual_seed(1)
    for _ in range(3):
        x = torch.randn(4, 16)
        x[:, 5] *= 40
        yield x
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "swept.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def sweep_command(run, *options):
    return run("sweep", "swept:tiny", "--lowering", "eager", "--rounds", "1", *options)


def test_the_command_prints_a_table_and_writes_files(run, folder):
    options = ("--batches", "swept:data", "--thresholds", "4,8", "--json", "sweep.json", "--plot", "sweep.png")
    code, out, err = sweep_command(run, *options)
    assert code == 0, err
    document = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert document["schema"] == "int8pass-sweep/2" and document["lowering"] == "eager"
    rows = {(row["scheme"], row["threshold"]): row for row in document["rows"]}
    assert rows.keys() == {(each.scheme, each.threshold) for each in candidates(thresholds=(4.0, 8.0))}
    assert rows["llm.int8", 4.0]["relative_error"] < 0.5 * rows["absmax-vectorwise", None]["relative_error"]
    assert f"{rows['llm.int8', 4.0]['relative_error']:.2e}" in out
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_other_data_to_calibrate_static_activations_on(run, folder):
    options = ("--batches", "swept:data", "--calibration", "swept:data", "--thresholds", "4", "--json", "-")
    code, out, err = sweep_command(run, *options)
    assert code == 0, err
    rows = json.loads(out)["rows"]
    found = {(row["scheme"], row["activations"]): row["relative_error"] for row in rows}
    assert found.keys() == {(scheme, activations) for scheme in SCHEMES for activations in ("dynamic", "static")}
    assert found["llm.int8", "dynamic"] < found["llm.int8", "static"] < 0.5 * found["absmax-vectorwise", "static"]


def test_the_command_takes_some_schemes_and_writes_json_to_the_output(run, folder):
    code, out, err = sweep_command(run, "--schemes", "absmax,llm.int8", "--json", "-", "--outliers", "token")
    assert code == 0, err
    assert [row["scheme"] for row in json.loads(out)["rows"]] == ["absmax", *["llm.int8"] * 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--thresholds", "six"), "expected numbers above 0"),
        (("--thresholds", "0,6"), "above 0"),
        (("--schemes", "absmx"), "did you mean 'absmax'"),
        (("--plot", "nowhere/sweep.png"), "no folder"),
        (("--lowering", "cuda"), "lowering must be one of"),
    ],
)
def test_the_command_refuses(run, folder, options, message):
    code, _, err = run("sweep", "swept:tiny", *options)
    assert code == 2 and message in " ".join(err.split())
