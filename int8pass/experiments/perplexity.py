"""Perplexity of a byte-level language model on held-out text."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from int8pass.experiments.training import next_byte_loss


def evenly_spaced_batches(text: Tensor, count: int, length: int, batch: int) -> list[Tensor]:
    """`count` pieces of uint8[bytes], evenly spaced from start to end: int64[<= batch, length + 1] each."""
    starts = torch.linspace(0, len(text) - length - 1, count, dtype=torch.float64).long()
    pieces = torch.stack([text[start : start + length + 1] for start in starts.tolist()]).long()
    return list(pieces.split(batch))


@torch.no_grad()
def perplexity(model: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> float:
    """exp of the mean cross-entropy over all predicted bytes of int64[B, S + 1] batches; sums are float64."""
    nats = sum(float(next_byte_loss(model, batch)) * len(batch) for batch in batches)
    return math.exp(nats / sum(map(len, batches)))
