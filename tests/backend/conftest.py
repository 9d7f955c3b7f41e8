"""What the tests of the backend start from, and what they watch: rewritten programs, quantized weights."""

import pytest

import int8pass.weight_cache
from int8pass import pipeline


@pytest.fixture(autouse=True)
def _fresh_compiler(fresh_compiler):
    """Every test of this folder starts so."""


@pytest.fixture
def programs(monkeypatch):
    """Every program that the pipeline rewrites, in order."""
    seen = []

    original = pipeline.run

    def run(*args, **keywords):
        program = original(*args, **keywords)
        if not any(program is known for known in seen):  # it is run a second time for the passes of its lowering
            seen.append(program)
        return program

    monkeypatch.setattr(pipeline, "run", run)
    return seen


@pytest.fixture
def quantized_shapes(monkeypatch):
    """The shape of every weight that is quantized, in order."""
    seen = []

    original = int8pass.weight_cache.quantize_weight

    def quantize(weight, form):
        seen.append(tuple(weight.shape))
        return original(weight, form)

    monkeypatch.setattr(int8pass.weight_cache, "quantize_weight", quantize)
    return seen
