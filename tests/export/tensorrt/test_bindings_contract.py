"""int8pass against the real TensorRT Python bindings, with stand-ins for its libraries: evidence of the contract only.

Every name that is used exists, and errors are typed. Nothing is built or run: that takes the libraries and a GPU.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.tensorrt import stand_in_libraries
from tests.export.tensorrt.bindings_probe import ONLY_IN_10
from tests.export.tensorrt.onnx_text import PLAIN, write

pytestmark = stand_in_libraries.SKIPS


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bindings")
    libraries = stand_in_libraries.build(folder)
    model = write(PLAIN, folder / "model.onnx")
    command = [sys.executable, "-m", "tests.export.tensorrt.bindings_probe", libraries, model]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_every_name_that_is_used_exists(probe):
    assert {"IBuilderConfig.set_timing_cache", "IExecutionContext.execute_async_v3", "BuilderFlag.FP16"} <= set(
        probe["names"]
    )
    assert len(probe["names"]) > 50
    allowed = ONLY_IN_10 if int(probe["version"].partition(".")[0]) > 10 else set()
    assert set(probe["missing"]) == allowed


def test_progress_and_messages_derive_from_tensorrt_classes(probe):
    assert probe["monitor"] is True
    assert probe["logger"] == ["said"]


def test_without_a_gpu_building_is_one_typed_error(probe):
    error, message = probe["build"]
    assert error == "EngineError" and f"TensorRT {probe['version']} is installed and finds no GPU" in message
    assert not probe["written"]


def test_a_missing_model_is_one_typed_error(probe):
    error, message = probe["build_absent"]
    assert error == "OnnxFileError" and "there is no file" in message


def test_without_a_gpu_loading_is_one_typed_error(probe):
    error, message = probe["load"]
    assert error == "EngineError"
    assert "PyTorch must be a CUDA build" in message or "there is no file" in message
