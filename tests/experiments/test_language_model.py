"""The language model: it sees no later byte, and its forward is that of a pre-LayerNorm decoder in float64."""

import numpy as np
import torch

from int8pass.experiments.language_model import LanguageModel, ModelSize
from tests import reference_decoder

SIZE = ModelSize(width=16, depth=2, heads=2, context=12)


def tokens():
    return torch.randint(256, (3, 10), generator=torch.Generator().manual_seed(1))


def test_logits_equal_those_of_a_float64_decoder():
    model = LanguageModel(SIZE, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases of their own, not 1 and 0
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
        found = model(tokens())
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    expected = reference_decoder.logits(state, tokens().numpy(), SIZE)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_byte_changes_nothing_before_it():
    model, changed = LanguageModel(SIZE), tokens()
    changed[:, 6] = (changed[:, 6] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens()), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (LanguageModel(SIZE, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
