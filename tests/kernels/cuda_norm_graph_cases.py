"""Whole graphs with quantization fused behind their norms, run: against float64, and against the graph without it."""

import pytest
import torch

from int8pass.binding import InputBinding
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.graph import operation
from int8pass.kernels.cuda import norms
from int8pass.torch_private import compiled_module
from tests.kernels.cuda_inputs import DEVICE
from tests.lower import norm_models
from tests.lower.fake_cuda import lower

MODELS = {"llama": norm_models.llama, "opt": norm_models.opt, "gpt2": norm_models.gpt2}


def lowered_call(call, **options):
    """A call, lowered for CUDA and run where the kernels are; the operations of its graph, once it has run."""
    operations = []

    def backend(graph_module, example_inputs):
        config, names = Int8MixedConfig.from_options(options), ModuleNames(compiled_module())
        program = lower(program_from_dynamo(graph_module, example_inputs, config, names))
        operations.extend(operation(node) for node in program.graph.nodes)
        binding = InputBinding(program)
        return lambda *args: program.graph_module(*binding(args))

    torch._dynamo.reset()
    return torch.compile(call, backend=backend, dynamic=False, fullgraph=True), operations


@pytest.fixture
def paying(monkeypatch):
    """Sets where it pays."""
    return lambda answer: monkeypatch.setattr(norms, "pays", lambda size, device: answer)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, outliers", [("llama", "column"), ("llama", "token"), ("opt", "column"), ("gpt2", "token")]
)
def test_models_of_transformers(paying, name, outliers):
    torch.manual_seed(0)
    model = MODELS[name]().to(DEVICE)
    for parameter in model.parameters():
        parameter.mul_(3.0)  # transformers initializes to little
    ids = norm_models.token_ids(1, 20).to(DEVICE)
    exact = norm_models.call_of(model.double())(ids)
    model.float()
    results = {}
    for fused in (True, False):
        paying(fused)
        call, operations = lowered_call(norm_models.call_of(model), threshold=2.0, outliers=outliers)
        results[fused] = call(ids)
        assert operations.count("cuda_norm_quantize") == (4 if fused else 0)
    errors = {fused: error(y, exact) for fused, y in results.items()}
    assert 0 < errors[True] < 0.03 and errors[True] < 1.2 * errors[False]
    assert error(results[True], results[False]) < 0.01  # a code may be another one where a norm is rounded otherwise


def error(y, exact):
    """Relative, by Frobenius norms."""
    return float((y.double() - exact.double()).norm() / exact.double().norm())
