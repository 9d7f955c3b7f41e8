"""Muon: the steps of torch's own in bfloat16, and in float32 those of a float64 Newton-Schulz iteration."""

import numpy as np
import pytest
import torch
from torch import nn

from int8pass.experiments.muon import Muon, orthogonalized

SHAPES = [(24, 24), (64, 16), (16, 64)]


def gradients(shape, count=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_it_takes_the_steps_of_torch(shape):
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    ours_step = Muon([ours], lr=0.02, weight_decay=0.1, product_dtype=torch.bfloat16).step
    theirs_step = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1).step
    for gradient in gradients(shape):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours_step()
        theirs_step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-3)
    assert (ours - 1).abs().max() > 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_its_steps_are_those_of_a_float64_reference(shape):
    weight = nn.Parameter(torch.ones(shape))
    muon = Muon([weight], lr=0.02, weight_decay=0.1, product_dtype=torch.float32)
    expected, momentum = np.ones(shape), np.zeros(shape)
    for gradient in gradients(shape):
        weight.grad = gradient.clone()
        muon.step()
        momentum = 0.95 * momentum + 0.05 * gradient.double().numpy()
        direction = newton_schulz(0.05 * gradient.double().numpy() + 0.95 * momentum)
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * max(1.0, shape[0] / shape[1]) ** 0.5 * direction
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=0, atol=1e-5)


def newton_schulz(matrix):
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_loses_their_sizes(shape):
    matrix = gradients(shape, 1)[0]
    left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = left.T @ orthogonalized(matrix, torch.float32).double() @ right.T
    assert sizes.max() > 2 * sizes.min()
    assert ((found.diagonal() > 0.65) & (found.diagonal() < 1.2)).all()
    torch.testing.assert_close(found - found.diagonal().diag(), torch.zeros_like(found), rtol=0, atol=1e-4)


def test_a_gradient_of_zeros_moves_nothing():
    weight = nn.Parameter(torch.ones(4, 3))
    weight.grad = torch.zeros(4, 3)
    Muon([weight], lr=0.02, weight_decay=0.0, product_dtype=torch.float32).step()
    assert torch.equal(weight.detach(), torch.ones(4, 3))
