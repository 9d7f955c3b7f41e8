"""What engines are made and run with that needs no TensorRT: shapes, reports, arguments, progress, errors."""

import importlib.util
import io
import json

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import int8pass
from int8pass.errors import ConfigError, EngineError, Int8PassError, MissingDependencyError
from int8pass.export.tensorrt.engine import EngineTensor, bind, check_tensor
from int8pass.export.tensorrt.layers import EngineReport, Layer
from int8pass.export.tensorrt.progress import Messages, PhaseBars
from int8pass.export.tensorrt.shapes import ShapeRange, check_names, parse_shapes, shape_range
from tests.export.tensorrt.onnx_text import PLAIN, write

CPU = torch.device("cpu")
without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")


# --- shapes


def test_default_shapes():
    assert shape_range("x", (2, 3), None) is None
    assert shape_range("x", (-1, 64), None) == ShapeRange((1, 64), (8, 64), (32, 64))
    assert shape_range("x", (-1, 12, -1, 64), None) == ShapeRange((1, 12, 1, 64), (8, 12, 128, 64), (32, 12, 512, 64))


def test_given_shapes():
    given = [[1, 64], (2, 64), (4, 64)]
    assert shape_range("x", (-1, 64), given) == ShapeRange((1, 64), (2, 64), (4, 64))
    assert shape_range("x", (1, 64), [(1, 64)] * 3) is None


@pytest.mark.parametrize(
    "given, words",
    (
        ([(1, 64), (2, 64)], "three are needed (smallest, typical, largest), not 2"),
        ([(1,), (2,), (4,)], "(1,) has 1 dimensions, the input 2"),
        ([(1, 32), (2, 64), (4, 64)], "(1, 32) differs from (-1, 64) in a dimension that is fixed"),
        ([(4, 64), (2, 64), (8, 64)], "sizes must not fall"),
        ([(1, 64), (2.5, 64), (8, 64)], "2.5 is not a size"),
        ([(-1, 64), (2, 64), (8, 64)], "-1 is not a size"),
        ([(True, 64), (2, 64), (8, 64)], "True is not a size"),
    ),
)
def test_shapes_that_do_not_fit(given, words):
    with pytest.raises(ConfigError) as caught:
        shape_range("x", (-1, 64), given)
    assert words in str(caught.value) and "'x'" in str(caught.value)


def test_an_unknown_input_names_the_nearest():
    with pytest.raises(ConfigError, match="no input 'input_id'; did you mean 'input_ids'"):
        check_names({"input_id": ()}, ["attention_mask", "input_ids"])


def test_shapes_of_the_command_line():
    assert parse_shapes("a=b:0=1x8,2x8,4x8") == ("a=b:0", [(1, 8), (2, 8), (4, 8)])
    for text in ("x", "x=1x8", "x=1x8,2x8,4x8,5x8", "=1,2,3", "x=1xa,2x8,4x8"):
        with pytest.raises(ConfigError, match="write NAME=SMALLEST,TYPICAL,LARGEST"):
            parse_shapes(text)


# --- layers, written by hand with the fields that TensorRT's documentation names for 10 and for 11

TENSORRT_10 = {
    "Layers": [
        {
            "Name": "/fc/MatMul + /fc/Mul",
            "LayerType": "CaskGemmConvolution",
            "Inputs": [{"Name": "codes", "Dimensions": [8, 64], "Format/Datatype": "Row major Int8 format"}],
            "Outputs": [{"Name": "y", "Dimensions": [8, 32], "Format/Datatype": "Row major linear FP32"}],
            "TacticName": "sm90_xmma_gemm_i8f32_i8i32_f32",
        },
        {
            "Name": "softmax",
            "LayerType": "kgen",
            "Inputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "z", "Format/Datatype": "Row major linear FP32"}],
        },
    ],
    "Bindings": ["x", "z"],
}
TENSORRT_11 = {
    "Layers": [
        {
            "Name": "/fc/MatMul + /fc/Mul",
            "LayerType": "CaskGemmConvolution",
            "Inputs": [{"Name": "codes", "Format": "Row major linear", "DataType": "Int8"}],
            "Outputs": [{"Name": "y", "Format": "Row major linear", "DataType": "Float"}],
        },
        {"Name": "softmax", "LayerType": "kgen", "Inputs": [{"DataType": "Float"}], "Outputs": [{"DataType": "Float"}]},
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Float"}],
}


@pytest.mark.parametrize("document", (TENSORRT_10, TENSORRT_11), ids=("10", "11"))
def test_report_says_which_layers_read_int8(document):
    report = EngineReport.from_inspector(json.dumps(document), "10.15.1", 2_500_000)
    assert [layer.reads_int8 for layer in report.layers] == [True, False]
    lines = str(report).splitlines()
    assert lines[1] == "int8  /fc/MatMul + /fc/Mul  CaskGemmConvolution"
    assert lines[2] == "      softmax               kgen"
    assert lines[-1] == "1 of 2 layers read int8; TensorRT 10.15.1, 2.5 MB of engine"
    written = json.loads(report.to_json())
    assert written["int8_layers"] == 1 and written["layers"][0]["reads_int8"] is True
    assert written["layers"][1]["outputs"] == list(report.layers[1].outputs)


def test_report_of_an_engine_without_details():
    report = EngineReport.from_inspector(json.dumps({"Layers": ["one", "two"]}), "11.4", 10)
    assert report.layers == (Layer("one"), Layer("two")) and "0 of 2 layers" in str(report)


# --- arguments of an engine

X = EngineTensor("x", torch.float16, (-1, 8), ShapeRange((1, 8), (2, 8), (4, 8)))
MASK = EngineTensor("mask", torch.int64, (2,))


def test_tensors_by_position_and_by_name():
    one, two = torch.zeros(1), torch.zeros(2)
    assert bind((X, MASK), (one,), {"mask": two}) == {"x": one, "mask": two}
    assert list(bind((X, MASK), (), {"mask": two, "x": one})) == ["mask", "x"]


@pytest.mark.parametrize(
    "args, kwargs, words",
    (
        ((1, 2, 3), {}, "3 tensors for the inputs x, mask"),
        ((1,), {"x": 1, "mask": 2}, "given twice: x"),
        ((1,), {"masks": 2}, "unknown: masks; the inputs are x, mask"),
        ((1,), {}, "missing: mask"),
    ),
)
def test_tensors_that_do_not_bind(args, kwargs, words):
    with pytest.raises(EngineError, match=words):
        bind((X, MASK), args, kwargs)


@pytest.mark.parametrize("rows", (1, 3, 4))
def test_tensors_that_fit(rows):
    check_tensor(X, torch.zeros(rows, 8, dtype=torch.float16), CPU)
    check_tensor(MASK, torch.zeros(2, dtype=torch.int64), CPU)


@pytest.mark.parametrize(
    "tensor, words",
    (
        (torch.zeros(2, 8), r"'x' is torch.float32; the engine takes torch.float16: x.to\(torch.float16\)"),
        (torch.zeros(2, 8, dtype=torch.float16, device="meta"), "'x' is on meta; the engine runs on cpu"),
        (torch.zeros(5, 8, dtype=torch.float16), r"shape \(5, 8\); the engine takes \(1, 8\) to \(4, 8\)"),
        (torch.zeros(0, 8, dtype=torch.float16), r"shape \(0, 8\)"),
        (torch.zeros(2, 9, dtype=torch.float16), r"shape \(2, 9\)"),
        (torch.zeros(8, dtype=torch.float16), r"shape \(8,\)"),
        ([1.0], "'x' must be a tensor, not list"),
    ),
)
def test_tensors_that_do_not_fit(tensor, words):
    with pytest.raises(EngineError, match=words):
        check_tensor(X, tensor, CPU)


# --- progress and messages


def test_phases_are_nested_bars():
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as progress:
        bars = PhaseBars(progress)
        bars.phase_start("Building", None, 3)
        bars.phase_start("Timing", "Building", 10)
        assert [task.description for task in progress.tasks] == ["Building", "  Timing"]
        assert bars.step_complete("Timing", 4) is True
        assert [(task.completed, task.total) for task in progress.tasks] == [(0, 3), (5, 10)]
        bars.phase_finish("Timing")
        bars.phase_finish("Timing")
        assert [task.description for task in progress.tasks] == ["Building"]
        assert bars.step_complete("Timing", 5) is True


def test_an_interrupt_stops_the_build():
    class Interrupted(Progress):
        def update(self, *args, **kwargs):
            raise KeyboardInterrupt

    bars = PhaseBars(Interrupted(console=Console(file=io.StringIO())))
    bars.phase_start("Building", None, 3)
    assert bars.step_complete("Building", 0) is False
    assert bars.cancelled


def test_the_last_errors_are_kept(caplog):
    messages = Messages()
    assert str(messages) == "TensorRT gave no reason"
    for number in range(9):
        messages.record("ERROR", f"error {number}")
    messages.record("WARNING", "slow")
    messages.record("VERBOSE", "detail")
    assert str(messages).splitlines() == [f"error {number}" for number in range(4, 9)]
    assert "slow" in caplog.text and "detail" not in caplog.text


# --- without TensorRT


@without_tensorrt
def test_without_tensorrt_building_and_loading_say_what_to_install(tmp_path):
    path = write(PLAIN, tmp_path / "model.onnx")
    for call in (lambda: int8pass.build_engine(path, tmp_path / "x.engine"), lambda: int8pass.load_engine(path)):
        with pytest.raises(
            MissingDependencyError, match=r"pip install 'int8pass\[tensorrt\]' on a machine with an NVIDIA"
        ):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@without_tensorrt
def test_command_without_tensorrt_is_one_error(run, tmp_path):
    path = write(PLAIN, tmp_path / "model.onnx")
    code, out, err = run("export", "engine", path, "-o", tmp_path / "x.engine")
    assert (code, out) == (2, "") and err.startswith("error: engines need TensorRT") and "Traceback" not in err


def test_command_help_says_what_it_needs_and_that_it_has_not_run(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run("export", "engine", "--help")
    assert code == 0
    for words in ("TensorRT 10 or 11", "pip install 'int8pass[tensorrt]'", "Not yet run", "--shape", "--timing-cache"):
        assert words in out


def test_the_error_is_one_of_int8pass():
    assert issubclass(EngineError, Int8PassError)
