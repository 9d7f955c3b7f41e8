"""generate() through a compiled forward: the tokens of the eager lowering, no more recompiles than plain Inductor."""

import functools

import pytest
import torch
import transformers
from torch._dynamo.utils import counters

from int8pass import int8mixed

pytestmark = pytest.mark.inductor

VOCABULARY, PROMPT, NEW_TOKENS = 128, 10, 64
SIZES = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.125)


def gpt2():
    config = transformers.GPT2Config(**SIZES, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(config)


def llama():
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.LlamaConfig(**SIZES, **sizes, num_key_value_heads=2, max_position_embeddings=128)
    return transformers.LlamaForCausalLM(config)


CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}}


def generate(make, backend, cache):
    """The tokens that greedy generation gives, int64 [2, PROMPT + NEW_TOKENS], and the graphs that were compiled."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = make().eval()
    prompt = torch.randint(3, VOCABULARY, (2, PROMPT))
    if backend is not None:
        model.forward = torch.compile(model.forward, backend=backend)
    settings = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, disable_compile=True)
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **CACHES[cache])
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    return tokens, graphs


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("make", (gpt2, llama))
def test_greedy_tokens_and_recompiles(make, cache):
    tokens, graphs = generate(make, int8mixed, cache)
    assert tokens.shape == (2, PROMPT + NEW_TOKENS)
    unfused, _ = generate(make, functools.partial(int8mixed, options={"lowering": "eager"}), cache)
    assert torch.equal(tokens, unfused)
    _, plain_graphs = generate(make, "inductor", cache)
    assert 0 < graphs <= plain_graphs
