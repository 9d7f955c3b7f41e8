"""Decoders with past keys and values generate in ONNX Runtime the tokens that the backend gives greedily."""

import pytest
import torch

from int8pass import calibrate
from int8pass.errors import ExportError
from int8pass.export.decoder import is_decoder, with_past
from tests import zoo
from tests.export.files import LEVELS, OnnxModel, exported
from tests.test_generate import gpt2, llama

NEW_TOKENS, PROMPT, VOCABULARY = 20, 10, 128
LAYERS = 2


def prompt():
    return torch.randint(3, VOCABULARY, (2, PROMPT), generator=torch.Generator().manual_seed(1))


def generated_by_the_backend(model, options):
    torch._dynamo.reset()
    forward = model.forward
    model.forward = torch.compile(forward, backend="int8mixed", options={**options, "lowering": "eager"})
    ids = prompt()
    settings = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, disable_compile=True)
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    model.forward = forward
    return tokens


def generated_by_the_file(run, width, heads):
    """Prefill with an empty past, then one token at a time; the end token is not chosen, as min_new_tokens says."""
    tokens = ids = prompt()
    past = [torch.empty(2, heads, 0, width) for _ in range(2 * LAYERS)]
    for _ in range(NEW_TOKENS):
        logits, *past = run(ids, torch.ones_like(tokens), *past)
        scores = logits[:, -1]
        scores[:, 2] = -torch.inf
        ids = scores.argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, ids], dim=1)
    return tokens


@pytest.mark.parametrize(
    ("make", "mode"),
    (
        (gpt2, "runtime"),
        (llama, "profile"),
        pytest.param(gpt2, "profile", marks=pytest.mark.slow),
        pytest.param(llama, "runtime", marks=pytest.mark.slow),
    ),
)
def test_greedy_tokens(make, mode, tmp_path):
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    wrapped, example, shapes = with_past(model)
    options = {"outliers": "token", "outlier_weights": "dequantized", "threshold": 3.0}
    if mode == "profile":
        batches = [{"input_ids": prompt(), "attention_mask": torch.ones_like(prompt())}]
        options = {"threshold": 3.0, "profile": calibrate(model, batches, options={"threshold": 3.0}, progress=False)}
    expected = generated_by_the_backend(model, options)
    path = exported(tmp_path / "decoder.onnx", wrapped, kwargs=example, dynamic_shapes=shapes, options=options)
    heads, _, width = example["past"][0].shape[1:]
    for optimize in LEVELS:
        assert torch.equal(generated_by_the_file(OnnxModel(path, optimize), width, heads), expected)


def test_what_is_a_decoder():
    assert is_decoder(zoo.build("llama")[0]) and is_decoder(zoo.build("gpt2")[0])
    assert not is_decoder(zoo.build("bert")[0]) and not is_decoder(zoo.build("t5")[0])
    assert not is_decoder(torch.nn.Linear(2, 2))


def test_a_state_that_is_not_keys_and_values():
    with pytest.raises(ExportError, match="not keys and values"):
        with_past(zoo.build("rwkv")[0])
