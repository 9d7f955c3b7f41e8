"""The lowering through torch-tensorrt's real Python and TensorRT's real bindings: evidence of the contract only.

Capture, partitioning and conversion are torch-tensorrt's own; the network is a double that checks and computes layers.
No engine is built or run: that takes TensorRT's libraries and a GPU.
"""

import pytest

from tests.lower.tensorrt.contract import SKIPS, Findings
from tests.lower.tensorrt.converters_probe import LINEARS

pytestmark = SKIPS


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return Findings("converters_probe", tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture
def check(found):
    return lambda name: found.of("check", name)


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_follows_the_reference(found, name):
    result = found.of("linear", name)
    assert result["error"] <= 1
    assert result["codes_off"] <= 1 and result["share_off"] < 0.01


@pytest.mark.parametrize("name", LINEARS)
def test_the_engine_holds_the_weights_and_multiplies_once_in_int8(found, name):
    result = found.of("linear", name)
    assert result["inputs"] == 1
    assert result["kinds"].count("add_quantize") == 1 and result["kinds"].count("add_dequantize") == 2
    columns = LINEARS[name].get("threshold", 6.0) > 0
    assert (
        result["kinds"].count("add_matrix_multiply") == 1 + columns and result["kinds"].count("add_gather") == columns
    )


def test_a_row_of_nan_or_infinity_is_nan(found):
    assert found.of("linear", "rows of zeros, tiny values, NaN and infinity")["rows_of_nan"] == 2


def test_a_dynamic_batch(check):
    assert check("dynamic_batch")["input"] == [-1, 24] and 0 < check("dynamic_batch")["error"] < 0.02


def test_inputs_by_name(check):
    assert 0 < check("by_name")["error"] < 0.02


def test_torch_compile_builds_one_engine_for_all_batches(check):
    result = check("compiled")
    assert (result["engines"], result["inputs"]) == (1, [[-1, 24]]) and 0 < result["error"] < 0.02


def test_linears_with_a_common_input_quantize_it_once(check):
    result = check("two_linears")
    assert (result["engines"], result["quantize"], result["multiply"]) == (1, 1, 2) and 0 < result["error"] < 0.02


@pytest.mark.parametrize("name", ("changed_weight", "shared_graph"))
def test_another_weight_than_the_engines_is_an_error(check, name):
    result = check(name)
    assert result["type"] == "EngineError" and "constant of a TensorRT engine" in result["message"]


@pytest.mark.parametrize("name, reason", (("failed_build", "no kernel fits"), ("failed_conversion", "no float64")))
def test_a_failure_is_an_error_and_never_the_unconverted_graph(check, name, reason):
    result = check(name)
    assert result["type"] == "EngineError" and result["message"].endswith(reason)


def test_settings(check):
    result = check("settings")
    fixed = {"pass_through_build_failures": True, "dryrun": False}
    assert result["default"] == {"min_block_size": 1, "disable_tf32": True, **fixed}
    assert result["given"] == {"min_block_size": 3, "disable_tf32": True, "workspace_size": 1024, **fixed}
    assert "no setting 'min_blocksize'; did you mean 'min_block_size'?" in result["unknown"]
    assert "pass_through_build_failures is always True" in result["fixed"] and result["repeated"] is True


def test_each_converter_is_registered_once_and_takes_dynamic_shapes(check):
    converters = check("registry")["converters"]
    assert all(found == [True] for found in converters.values()) and len(converters) == 6


def test_saving_takes_what_the_example_gives_it(check):
    result = check("saving")
    assert {"module", "file_path", "kwarg_inputs"} <= set(result["save"]) and "file_path" in result["load"]
