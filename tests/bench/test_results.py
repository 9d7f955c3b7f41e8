"""Records of a run: JSON round trip, ratios, verdicts."""

import json
import math

import pytest

from int8pass.bench import targets
from int8pass.bench.results import SCHEMA, Case, Measurement, Run, Verdict
from int8pass.errors import ConfigError


def case(rows=16, width=4096, **milliseconds):
    facts = {"rows": rows, "in_features": width, "out_features": width}
    found = [
        Measurement(name.replace("_", "-"), seconds=(value * 1e-3,), error=0.5) for name, value in milliseconds.items()
    ]
    return Case("case", facts, tuple(found))


def make_run():
    failed = Measurement("broken", failure="ImportError: no such library")
    slow = Measurement("slow", seconds=(1.0, None), warm=(0.5, 0.25), error=1e-3, note="timed once")
    verdict = Verdict("2x", "geometric mean >= 2", math.nan, 1.5, None)
    return Run("linear", {"rounds": 2}, {"cpu": "x"}, (Case("c", {"rows": 1}, (failed, slow)),), (verdict,), "now", 1.0)


def test_json_round_trip():
    run = make_run()
    read = Run.from_json(run.to_json())
    assert read.to_json() == run.to_json()
    assert (read.cases[0]["slow"], read.settings, read.seconds) == (run.cases[0]["slow"], run.settings, 1.0)
    assert math.isnan(read.cases[0]["broken"].error) and math.isnan(read.verdicts[0].value)


def test_json_is_standard_and_names_its_schema():
    data = json.loads(make_run().to_json(), parse_constant=pytest.fail)
    assert data["schema"] == SCHEMA
    assert data["cases"][0]["measurements"][0]["error"] is None


def test_another_schema_is_an_error():
    with pytest.raises(ConfigError, match="int8pass-bench/0"):
        Run.from_json(json.dumps({"schema": "int8pass-bench/0"}))


def test_a_contestant_that_was_not_asked_for_has_no_ratio():
    assert math.isnan(case(int8mixed=1).ratio("torchao"))


BARE_MANY = "0.9 of the bare int8 product's rate, M >= 128"
BARE_ONE = "0.85 of the bare int8 product's rate, M = 1, width >= 4096"


@pytest.mark.parametrize(
    ("text", "cases", "passed"),
    [
        ("2.0x bitsandbytes", [case(int8mixed=1, bitsandbytes=1), case(int8mixed=1, bitsandbytes=5)], True),
        ("never slower than bitsandbytes", [case(int8mixed=1, bitsandbytes=0.9)], False),
        ("2.0x Inductor bfloat16, M <= 16", [case(rows=128, int8mixed=1, bfloat16_inductor=9)], None),
        (BARE_MANY, [case(rows=128, int8mixed=1, bare_fbgemm=0.8)], False),
        (BARE_MANY, [case(rows=128, int8mixed=1, bare_fbgemm=0.95, bare_int_mm=2)], True),
        (BARE_ONE, [case(1, 768, int8mixed=1, bare_fbgemm=1)], None),
        ("outlier branch <= 5%, M >= 128", [case(rows=128, int8mixed=1.04, int8mixed_t0=1)], True),
        ("outlier branch <= 5%, M >= 128", [case(rows=128, int8mixed=1.06, int8mixed_t0=1)], False),
        ("outlier branch <= 3% where x has none", [case(int8mixed=2, int8mixed_clean=1.02, int8mixed_t0=1)], True),
    ],
)  # fmt: skip
def test_verdicts(text, cases, passed):
    (verdict,) = (found for found in targets.judge(cases) if found.target == text)
    assert verdict.passed is passed
