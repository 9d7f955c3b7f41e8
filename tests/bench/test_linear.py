"""`int8pass bench linear`: inputs, errors against NumPy, and the command from end to end."""

import struct

import numpy as np
import pytest
import torch

from int8pass.bench import linear
from int8pass.bench.linear_case import Point, copies_needed
from int8pass.bench.linear_peers import CONTESTANTS
from int8pass.bench.results import Run
from int8pass.kernels.cpu import fused


def point(rows=4, dtype=torch.float32):
    return Point(64, 128, rows, dtype, copies=2)


def test_x_has_six_outlier_columns_and_moving_inputs_have_others():
    first, second, *_ = point(rows=16).moving
    columns = [set(np.flatnonzero((x.abs() >= 6).any(0).numpy())) for x in (first, second)]
    assert len(columns[0]) == len(columns[1]) == 6 and columns[0] != columns[1]
    assert (first.abs().amax() == 20) and not (point().clean.abs() >= 6).any()


def test_moving_inputs_have_more_columns_than_a_weight_keeps():
    for features in (768, 3072, 4096):
        inputs = Point(features, 64, 1, torch.float32, copies=2).moving
        columns = [set(np.flatnonzero((x.abs() >= 6).any(0).numpy())) for x in inputs]
        assert len(set.union(*columns)) == sum(map(len, columns)) > 2 * fused.cache_capacity(features)


def test_stacks_are_equal_and_not_more_copies_than_asked_for():
    assert [len(stack) for stack in Point(8, 8, 1, torch.float32, copies=33).stacks] == [17, 17]
    assert [len(stack) for stack in Point(8, 8, 1, torch.float32, copies=29).stacks] == [29]


def test_copies_fill_the_cache_twice_within_memory(monkeypatch):
    monkeypatch.setattr("int8pass.bench.linear_case.last_level_cache_bytes", lambda: 2**20)
    assert copies_needed(256, 256) == 32
    assert copies_needed(4096, 4096) == 8
    assert copies_needed(256, 256, largest=3) == 3
    assert copies_needed(4096, 4096, fewest=2) == 2
    monkeypatch.setattr("int8pass.bench.linear_case.available_memory_bytes", lambda: 2**23)
    assert copies_needed(256, 256) == 2
    assert copies_needed(4096, 4096) == 1


def test_error_is_the_relative_frobenius_error_to_the_float64_product():
    case = point()
    layer, x = case.stacks[0][0], case.moving[0]
    exact = x.double().numpy() @ layer.weight.double().numpy().T + layer.bias.double().numpy()
    output = torch.from_numpy(exact * 1.01).float()
    assert case.error(output, x) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", ("float32-eager", "bare-int_mm", "bare-onednn", "bare-fbgemm", "quantize_dynamic"))
def test_errors_of_eager_contestants(name):
    (contestant,) = (found for found in CONTESTANTS if found.name == name)
    with torch.no_grad():
        prepared = linear._prepare(contestant, point())
    assert (prepared.error < 1e-6) == (name == "float32-eager")
    assert prepared.error < 0.2 and prepared.units == 2


@pytest.mark.inductor
def test_quick_run_writes_json_and_charts(run, tmp_path):
    peers = "int8mixed-*,bare-*,float32-eager,quantize_dynamic,bitsandbytes,llama.cpp"
    code, out, err = run("bench", "linear", "--quick", "--rows", "4", "--peers", peers, "--out", tmp_path)
    assert code == 0, err
    assert "64x128, M=4" in out and "not measured" in out and "[1/1] 64x128, M=4: round 2 of 2" in err
    result = Run.from_json((tmp_path / "linear-float32.json").read_text())
    assert result.settings["rounds"] == 2 and result.machine["versions"]["torch"] == torch.__version__
    (case,) = result.cases
    assert len(case["int8mixed"].seconds) == 2 and len(case["int8mixed"].warm) == 2
    assert 0 < case["int8mixed"].error < case["int8mixed-t0"].error < 0.05
    assert "whole models" in case["llama.cpp"].failure
    assert_png(tmp_path / "linear-float32-rows-4.png", width=1200)


def assert_png(path, width):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    assert struct.unpack(">I", data[16:20]) == (width,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "768"], "--shapes '768': expected in_features x out_features"),
        (["--rows", "0"], "--rows '0': expected whole numbers"),
        (["--dtype", "float64"], "--dtype 'float64': expected float32 or bfloat16"),
        (["--peers", "torch8"], "--peers 'torch8' matches no contestant"),
        (["--row", "4"], "No such option: --row"),
    ],
)
def test_wrong_options_are_one_clear_error(run, arguments, message):
    code, out, err = run("bench", "linear", "--quick", *arguments)
    assert code == 2 and message in " ".join(err.split()) and out == ""
    assert "Traceback" not in err


def test_moving_columns_leave_the_caches_of_the_other_contestants_alone():
    case = point()
    layers = case.stacks[0]
    builders = {contestant.name: contestant.builder(case) for contestant in CONTESTANTS[:4]}
    stacks = {name: build(layers).layers for name, build in builders.items()}
    weights = {name: {layer.weight.data_ptr() for layer in stack} for name, stack in stacks.items()}
    assert weights["int8mixed"] == weights["int8mixed-clean"] == {layer.weight.data_ptr() for layer in layers}
    assert weights["int8mixed"].isdisjoint(weights["int8mixed-moving"])
