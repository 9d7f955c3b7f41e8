"""Int8 products in multiples of 32, for ONNX Runtime on CUDA: the results are the same, on its CPU provider."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from int8pass import calibrate, quantize_
from tests import reference
from tests.export.files import LEVELS, OnnxModel, exported
from tests.export.test_dequantize_to_scaled_int8_mm import calls, rewritten
from tests.linear_models import activation, frozen

SIZES = ((33, 40), (32, 7), (64, 96), (5, 32))


def int8_sizes(path):
    weights = (each for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.INT8)
    return [tuple(weight.dims) for weight in weights if len(weight.dims) == 2]


@pytest.mark.parametrize("k, n", SIZES, ids=str)
@pytest.mark.parametrize("mode", ("runtime", "profile"))
def test_equals_the_reference(k, n, mode, tmp_path):
    torch.manual_seed(0)
    model, x = frozen(nn.Linear(k, n)), torch.randn(6, k)
    x[:, 3] *= 20
    options = {"profile": calibrate(model, [x], progress=False)} if mode == "profile" else None
    path = exported(tmp_path / "model.onnx", model, x, options=options, target="onnxruntime-cuda")
    assert int8_sizes(path) == [(-(-k // 32) * 32, -(-n // 32) * 32)]
    y, magnitude = reference.linear(
        x.numpy(),
        model.weight.numpy(),
        model.bias.numpy(),
        outlier_weights=reference.PROFILE_WEIGHTS if mode == "profile" else "dequantized",
    )
    tolerance = reference.tolerance(y, magnitude, k, np.finfo(np.float32).eps)
    for optimize in LEVELS:
        result = OnnxModel(path, optimize)(x)[0].numpy()
        assert result.shape == (6, n) and (np.abs(result - y) <= tolerance).all()


def test_only_what_needs_it_is_padded(tmp_path):
    kinds = {}
    for target, (k, n) in (("onnxruntime-cuda", (64, 96)), ("onnxruntime-cpu", (33, 40)), ("tensorrt", (33, 40))):
        model, x = frozen(nn.Linear(k, n, bias=False)), torch.randn(6, k)
        path = exported(tmp_path / "model.onnx", model, x, target=target, options={"threshold": 0.0})
        kinds[target] = {node.op_type for node in onnx.load(path).graph.node} & {"Pad", "Slice"}
        assert int8_sizes(path) == [(k, n)]
    assert set().union(*kinds.values()) == set()


def test_modules_that_hold_int8(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(33, 40), nn.ReLU(), nn.Linear(40, 8)), activation(5, columns=33)
    model = quantize_(frozen(model))
    path = exported(tmp_path / "model.onnx", model, x, target="onnxruntime-cuda")
    assert sorted(int8_sizes(path)) == [(64, 32), (64, 64)]
    for optimize in LEVELS:
        torch.testing.assert_close(OnnxModel(path, optimize)(x)[0], model(x), rtol=1e-4, atol=1e-4)


def test_golden():
    assert calls(rewritten(multiple=24, outlier_weights="dequantized")) == [
        "%pad_features : f32[4, 48] = int8pass.pad_features(%input, 48)",
        "%outlier_mask : bool[48] = int8pass.outlier_mask(%pad_features, 6.0, 'column')",
        "%scale_per_token : f32[4] = int8pass.scale_per_token(%pad_features, %outlier_mask)",
        "%quantize_per_token : i8[4, 48] = int8pass.quantize_per_token(%pad_features, %scale_per_token, %outlier_mask)",
        "%gathered_mm : f32[4, 16] = int8pass.gathered_mm(%pad_features, %outlier_mask, %p_weight_inputs_first, "
        "%p_weight_scale)",
        "%scaled_int8_mm : f32[4, 16] = int8pass.scaled_int8_mm(%quantize_per_token, %scale_per_token, "
        "%p_weight_inputs_first, %p_weight_scale, %gathered_mm, %p_bias, float32)",
    ]
