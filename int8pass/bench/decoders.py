"""Decoder models of random weights with outlier features, and what every contestant does with one.

Nothing is downloaded. In each layer's LayerNorms six features get a gain of 20, so that the Linears after them meet the
outliers that LLM.int8() is about (random weights alone have none). GPT-2's Conv1D, which bitsandbytes, torchao and
quantize_dynamic leave in float, are turned to nn.Linear for those.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

OUTLIER_FEATURES = 6
OUTLIER_GAIN = 20.0
LENGTH = 128  # tokens of a prompt
NEW_TOKENS = 32


class Decoder(Protocol):
    """A prepared model with a cache of keys and values. All logits are [B, V], of the last position."""

    def prefill(self, ids: Tensor) -> Tensor:
        """Logits after ids int64[B, S], with nothing before them; fills the cache."""

    def next(self, token: Tensor) -> Tensor:
        """Logits after one more token, int64[1, 1], of the one sequence in the cache."""

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens of the one sequence in the cache."""


def generate(decoder: Decoder, ids: Tensor, count: int) -> Tensor:
    """`count` more tokens after ids [1, S], each the likeliest: int64[1, count]."""
    tokens = [decoder.prefill(ids).argmax(-1, keepdim=True)]
    while len(tokens) < count:
        tokens.append(decoder.next(tokens[-1]).argmax(-1, keepdim=True))
    return torch.cat(tokens, 1)


def gpt2(quick: bool = False) -> nn.Module:
    """GPT-2 of 124M parameters, float32, eval, frozen; quick: one layer of width 64."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 1, "n_embd": 64, "n_head": 2} if quick else {}
    return _ready(GPT2LMHeadModel(GPT2Config(**sizes, **_vocabulary(quick, 50257))))


def opt(quick: bool = False) -> nn.Module:
    """OPT of 125M parameters, float32, eval, frozen; quick: one layer of width 64."""
    from transformers import OPTConfig, OPTForCausalLM

    small = {
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 128,
        "num_attention_heads": 2,
    }
    return _ready(OPTForCausalLM(OPTConfig(**(small if quick else {}), **_vocabulary(quick, 50272))))


def _vocabulary(quick: bool, size: int) -> dict[str, int]:
    return {"vocab_size": 512 if quick else size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _ready(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and (".h." in name or ".layers." in name):
                step = module.weight.numel() // OUTLIER_FEATURES
                module.weight[step // 2 :: step][:OUTLIER_FEATURES] = OUTLIER_GAIN
    return model.eval().requires_grad_(False)


def with_linears(model: nn.Module) -> nn.Module:
    """Replace each Conv1D (weight [K, N]) by an nn.Linear (weight [N, K]), in place."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(*module.weight.shape, device="meta")
            linear.weight = nn.Parameter(module.weight.t().contiguous(), requires_grad=False)
            linear.bias = module.bias
            model.set_submodule(name, linear.train(module.training))
    return model


def without_head(quantize: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """A quantizer for all Linears but the head, which LLM.int8() and its peers leave in float."""

    def run(model: nn.Module) -> nn.Module:
        if not hasattr(model, "lm_head"):
            return quantize(model)
        head, model.lm_head = model.lm_head, nn.Identity()
        changed = quantize(with_linears(model))
        changed.lm_head = head
        return changed

    return run


class TorchDecoder:
    """A transformers model, whose forward may be compiled, with a static cache for each batch size."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        takes_cache = "cache" in inspect.signature(type(model).forward).parameters  # its name in newer transformers
        self._cache_argument = "cache" if takes_cache else "past_key_values"
        self._caches: dict[int, Any] = {}

    def prefill(self, ids: Tensor) -> Tensor:
        batch = ids.shape[0]
        if batch not in self._caches:
            self._caches[batch] = _static_cache(self._model, batch)
        _rewind(self._caches[batch], 0)
        return self._run(ids)

    def next(self, token: Tensor) -> Tensor:
        return self._run(token)

    def rewind(self, length: int) -> None:
        _rewind(self._caches[1], length)

    def _run(self, ids: Tensor) -> Tensor:
        cache = self._caches[ids.shape[0]]
        arguments = {self._cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        if self._model.config.model_type == "opt":
            arguments |= _positions(cache, ids)
        return self._model(input_ids=ids, **arguments).logits[:, -1]


def _positions(cache: Any, ids: Tensor) -> dict[str, Tensor]:
    """OPT would make a mask as long as the cache is full, to count positions: a shape that depends on data."""
    positions = cache.layers[0].cumulative_length + torch.arange(ids.shape[1])
    places = torch.arange(LENGTH + NEW_TOKENS).expand(ids.shape[0], -1)
    return {"position_ids": positions.expand_as(ids), "attention_mask": (places <= positions[-1]).long()}


def _static_cache(model: nn.Module, batch: int) -> Any:
    """Allocated at once: a cache that grows at its first use would be compiled twice."""
    from transformers import StaticCache

    config = model.config
    cache = StaticCache(config=config, max_cache_len=LENGTH + NEW_TOKENS)
    heads = config.num_attention_heads
    cache.early_initialization(batch, heads, config.hidden_size // heads, model.dtype, torch.device("cpu"))
    return cache


def _rewind(cache: Any, length: int) -> None:
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)
