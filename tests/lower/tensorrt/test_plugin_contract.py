"""The plugin through torch-tensorrt and TensorRT's real Python: evidence of the contract, counted as nothing more.

`tensorrt.plugin` itself registers, describes, builds and calls it; what would be TensorRT's library is a double. No
engine is built, and no kernel runs but in Triton's interpreter.
"""

import importlib.util

import pytest

from tests.lower.tensorrt.contract import MINOR, SKIPS, Findings
from tests.lower.tensorrt.plugin_numbers_probe import LINEARS

pytestmark = [
    *SKIPS,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    findings = Findings("plugin_probe", tmp_path_factory.mktemp("plugin"), TRITON_INTERPRET="0")
    return lambda name: findings.of("check", name)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return Findings("plugin_numbers_probe", tmp_path_factory.mktemp("interpreted"), TRITON_INTERPRET="1")


def test_it_is_registered_under_the_name_and_with_the_arguments_of_the_op(check):
    result = check("registered")
    for part in ("names", "inputs", "attributes", "outputs"):
        plugin, op = result[part]
        assert plugin == op, part
    assert result["numbers"] == {"threshold": "float64", "per_token": "bool", "dtype": "int64", "columns": "int64"}
    assert result["creator"] and result["impl"] == [True, True] and result["tactics"]


def test_a_linear_is_one_plugin_over_its_input_and_constants(check):
    result = check("layers")
    assert result["kinds"] == [*["add_constant"] * 4, "add_plugin"]
    assert result["x"] == [True, [20, 24]] and result["output"] == [20, 20] and "cuda_int8_linear" in result["named"]
    assert all(result[part] for part in ("codes", "scale", "bias", "weight"))
    assert result["attributes"] == {"threshold": [6.0], "per_token": [False], "dtype": [0], "columns": [-1]}


def test_what_takes_the_place_of_absent_inputs(check):
    result = check("without_bias_and_weight")
    assert result["weight"] and result["bias"] == [0.0] * 20 and result["rule"] == [[3.0], [True]]


def test_sizes_that_are_not_known_stay_so(check):
    assert check("shapes") == {**check("shapes"), "sizes": ["a", "b", 20], "output": [-1, -1, 20]}
    assert not check("shapes")["ahead_of_time"]


def test_few_rows_are_compiled_ahead_of_time(check):
    result = check("when_ahead_of_time")
    assert (result["1"], result["16"], result["17"]) == (True, True, False)
    assert (result["profile"], result["columns"], result["tactics"]) == (False, [2], [])


def test_few_rows_of_a_number_that_is_bounded_are_too(check):
    result = check("few_rows_of_a_bounded_number")
    if MINOR in ("2.11", "2.12"):  # torch-tensorrt tells converters of no bounds
        assert result["ahead_of_time"] == {"16": False, "17": False}
        return
    assert result["ahead_of_time"] == {"16": True, "17": False}
    assert result["integers"] == ["1*a"] and result["grid"] == 1 and result["reads_rows"]


def test_an_engine_that_is_loaded_has_the_plugin_that_was_saved(check):
    (profiled, loaded), (token, also_loaded) = check("saved")["attributes"]
    assert profiled == loaded and token == also_loaded
    assert profiled["columns"] == ["int64", [2, 5]] and profiled["threshold"] == ["float64", [0.0]]
    assert token["columns"] == ["int64", [-1]] and token["per_token"] == ["bool", [True]]
    assert token["threshold"] == ["float64", [2.5]]


def test_columns_that_tensorrt_would_misread_are_an_error(check):
    result = check("columns_that_are_misread")
    assert result["type"] == "EngineError" and "reads the columns of a profile wrongly" in result["message"]


def test_what_tensorrt_gets_of_a_kernel_that_is_compiled_ahead_of_time(check):
    launches = check("launches")["launches"]
    assert len(launches) >= 6
    for each in launches:
        name, entry = each["name"]
        launch = each["launch"]
        assert name == entry and each["target"].startswith("sm_90")
        assert each["kinds"] == ["u64", "u64", "u64", "u64", "u64", "u32", "u64"]  # five inputs, the rows, y
        assert each["integers"] == [6] and launch["block_x"] == each["threads"]
        assert [launch[key] for key in ("grid_x", "grid_y", "grid_z", "block_y", "block_z")] == [1, 1, 1, 1, 1]
        assert 0 < launch["shared_mem"] <= 48 * 1024
        assert each["int8"] and not each["tf32"]


def test_the_form_of_linears(check):
    result = check("forms")
    assert result["plugins"] == {
        "call auto": 1, "call plugin": 1, "profile auto": 0, "profile plugin": 1, "profile native": 0, "none auto": 0,
        "none plugin": 1, "none native": 0,
    }  # fmt: skip
    assert result["refused"]["type"] == "ConfigError" and "find no outlier columns" in result["refused"]["message"]
    assert result["unknown"]["type"] == "ConfigError" and "linear_form must be one of" in result["unknown"]["message"]


def test_torch_compile_builds_one_engine_for_all_batches(check):
    result = check("compiled")
    assert (result["engines"], result["plugins"], result["inputs"]) == (1, 2, [[-1, 24]]) and result["same_x"]
    assert result["stopped_by"] in ("RuntimeError", "ValueError")


@pytest.mark.parametrize("name", LINEARS)
def test_what_it_computes_just_in_time(interpreted, name):
    """As TensorRT calls it: addresses, types and strides in, y written where it says."""
    result = interpreted.of("linear", name)
    assert result["error"] <= 1 and result["inputs"] == 1 and not result["ahead_of_time"]
    assert result["rows_of_nan"] == (1 if name == "not a number" else 0)
