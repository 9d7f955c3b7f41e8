"""What the tests of the backend start from, and what they watch: rewritten programs, quantized weights."""

import pytest
import torch

import int8pass.notices
import int8pass.weights
from int8pass import pipeline


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """Each test starts without compiled code and without warnings that were given already."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(int8pass.notices, "_warned", set())
    yield
    torch._dynamo.reset()


@pytest.fixture
def programs(monkeypatch):
    """Every program that the pipeline rewrites, in order."""
    seen = []

    original = pipeline.run

    def run(*args, **keywords):
        seen.append(original(*args, **keywords))
        return seen[-1]

    monkeypatch.setattr(pipeline, "run", run)
    return seen


@pytest.fixture
def quantized_shapes(monkeypatch):
    """The shape of every weight that is quantized, in order."""
    seen = []

    def quantize(weight, quantize=int8pass.weights.quantize_weight):
        seen.append(tuple(weight.shape))
        return quantize(weight)

    monkeypatch.setattr(int8pass.weights, "quantize_weight", quantize)
    return seen
