"""Whole models with break_even="measured": what is slower stays in float, with its reason."""

import json

import pytest
import torch
from torch import nn

import int8pass
from int8pass.break_even import store
from int8pass.errors import ConfigError
from tests.backend.models import compiled, linear_reference
from tests.linear_models import activation, frozen

SLOWER = "int8 measured slower: 0.50x at 16 rows"
MEASURED = {"break_even": "measured"}


class TinyAndBig(nn.Module):
    """Two equal Linears of 256 weights and one of 2048."""

    def __init__(self):
        super().__init__()
        self.tiny, self.same, self.big = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 128)

    def forward(self, x):
        return self.big(self.same(self.tiny(x)))


@pytest.fixture
def model(fresh_compiler):
    return frozen(TinyAndBig())


@pytest.fixture
def x():
    return activation(16, columns=16)


def reasons(model, x, **options):
    rows = int8pass.explain(model, (x,), options={**MEASURED, **options}).rows
    return {row.module: row.reason for row in rows}


def test_slower_linears_stay_in_float_and_the_others_become_int8(model, x, fake_stopwatch):
    assert reasons(model, x) == {"tiny": SLOWER, "same": SLOWER, "big": ""}
    assert reasons(model, x, break_even="off") == {"tiny": "", "same": "", "big": ""}


def test_the_compiled_model_computes_what_was_left_in_float(model, x, fake_stopwatch):
    float_part = model.same(model.tiny(x))
    result = compiled(model, options=MEASURED)(x)
    expected, bound = linear_reference(model.big, float_part)
    assert ((result.double() - expected).abs() <= bound).all()
    assert not torch.equal(result, model(x))


def test_equal_linears_are_measured_once_and_the_next_process_reads_the_disk(model, x, fake_stopwatch, monkeypatch):
    first = reasons(model, x)
    assert [case.out_features for case in fake_stopwatch.cases] == [16, 128]
    monkeypatch.setattr(store, "_known", {})  # what another process starts with
    assert reasons(model, x) == first and len(fake_stopwatch.cases) == 2


def test_what_the_disk_holds_decides(model, x, fake_stopwatch, folder, monkeypatch):
    reasons(model, x)
    for file in folder.iterdir():
        content = json.loads(file.read_text())
        content["speedup"] = 0.25 if content["key"]["linear.out_features"] == "128" else 3.0
        file.write_text(json.dumps(content))
    monkeypatch.setattr(store, "_known", {})
    assert reasons(model, x) == {"tiny": "", "same": "", "big": "int8 measured slower: 0.25x at 16 rows"}


def test_rows_are_those_of_all_leading_dimensions_and_of_the_first_call(model, fake_stopwatch):
    run = compiled(model, options=MEASURED, dynamic=True)
    for leading in ((3, 5), (4, 6)):
        run(activation(*leading, columns=16))
    assert {case.rows for case in fake_stopwatch.cases} == {15}


def test_one_row(model, fake_stopwatch):
    assert reasons(model, activation(1, columns=16))["tiny"] == "int8 measured slower: 0.50x at 1 row"


def test_no_rows_are_not_measured(model, fake_stopwatch):
    assert set(reasons(model, activation(0, columns=16)).values()) == {""}
    assert not fake_stopwatch.cases


def test_a_freed_weight_stays_int8(model, fake_stopwatch, monkeypatch):
    monkeypatch.setattr(type(fake_stopwatch), "LARGE", 0)
    run = compiled(model, options={**MEASURED, "free_weights": True}, dynamic=False)
    first = run(activation(16, columns=16))
    monkeypatch.setattr(type(fake_stopwatch), "LARGE", 2**30)
    assert first.shape == (16, 128) and run(activation(5, columns=16)).shape == (5, 128)


def test_a_linear_just_below_break_even_is_not_called_equal(model, x, monkeypatch):
    monkeypatch.setattr("int8pass.break_even.measure.measure", lambda case, config: 0.9999)
    assert reasons(model, x)["tiny"] == "int8 measured slower: 0.99x at 16 rows"
    monkeypatch.setattr(store, "_known", {})


def test_a_profile_is_calibrated_on_all_linears(model, x, fake_stopwatch):
    profile = int8pass.calibrate(model, [x], options=MEASURED, progress=False)
    assert [layer.weight for layer in profile.layers] == ["tiny.weight", "same.weight", "big.weight"]
    assert not fake_stopwatch.cases
    assert reasons(model, x, profile=profile)["tiny"] == SLOWER
    assert {case.profiled for case in fake_stopwatch.cases} == {len(layer.outlier_columns) for layer in profile.layers}


@pytest.mark.parametrize(
    "what, call",
    (
        ("convert", lambda model, x: int8pass.convert(model, (x,), options=MEASURED)),
        ("export_onnx", lambda model, x: int8pass.export_onnx(model, (x,), "model.onnx", options=MEASURED)),
        ("quantize_", lambda model, x: int8pass.quantize_(model, options=MEASURED)),
    ),
    ids=("convert", "export_onnx", "quantize_"),
)
def test_what_may_run_elsewhere_is_refused(what, call, model, x):
    with pytest.raises(ConfigError, match=f"what {what} makes may run elsewhere"):
        call(model, x)


def make():
    """For the command line."""
    return frozen(TinyAndBig()), (activation(16, columns=16),), {}


@pytest.mark.parametrize("verb", (("report",), ("dump", "--stage", "linear_to_int8_mixed")), ids=" ".join)
def test_commands(verb, run, fresh_compiler, fake_stopwatch):
    code, out, err = run(verb[0], "tests.break_even.test_refusal:make", *verb[1:], "--break-even", "measured")
    assert code == 0, err
    assert (out.count(SLOWER) == 3) if verb == ("report",) else (out.count("= int8pass.int8_mm(") == 1)
