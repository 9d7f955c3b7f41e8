"""Which rewritten Linears the fused CPU kernel takes, and what stays."""

import pytest
import torch
from torch import nn

from int8pass import calibrate
from int8pass.kernels.cpu import build, fused
from int8pass.weight_cache import WEIGHTS

pytestmark = [
    pytest.mark.inductor,
    pytest.mark.skipif(not fused.is_available(), reason="the fused kernel needs a compiler"),
]


class SharedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(64, 48), nn.Linear(64, 48, bias=False)

    def forward(self, x):
        return self.query(x) + self.key(x)


def compiled_stages(model, x, tmp_path, **options):
    torch._dynamo.reset()
    model = model.eval().requires_grad_(False)
    y = torch.compile(model, backend="int8mixed", options={"dump_dir": str(tmp_path), **options})(x)
    return y, (tmp_path / "graph-000" / "07-fuse_cpu_linear.txt").read_text()


@pytest.mark.parametrize("options", [{}, {"threshold": 0.0}, {"outliers": "token"}, {"outlier_weights": "dequantized"}])
def test_linears_with_one_input_share_its_quantization(tmp_path, options):
    torch.manual_seed(0)
    model, x = SharedInput(), torch.randn(7, 64)
    x[:, 3] *= 20
    y, text = compiled_stages(model, x, tmp_path, **options)
    assert text.count("= int8pass.cpu_quantize(") == 1
    assert text.count("= int8pass.cpu_linear(") == 2
    assert "int8pass.int8_mm" not in text and "_codes" not in text
    torch._dynamo.reset()
    unfused = torch.compile(model, backend="int8mixed", options={"lowering": "eager", **options})(x)
    torch.testing.assert_close(y, unfused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.0}, {"outliers": "token"}, {"outlier_weights": "dequantized"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_with_an_input_of_its_own_is_one_op(tmp_path, options, dtype):
    torch.manual_seed(0)
    model, x = nn.Linear(64, 48, dtype=dtype), torch.randn(2, 7, 64, dtype=dtype).transpose(0, 1)
    x[..., 3] *= 20
    y, text = compiled_stages(model, x, tmp_path, **options)
    assert text.count("= int8pass.cpu_int8_linear(") == 1
    assert "cpu_quantize" not in text and "cpu_linear" not in text and "_codes" not in text
    torch._dynamo.reset()
    unfused = torch.compile(model, backend="int8mixed", options={"lowering": "eager", **options})(x)
    torch.testing.assert_close(y, unfused, rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=1e-5)


@pytest.mark.parametrize("columns", [(3, 9), ()])
@pytest.mark.parametrize("op", ["cpu_quantize", "cpu_int8_linear"])
def test_the_columns_of_a_profile_are_fused(tmp_path, columns, op):
    torch.manual_seed(0)
    model = (SharedInput() if op == "cpu_quantize" else nn.Linear(64, 48)).requires_grad_(False)
    x = torch.randn(7, 64).clamp(-3, 3)
    x[:, list(columns)] *= 20
    profile = calibrate(model, [x], progress=False)
    y, text = compiled_stages(model, x, tmp_path, profile=profile)
    assert text.count(f"= int8pass.{op}(") == 1
    assert "int8pass.int8_mm" not in text and "column_mask" not in text
    assert (str(columns) in text) == bool(columns)
    torch._dynamo.reset()
    options = {"lowering": "eager", "profile": profile}
    unfused = torch.compile(model, backend="int8mixed", options=options)(x)
    torch.testing.assert_close(y, unfused, rtol=1e-5, atol=1e-5)


def test_int8_weights_are_held_packed_alone(tmp_path):
    model = nn.Linear(64, 48)
    compiled_stages(model, torch.randn(2, 64), tmp_path)
    weight = WEIGHTS.get(model.weight, "", lambda tensor: tensor).quantized
    assert weight.nbytes == 64 * 64 + 48 * 4 + 48 * 4


def test_ops_run_one_by_one_where_the_kernel_cannot_be_built(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(build, "load", lambda: "no compiler")
    fused.is_available.cache_clear()
    try:
        model, x = SharedInput(), torch.randn(7, 64)
        y, text = compiled_stages(model, x, tmp_path)
        assert text.count("= int8pass.int8_mm(") == 2
        torch.testing.assert_close(y, model(x), rtol=0.1, atol=0.1)
    finally:
        fused.is_available.cache_clear()
