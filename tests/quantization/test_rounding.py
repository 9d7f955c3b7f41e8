"""Error-compensated rounding equals the algorithm's own definition, and loses less than rounding to nearest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from int8pass.quantization.absmax import absmax_codes, absmax_scale
from int8pass.quantization.rounding import DAMPING, compensated_codes


def layer(seed, rows=24, features=40, tokens=300):
    """Weight [N, K] float32 and correlated inputs [M, K] float64, as a layer's are."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(features // 4, features))
    x = rng.normal(size=(tokens, features // 4)) @ mix + 0.1 * rng.normal(size=(tokens, features))
    return rng.normal(size=(rows, features)).astype(np.float32), x * rng.uniform(0.2, 3.0, features)


def optimal_brain_codes(weight, scale, hessian, columns):
    """Frantar et al. 2022, equations 2 and 3: round a column, spread its error, strike it from the inverse Hessian."""
    weight, order = weight.astype(np.float64), [*columns]
    inverse = np.linalg.inv(
        hessian[np.ix_(order, order)] + DAMPING * hessian.diagonal()[order].mean() * np.eye(len(order))
    )
    left = weight[:, order]
    codes = np.clip(np.round(weight / scale[:, None]), -127, 127)
    for position, column in enumerate(order):
        values = left[:, position]
        codes[:, column] = np.clip(np.round(values / scale), -127, 127)
        error = (values - codes[:, column] * scale) / inverse[position, position]
        left = left - np.outer(error, inverse[position])
        inverse = inverse - np.outer(inverse[:, position], inverse[position]) / inverse[position, position]
    return codes


def rounded(weight, x, kept=None):
    """Codes and scale of a weight as tensors."""
    weight, gram = torch.from_numpy(weight), torch.from_numpy(x.T @ x)
    kept = torch.ones(weight.shape[1], dtype=torch.bool) if kept is None else kept
    scale = absmax_scale(weight, ~kept)
    return compensated_codes(weight, scale, gram, kept), scale


def output_error(codes, scale, weight, x):
    lost = codes.numpy() * scale.numpy()[:, None].astype(np.float64) - weight
    return np.square(x @ lost.T).mean()


@pytest.mark.parametrize(("seed", "features"), ((0, 40), (1, 300)))  # 300: three batches of columns
def test_codes_are_those_of_the_algorithm(seed, features):
    weight, x = layer(seed, features=features, tokens=4 * features)
    left_out = [3, 17]
    kept = torch.ones(features, dtype=torch.bool)
    kept[left_out] = False
    codes, scale = rounded(weight, x, kept)
    hessian = x.T @ x
    order = [column for column in np.argsort(-hessian.diagonal(), kind="stable") if column not in left_out]
    expected = optimal_brain_codes(weight, scale.numpy().astype(np.float64), hessian, order)
    different = codes.numpy() != expected
    assert different.mean() < 1e-3  # values within 1e-9 of a tie may fall to either side
    assert np.array_equal(codes.numpy()[:, left_out], expected[:, left_out])


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_it_loses_less_than_rounding_to_nearest(seed):
    weight, x = layer(seed)
    codes, scale = rounded(weight, x)
    assert codes.dtype == torch.int8 and int(codes.abs().max()) <= 127
    nearest = absmax_codes(torch.from_numpy(weight), scale)
    assert output_error(codes, scale, weight, x) < 0.5 * output_error(nearest, scale, weight, x)


def test_inputs_it_never_saw_and_rows_of_zeros():
    weight, x = layer(0)
    weight[2], x[:, 5] = 0.0, 0.0
    codes, scale = rounded(weight, x)
    assert not codes[2].any() and scale[2] == 0
    assert torch.equal(codes[:, 5], absmax_codes(torch.from_numpy(weight), scale)[:, 5])
    codes, scale = rounded(weight, np.zeros((0, 40)))
    assert torch.equal(codes, absmax_codes(torch.from_numpy(weight), scale))


def test_a_layer_of_outlier_columns_alone():
    weight, x = layer(0, features=4)
    codes, _ = rounded(weight, x, torch.zeros(4, dtype=torch.bool))
    assert codes.shape == weight.shape
