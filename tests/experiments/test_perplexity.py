"""Perplexity against float64 NumPy, and which pieces of text it is taken over."""

import numpy as np
import pytest
import torch

from int8pass.experiments.perplexity import evenly_spaced_batches, perplexity


def test_guessing_has_the_perplexity_of_the_vocabulary():
    batches = [torch.zeros(3, 9, dtype=torch.int64)]
    assert perplexity(lambda tokens: torch.zeros(*tokens.shape, 256), batches) == pytest.approx(256)


def test_batches_of_different_sizes_weigh_by_their_bytes():
    generator = torch.Generator().manual_seed(0)
    table = 3 * torch.randn(256, 256, generator=generator)
    batches = [torch.randint(256, (count, 6), generator=generator) for count in (4, 1)]
    tokens, scores = torch.cat(batches).numpy(), table.double().numpy()
    logits = scores[tokens[:, :-1]]
    normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(normalised, tokens[:, 1:, None], -1)
    assert perplexity(lambda part: table[part], batches) == pytest.approx(np.exp(-chosen.mean()), rel=1e-6)


def test_pieces_reach_from_the_start_to_the_end():
    text = torch.arange(201, dtype=torch.uint8)
    batches = evenly_spaced_batches(text, count=5, length=20, batch=2)
    pieces = torch.cat(batches)
    assert [len(batch) for batch in batches] == [2, 2, 1] and pieces.shape == (5, 21)
    assert pieces[:, 0].tolist() == [0, 45, 90, 135, 180] and int(pieces[-1, -1]) == 200
    assert pieces.dtype == torch.int64 and torch.equal(pieces - pieces[:, :1], torch.arange(21).expand(5, 21))
