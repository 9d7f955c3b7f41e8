"""`report --schemes`: the error of every scheme at each Linear, against float64, in the text and in JSON."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from int8pass import Int8MixedConfig, explain
from int8pass.inspection.float_run import float_runs
from int8pass.inspection.observation import Observation
from int8pass.inspection.scheme_errors import scheme_noise
from int8pass.quantization.scheme import SCHEMES
from tests import reference_schemes
from tests.linear_models import IN, OUT, Mlp, bounded, frozen

NAMES = tuple(SCHEMES)
pytestmark = pytest.mark.usefixtures("fresh_compiler")


def inputs():
    x = torch.randn(16, IN)
    x[:, [2, 9]] *= 20
    return x


@pytest.mark.parametrize("options", [{}, {"scheme": "absmax"}, {"threshold": 30.0, "outliers": "token"}])
def test_every_error_is_that_of_float64(options):
    linear, x = frozen(nn.Linear(IN, OUT)), inputs()
    (row,) = explain(linear, (x,), options=options, schemes=NAMES).rows
    weight, bias = linear.weight.numpy(), linear.bias.numpy()
    exact = x.double().numpy() @ weight.astype(np.float64).T + bias
    assert [error.scheme for error in row.schemes] == list(NAMES)
    for error in row.schemes:
        scheme = SCHEMES[error.scheme]
        threshold = options.get("threshold", 6.0) if scheme.decomposition else 0.0
        outliers = options.get("outliers", "column")
        y, _ = reference_schemes.linear(x.numpy(), weight, bias, scheme, threshold=threshold, outliers=outliers)
        expected = 10 * math.log10((exact**2).sum() / ((exact - y) ** 2).sum())
        assert error.snr_db == pytest.approx(expected, abs=0.01), error.scheme
    chosen = options.get("scheme", "llm.int8")
    assert row.snr_db == pytest.approx(next(error.snr_db for error in row.schemes if error.scheme == chosen))


def test_noise_of_several_calls_adds_up():
    observation, x = Observation(), inputs()
    with float_runs(frozen(nn.Linear(IN, OUT)), (x,), None, Int8MixedConfig()) as runs:
        seen = []
        for _ in range(2):
            runs.run(lambda call: seen.append(scheme_noise(call, ("absmax",))) or call.y)
    for noise in seen:
        observation.scheme_noise.update(noise)
    assert seen[0]["absmax"] == seen[1]["absmax"] > 0
    assert observation.scheme_noise == {"absmax": 2 * seen[0]["absmax"]}


def test_text_and_json_hold_them_only_when_asked_for():
    model, x = frozen(Mlp()), bounded(16, IN)
    plain, asked = explain(model, (x,)), explain(model, (x,), schemes=("absmax", "llm.int8"))
    assert "SNR dB by scheme" not in str(plain) and str(asked).count("SNR dB by scheme") == 1
    ratio = asked.rows[0].schemes[0].snr_db
    line = next(line for line in str(asked).split("SNR dB by scheme")[1].splitlines() if line.startswith("up"))
    assert line.split()[1] == f"{ratio:.1f}"
    assert str(asked).splitlines()[-1] == str(plain).splitlines()[-1]
    assert all(row["schemes"] == [] for row in json.loads(plain.to_json())["rows"])
    stored = json.loads(asked.to_json())["rows"][0]["schemes"]
    assert stored == [{"scheme": error.scheme, "snr_db": error.snr_db} for error in asked.rows[0].schemes]


def test_no_error_at_all_is_null_in_json():
    linear = frozen(nn.Linear(IN, OUT, bias=False))
    linear.weight.copy_(torch.eye(OUT, IN) * 127)
    report = explain(linear, (torch.full((2, IN), 127.0),), options={"threshold": 0.0}, schemes=("absmax-vectorwise",))
    assert report.rows[0].schemes[0].snr_db == math.inf
    assert json.loads(report.to_json())["rows"][0]["schemes"][0]["snr_db"] is None


def test_the_command_prints_them(run, tmp_path, monkeypatch):
    source = "import torch\ndef tiny():\n    return torch.nn.Linear(16, 8), (torch.ones(2, 16),), {}\n"
    (tmp_path / "reported.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = run("report", "reported:tiny", "--schemes")
    assert code == 0, err
    header = next(line for line in out.splitlines() if line.startswith("SNR dB by scheme"))
    assert header.split()[4:] == list(NAMES)
    assert "SNR dB by scheme" not in run("report", "reported:tiny")[1]


@pytest.mark.parametrize(
    ("options", "scheme", "expected"),
    [
        ({"threshold": 4.0, "outliers": "token", "outlier_weights": "dequantized"}, "absmax", (0.0, "column", None)),
        ({"threshold": 4.0, "outliers": "token"}, "llm.int8-zeropoint", (4.0, "token", None)),
        ({"scheme": "absmax"}, "llm.int8", (6.0, "column", None)),
        ({"threshold": 0.0, "outlier_weights": "original"}, "llm.int8", (6.0, "column", "original")),
    ],
)
def test_options_under_another_scheme(options, scheme, expected):
    found = Int8MixedConfig(**options).with_scheme(scheme)
    assert (found.scheme, (found.threshold, found.outliers, found.outlier_weights)) == (SCHEMES[scheme], expected)
    if found.scheme.decomposition:
        assert Int8MixedConfig(**options).with_scheme(scheme, 2.5).threshold == 2.5
