"""A decoder with its past: keys and values as plain inputs and outputs, so that a file generates token by token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from int8pass.errors import ExportError, MissingDependencyError

_PAST, _BATCH, _LENGTH = 3, 2, 4  # of the example; sizes that differ, and none of them 1


class DecoderWithPast(nn.Module):
    """A transformers causal language model as a function of plain tensors.

    forward(input_ids int64[B, S], attention_mask int64[B, P + S], past: for each layer its keys and values, each
    [B, H, P, D]) returns logits [B, S, V] and the present in the order of the past, each [B, H, P + S, D]. P may be 0.
    Parameters have the names that the model gives them, so that a profile of the model is one of this module.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules = model._modules
        self._parameters = model._parameters
        self._buffers = model._buffers
        object.__setattr__(self, "_model", model)  # not a child: its names stay as they are
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        cache = _cache(past)
        output = self._model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, return_dict=True
        )
        present = (part for layer in output.past_key_values.layers for part in (layer.keys, layer.values))
        return (output.logits, *present)


def _cache(past: Sequence[Tensor]) -> Any:
    try:
        from transformers import DynamicCache
    except ImportError as error:
        raise MissingDependencyError(
            "decoders with past key values need transformers: pip install 'int8pass[examples]'"
        ) from error
    pairs = list(zip(past[::2], past[1::2], strict=True))
    return DynamicCache(pairs)


def is_decoder(model: nn.Module) -> bool:
    """Whether a model is a transformers causal language model whose state is keys and values alone."""
    config = getattr(model, "config", None)
    named = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return named and not getattr(config, "is_encoder_decoder", False)


def with_past(model: nn.Module) -> tuple[DecoderWithPast, dict[str, Any], dict[str, Any]]:
    """The module, example keyword arguments and dynamic shapes to export a decoder with past key values.

    batch, length and past length may change from call to call. Raises ExportError where the state of the model is
    not keys and values.
    """
    wrapped = DecoderWithPast(model)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(_BATCH * (_PAST + _LENGTH)).reshape(_BATCH, -1) % vocabulary
    mask = torch.ones(_BATCH, _PAST + _LENGTH, dtype=torch.int64)
    try:
        with torch.no_grad():
            _, *past = wrapped(ids[:, :_PAST], mask[:, :_PAST], ())
    except (AttributeError, TypeError, ValueError) as error:
        raise ExportError(
            f"{type(model).__name__} has a state that is not keys and values of each layer ({error}); "
            "export it without a past"
        ) from error
    example = {"input_ids": ids[:, _PAST:].contiguous(), "attention_mask": mask, "past": tuple(past)}
    shapes = {
        "input_ids": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC},
        "attention_mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC},
        "past": tuple({0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in past),
    }
    return wrapped, example, shapes
