"""free_weights: rewritten weights are released, reading one raises, every other tensor stays."""

import copy
import io
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from int8pass.errors import ConfigError, FreedWeightError
from int8pass.freed_parameter import FreedParameter
from tests.backend.models import compiled
from tests.linear_models import HIDDEN, IN, OUT, Mlp, activation, frozen

ROOT = Path(__file__).parent.parent.parent


class Embedder(nn.Module):
    """An embedding, a rewritten Linear, a Linear to skip, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, IN)
        self.body = nn.Linear(IN, IN)
        self.kept = nn.Linear(IN, IN)
        self.lm_head = nn.Linear(IN, 16, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.lm_head(self.kept(torch.relu(self.body(self.embedding(tokens)))))


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_freed_weights_give_the_result_of_dequantized_outlier_weights(lowering):
    model, x = frozen(Mlp()), activation(5)
    expected = compiled(copy.deepcopy(model), options={"lowering": lowering, "outlier_weights": "dequantized"})(x)
    run = compiled(model, options={"lowering": lowering, "free_weights": True})
    for _ in range(2):
        torch.testing.assert_close(run(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_freeing_releases_rewritten_weights_only(lowering):
    model = frozen(Embedder())
    storages = {name: parameter.untyped_storage() for name, parameter in model.named_parameters()}
    body = weakref.ref(storages.pop("body.weight"))
    sizes = {name: storage.nbytes() for name, storage in storages.items()}
    run = compiled(model, options={"lowering": lowering, "free_weights": True, "skip_modules": ("kept",)})
    run(torch.arange(6))

    with torch._C.DisableTorchFunctionSubclass():
        assert model.body.weight.untyped_storage().nbytes() == 0
    assert body() is None, "something still holds the float weight"
    assert {name: storage.nbytes() for name, storage in storages.items()} == sizes
    assert not any(isinstance(module.weight, FreedParameter) for module in (model.kept, model.embedding))
    assert run(torch.arange(6)).isfinite().all()


def freed_model():
    model = frozen(Mlp())
    run = compiled(model, options={"free_weights": True})
    run(activation(5))
    return model, run


READS = {
    "state_dict": lambda model: model.state_dict(),
    "eager forward": lambda model: model(activation(5)),
    "save the state": lambda model: torch.save(model.state_dict(), io.BytesIO()),
    "save the model": lambda model: torch.save(model, io.BytesIO()),
    "save the weight": lambda model: torch.save(model.up.weight, io.BytesIO()),
    "arithmetic": lambda model: model.up.weight + 1,
    "reflected arithmetic": lambda model: 1 - model.up.weight,
    "beside another tensor": lambda model: torch.ones(HIDDEN, IN) + model.up.weight,
    "matrix product": lambda model: activation(5) @ model.up.weight.t(),
    "write": lambda model: model.up.weight.copy_(torch.zeros(HIDDEN, IN)),
    "write through data": lambda model: model.up.weight.data.zero_(),
    "fill": lambda model: nn.init.zeros_(model.up.weight),
    "load_state_dict": lambda model: model.load_state_dict(Mlp().state_dict()),
    "item": lambda model: model.up.weight[0, 0].item(),
    "numpy": lambda model: model.up.weight.numpy(),
    "list": lambda model: model.up.weight.tolist(),
    "deepcopy": lambda model: copy.deepcopy(model),
    "cast": lambda model: model.to(torch.bfloat16),
    "clone": lambda model: model.up.weight.clone(),
    "detach": lambda model: model.up.weight.detach(),
    "storage": lambda model: model.up.weight.untyped_storage(),
    "address": lambda model: model.up.weight.data_ptr(),
    "iteration": lambda model: list(model.up.weight),
    "equality": lambda model: torch.equal(model.up.weight, torch.zeros(HIDDEN, IN)),
    "from another tensor": lambda model: torch.zeros(HIDDEN, IN).copy_(model.up.weight),
    "norm": lambda model: nn.utils.get_total_norm(model.parameters()),
}


@pytest.mark.parametrize("read", READS)
def test_reading_a_freed_weight_raises(read):
    model, _ = freed_model()
    with pytest.raises((FreedWeightError, RuntimeError), match=r"released by free_weights=True"):
        READS[read](model)


def test_metadata_of_a_freed_weight_can_be_read():
    model, _ = freed_model()
    weight = model.up.weight
    assert isinstance(weight, nn.Parameter)
    assert weight.shape == weight.size() == (HIDDEN, IN) and weight.dim() == weight.ndim == 2
    assert weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() == HIDDEN * IN
    assert weight.stride() == (IN, 1) and weight.element_size() == 4 and weight.is_floating_point()
    assert not weight.requires_grad and weight.is_leaf and weight.grad is None
    assert len(weight) == HIDDEN and weight in {weight}
    assert f"({HIDDEN}, {IN})" in repr(weight) and "float32" in repr(weight)
    assert "in_features=32" in repr(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == HIDDEN * IN + HIDDEN + OUT * HIDDEN + OUT


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_freed_weights_survive_recompiles(lowering, quantized_shapes, programs):
    model = frozen(Mlp())
    twin = compiled(copy.deepcopy(model), options={"outlier_weights": "dequantized"})
    run = compiled(model, options={"lowering": lowering, "free_weights": True})
    first = [activation(*leading) for leading in ((5,), (9,), (2, 3), (4, 7))]
    results = [run(x) for x in first]
    assert len(programs) >= 3
    assert len(quantized_shapes) == 2
    for x, result in zip(first, results, strict=True):
        torch.testing.assert_close(result, twin(x), rtol=1e-4, atol=1e-4)


def test_code_that_was_compiled_without_freeing_is_compiled_to_free_once(programs):
    x = activation(5)
    compiled(frozen(Mlp()))(x)
    before = len(programs)
    run = compiled(frozen(Mlp()), options={"free_weights": True})
    for _ in range(3):
        run(x)
    assert len(programs) == before + 1


def test_a_compilation_that_freed_nothing_does_not_count(programs):
    model, x = Mlp(), activation(5)
    run = compiled(model, options={"free_weights": True})
    run(x)  # its weights want gradients
    before = len(programs)
    with torch.no_grad():
        for _ in range(3):
            run(x)
    assert len(programs) == before + 1
    assert any(isinstance(parameter, FreedParameter) for parameter in model.parameters())


def test_storage_shared_with_another_tensor_stays():
    fused = torch.randn(2 * OUT, IN)
    kept = fused.clone()
    first, second = frozen(nn.Linear(IN, OUT)), frozen(nn.Linear(IN, OUT))
    first.weight = nn.Parameter(fused[:OUT], requires_grad=False)
    second.weight = nn.Parameter(fused[OUT:], requires_grad=False)
    compiled(first, options={"free_weights": True})(activation(5))
    assert isinstance(first.weight, FreedParameter)
    assert torch.equal(fused, kept) and torch.equal(second.weight, kept[OUT:])


TIED_OVER_BREAK = """
import sys, torch
from tests.backend.models import TiedOverBreak
options = {"free_weights": True, "skip_modules_default": False, "lowering": sys.argv[1]}
run = torch.compile(TiedOverBreak(), backend="int8mixed", options=options)
first = run(torch.arange(6))
try:
    second = run(torch.arange(6))
except Exception as error:
    assert "released by free_weights=True" in str(error), error
else:
    assert torch.equal(first, second)
"""


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_weight_that_another_graph_reads_in_float_stays_or_raises(lowering):
    command = [sys.executable, "-c", TIED_OVER_BREAK, lowering]  # a wrong read would kill this process
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_original_outlier_weights_cannot_be_freed():
    with pytest.raises(BackendCompilerFailed, match="ConfigError: outlier_weights='original'") as caught:
        compiled(frozen(Mlp()), options={"free_weights": True, "outlier_weights": "original"})(activation(5))
    assert isinstance(caught.value.inner_exception, ConfigError)


def test_trained_weights_are_not_freed():
    model = Mlp()
    with pytest.warns(UserWarning, match="int8mixed left Linears"):
        compiled(model, options={"free_weights": True})(activation(5)).sum().backward()
    assert not any(isinstance(parameter, FreedParameter) for parameter in model.parameters())
