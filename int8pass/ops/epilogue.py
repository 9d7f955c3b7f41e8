"""From sums to outputs: what each product is multiplied with, the outlier features, the bias, one cast."""

import torch

from int8pass.ops.declare import DECOMPOSITIONS, define

# --- dequantize: acc * w_scale * x_scale + outlier + bias, in float32, cast once


def _dequantize(acc, x_scale, w_scale, outlier, bias, dtype):
    # acc * w_scale first: |acc| >= 1 there, so no product underflows before the last one
    return _with_outlier_and_bias(acc.to(torch.float32) * w_scale * x_scale.unsqueeze(-1), outlier, bias, dtype)


def _with_outlier_and_bias(y, outlier, bias, dtype):
    if outlier is not None:
        y = y + outlier
    if bias is not None:
        y = y + bias.to(torch.float32)
    return y.to(dtype)


def _dequantize_fake(acc, x_scale, w_scale, outlier, bias, dtype):
    return acc.new_empty(acc.shape, dtype=dtype)


dequantize = define(
    "dequantize(Tensor acc, Tensor x_scale, Tensor w_scale, Tensor? outlier, Tensor? bias, ScalarType dtype) -> Tensor",
    _dequantize_fake,
    _dequantize,
)
DECOMPOSITIONS[dequantize] = _dequantize


# --- dequantize_asymmetric: the same of acc - zero_point * code_sums, exact in int32; code_sums: of W_q over K


def _dequantize_asymmetric(acc, x_scale, zero_point, w_scale, code_sums, outlier, bias, dtype):
    return _dequantize(acc - zero_point.unsqueeze(-1) * code_sums, x_scale, w_scale, outlier, bias, dtype)


def _dequantize_asymmetric_fake(acc, x_scale, zero_point, w_scale, code_sums, outlier, bias, dtype):
    return acc.new_empty(acc.shape, dtype=dtype)


dequantize_asymmetric = define(
    "dequantize_asymmetric(Tensor acc, Tensor x_scale, Tensor zero_point, Tensor w_scale, Tensor code_sums, "
    "Tensor? outlier, Tensor? bias, ScalarType dtype) -> Tensor",
    _dequantize_asymmetric_fake,
    _dequantize_asymmetric,
)
DECOMPOSITIONS[dequantize_asymmetric] = _dequantize_asymmetric


# --- dequantize_grouped: the rest of it after grouped_int8_mm


def _dequantize_grouped(sums, x_scale, outlier, bias, dtype):
    return _with_outlier_and_bias(sums * x_scale.unsqueeze(-1), outlier, bias, dtype)


def _dequantize_grouped_fake(sums, x_scale, outlier, bias, dtype):
    return sums.new_empty(sums.shape, dtype=dtype)


dequantize_grouped = define(
    "dequantize_grouped(Tensor sums, Tensor x_scale, Tensor? outlier, Tensor? bias, ScalarType dtype) -> Tensor",
    _dequantize_grouped_fake,
    _dequantize_grouped,
)
DECOMPOSITIONS[dequantize_grouped] = _dequantize_grouped
