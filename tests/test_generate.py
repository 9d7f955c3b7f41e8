"""generate() through a compiled forward: the tokens of the eager lowering, no more recompiles than plain Inductor.

The models are trained to alternate two tokens, so that no greedy choice is a near tie, which rounding could tip.
"""

import copy
import functools

import pytest
import torch
import transformers
from torch._dynamo.utils import counters

from int8pass import int8mixed

pytestmark = pytest.mark.inductor

VOCABULARY, PROMPT, NEW_TOKENS = 128, 10, 64
SIZES = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def gpt2():
    config = transformers.GPT2Config(**SIZES, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(config)


def llama():
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.LlamaConfig(**SIZES, **sizes, num_key_value_heads=2, max_position_embeddings=128)
    return transformers.LlamaForCausalLM(config)


def alternating(batch, length):
    """int64 [batch, length]: two random tokens a row, in turn."""
    return torch.randint(3, VOCABULARY, (batch, 2)).repeat(1, length // 2)


@functools.cache
def trained(make):
    torch.manual_seed(0)
    model = make().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        tokens = alternating(32, PROMPT + NEW_TOKENS)
        logits = model(tokens).logits[:, 1:-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 2:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}}


def generate(make, backend, cache):
    """The tokens that greedy generation gives, int64 [2, PROMPT + NEW_TOKENS], and the graphs that were compiled."""
    torch._dynamo.reset()
    counters.clear()
    model = copy.deepcopy(trained(make))
    torch.manual_seed(1)
    prompt = alternating(2, PROMPT)
    if backend is not None:
        model.forward = torch.compile(model.forward, backend=backend)
    settings = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, disable_compile=True)
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **CACHES[cache])
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    return tokens, graphs


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("make", (pytest.param(gpt2, marks=pytest.mark.slow), llama))
def test_greedy_tokens_and_recompiles(make, cache):
    tokens, graphs = generate(make, int8mixed, cache)
    assert tokens.shape == (2, PROMPT + NEW_TOKENS)
    unfused, _ = generate(make, functools.partial(int8mixed, options={"lowering": "eager"}), cache)
    assert torch.equal(tokens, unfused)
    assert torch.equal(tokens[:, 2:], tokens[:, :-2])
    _, plain_graphs = generate(make, "inductor", cache)
    assert 0 < graphs <= plain_graphs
