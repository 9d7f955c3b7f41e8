"""NumPy reference of the schemes of int8pass.quantization, independent of int8pass; reference.py has the default one.

Scales, zero points and codes follow the float32 steps of the algorithm; everything after the codes is float64.
A zero point is the code of 0.0: x ~ scale * (code - zero_point). Shapes as in reference.py.
"""

import math

import numpy as np

from tests import reference
from tests.reference import FLOAT32, INT8_MAX, _outlier_part, _products

STEPS = 2 * INT8_MAX
GRANULARITIES = ("per_token", "per_tensor")


def quantize_activation(x, mask, granularity, symmetric):
    """Codes int64[M, K], scale float32[M, 1] and zero point int64[M, 1] of x[M, K]; mask bool[K] or bool[M, K].

    A range, of a row or of the tensor, that holds NaN or an infinity has scale NaN; a scale below the smallest normal
    float32 is 0; both have codes and zero point 0. Outliers have the code of 0.0.
    """
    values = np.where(mask, np.float32(0), np.asarray(x, np.float32))
    axis = 1 if granularity == "per_token" else None
    with np.errstate(all="ignore"):
        low = values.min(axis=axis, initial=np.float32(0), keepdims=True)
        high = values.max(axis=axis, initial=np.float32(0), keepdims=True)
        if symmetric:
            scale = np.maximum(-low, high) / np.float32(INT8_MAX)
        else:
            scale = high / np.float32(STEPS) - low / np.float32(STEPS)
        scale = np.where(scale < FLOAT32.tiny, np.float32(0), np.where(np.isinf(scale), np.float32(np.nan), scale))
        usable = scale > 0
        point = np.zeros_like(scale) if symmetric else np.round(-INT8_MAX - low / scale).clip(-INT8_MAX, INT8_MAX)
        point = np.where(usable, point, 0)
        codes = (np.round(values / scale) + point).clip(-INT8_MAX, INT8_MAX)
    rows = (len(values), 1)
    codes = np.where(usable, codes, 0).astype(np.int64)
    return codes, np.broadcast_to(scale, rows), np.broadcast_to(point, rows).astype(np.int64)


def weight_scale(w, granularity, estimator="absmax", percentile=99.99):
    """Scale float32[N] of w[N, K]: the range that an estimator gives a row, or the tensor, over 127."""
    rows = np.asarray(w, np.float32)
    rows = rows.reshape(1, -1) if granularity == "per_tensor" else rows
    magnitude = np.abs(rows)
    full = magnitude.max(axis=1)
    if estimator == "percentile":
        full = np.sort(magnitude, axis=1)[:, max(1, math.ceil(percentile / 100 * rows.shape[1])) - 1]
    scale = full / np.float32(INT8_MAX)
    scale = np.where(scale < FLOAT32.tiny, np.float32(0), scale)
    return np.broadcast_to(scale, (len(w),)).copy()


def weight_codes(w, scale):
    """Codes int64[N, K] of w[N, K] for scale float32[N]."""
    with np.errstate(all="ignore"):
        codes = np.round(np.asarray(w, np.float32) / scale[:, None]).clip(-INT8_MAX, INT8_MAX)
    return np.where(scale[:, None] > 0, codes, 0).astype(np.int64)


def linear(x, w, bias, scheme, *, threshold=0.0, outliers="column", outlier_weights="original", activation=None):
    """The Linear of x[M, K] with w[N, K] and bias[N] under a Scheme: y float64[M, N] and its magnitude.

    magnitude: the sum of the absolute terms of y. activation: codes, scale and zero point in place of those of x.
    """
    x = np.asarray(x, np.float32)
    mask = reference.outlier_mask(x, threshold, outliers)
    form = scheme.activations
    codes, scale, point = activation or quantize_activation(x, mask, form.granularity, form.symmetric)
    w_scale = weight_scale(w, scheme.weights.granularity)
    w_codes, w_scale = weight_codes(w, w_scale), w_scale.astype(np.float64)
    weight = w_codes * w_scale[:, None] if outlier_weights == "dequantized" else np.asarray(w, np.float64)
    bias = np.asarray(0.0 if bias is None else bias, np.float64)
    with np.errstate(all="ignore"):
        sums, sums_magnitude = _products(codes - point, w_codes)
        outlier, outlier_magnitude = _outlier_part(x, mask, weight)
        y = sums * scale.astype(np.float64) * w_scale + outlier + bias
        magnitude = sums_magnitude * scale.astype(np.float64) * w_scale + outlier_magnitude + np.abs(bias)
    return y, magnitude
