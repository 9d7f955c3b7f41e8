"""Tiny random models of transformers whose norms stand before Linears: RMSNorm written out, and LayerNorm."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported
import transformers

SIZES = dict(vocab_size=50)


def llama(layers=2, **sizes):
    config = transformers.LlamaConfig(
        **SIZES, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, **sizes,
    )  # fmt: skip
    return _frozen(transformers.LlamaModel(config))


def opt(layers=2):
    config = transformers.OPTConfig(
        **SIZES, hidden_size=32, ffn_dim=48, num_hidden_layers=layers, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=64,
    )  # fmt: skip
    return _frozen(transformers.OPTModel(config))


def gpt2(layers=2):
    config = transformers.GPT2Config(
        **SIZES, n_embd=32, n_layer=layers, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    )  # fmt: skip
    return _frozen(transformers.GPT2Model(config))


def call_of(model):
    """The last hidden states of token ids [B, S]."""
    return lambda ids: model(input_ids=ids, use_cache=False).last_hidden_state


def token_ids(batch, tokens):
    return torch.arange(batch * tokens).reshape(batch, tokens) % SIZES["vocab_size"]


def _frozen(model):
    return model.eval().requires_grad_(False)
