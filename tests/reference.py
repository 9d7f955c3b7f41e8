"""NumPy reference of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), independent of int8pass.

Vector-wise quantization (section 3.1) with mixed-precision decomposition (section 3.2).
Scales and codes follow the float32 steps of the algorithm; everything after the codes is float64.
Inputs are float16 or float32 arrays; bfloat16 comes as a float32 array that holds bfloat16 values.
Shapes: M rows (tokens), K input features, N output features.
"""

import numpy as np

INT8_MAX = 127
FLOAT32 = np.finfo(np.float32)
OUTLIERS = ("column", "token")
OUTLIER_WEIGHTS = ("original", "dequantized")
PROFILE_WEIGHTS = "float16"


def check_choice(name, value, choices):
    """Raise ValueError unless value is one of choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {choices}")


def outlier_mask(x, threshold, outliers):
    """Where x[M, K] is an outlier (section 3.2): bool[K] for "column", bool[M, K] for "token".

    A column is an outlier if any |x| in it reaches the threshold, whatever NaN it also holds.
    Threshold 0.0 means that there are no outliers. The comparison is made in float32.
    """
    check_choice("outliers", outliers, OUTLIERS)
    reached = np.abs(np.asarray(x, np.float32)) >= np.float32(threshold)
    if threshold == 0.0:
        reached[:] = False
    return reached.any(axis=0) if outliers == "column" else reached


def _quantize_rows(values):
    """Absmax codes int8 and scales float32 of each row of float32 values (section 3.1, Eq. 2).

    A row with NaN or an infinity has scale NaN; a scale below the smallest normal float32 is 0.
    Rows without a positive scale have only zero codes.
    """
    with np.errstate(all="ignore"):
        scale = np.abs(values).max(axis=1, initial=np.float32(0)) / np.float32(INT8_MAX)
        scale = np.where(scale < FLOAT32.tiny, np.float32(0), scale)
        scale = np.where(np.isinf(scale), np.float32(np.nan), scale)
        rounded = np.round(values / scale[:, None]).clip(-INT8_MAX, INT8_MAX)
    return np.where(scale[:, None] > 0, rounded, 0).astype(np.int8), scale


def quantize_activation(x, threshold, outliers, mask=None):
    """Codes int8[M, K], scale float32[M] and the outlier mask of x[M, K] (sections 3.1 and 3.2).

    mask, bool[K] or bool[M, K], replaces the one that x has.

    Outliers have code 0 and do not take part in the scale of their row. Every infinity is an
    outlier, unless the threshold is 0.0: then its row has scale NaN.
    """
    mask = outlier_mask(x, threshold, outliers) if mask is None else mask
    regular = np.where(mask, np.float32(0), np.asarray(x, np.float32))
    codes, scale = _quantize_rows(regular)
    return codes, scale, mask


def quantize_weight(w):
    """Codes int8[N, K] and scale float32[N] of w[N, K], one scale for each output (section 3.1)."""
    return _quantize_rows(np.asarray(w, np.float32))


def float16_weight(w):
    """w[N, K], float32, rounded to float16 in units of its scales: float64[N, K]."""
    _, scale = quantize_weight(w)
    unit = np.where(scale > 0, scale, np.float32(1))[:, None]
    return (np.asarray(w, np.float32) / unit).astype(np.float16).astype(np.float64) * unit


def _products(x, w):
    """x[M, K] @ w[N, K].T and the same sum of absolute terms, both float64[M, N]."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    return x @ w.T, np.abs(x) @ np.abs(w).T


def _outlier_part(x, mask, weight):
    """The products of the outliers of x[M, K] (section 3.2, Eq. 8), as _products."""
    columns = mask if mask.ndim == 1 else mask.any(axis=0)
    selected = np.where(mask, x, 0)[:, columns]
    return _products(selected, weight[:, columns])


def linear(
    x,
    w,
    bias=None,
    *,
    threshold=6.0,
    outliers="column",
    outlier_weights="original",
    codes=None,
    mask=None,
):
    """The LLM.int8() Linear of x[M, K] with w[N, K] and bias[N] (section 3.2, Eq. 8).

    outlier_weights is "original" (the paper), "dequantized" (rebuilt from the codes of w), or "float16"
    (rounded to it in units of w's scale, as a profile's columns of a float32 weight are).
    codes, a pair of int8[M, K] and float32[M], replaces the codes and scale computed from x; its
    codes are 0 at the outliers of x. mask replaces the outlier mask of x.
    Returns y float64[M, N] and magnitude float64[M, N], the sum of the absolute terms of y.
    """
    check_choice("outlier_weights", outlier_weights, (*OUTLIER_WEIGHTS, PROFILE_WEIGHTS))
    x = np.asarray(x, np.float32)
    x_codes, x_scale, mask = quantize_activation(x, threshold, outliers, mask)
    if codes is not None:
        x_codes, x_scale = codes
    w_codes, w_scale = quantize_weight(w)
    x_scale, w_scale = x_scale[:, None].astype(np.float64), w_scale.astype(np.float64)
    weight = np.asarray(w, np.float64)
    if outlier_weights == "dequantized":
        weight = w_codes * w_scale[:, None]
    elif outlier_weights == PROFILE_WEIGHTS:
        weight = float16_weight(w)
    bias = np.asarray(0.0 if bias is None else bias, np.float64)

    with np.errstate(all="ignore"):
        # Exact in float64: |sum| <= K * 127 * 127, far below 2**53.
        accumulator, accumulator_magnitude = _products(x_codes, w_codes)
        outlier, outlier_magnitude = _outlier_part(x, mask, weight)
        y = accumulator * x_scale * w_scale + outlier + bias
        magnitude = accumulator_magnitude * x_scale * w_scale + outlier_magnitude + np.abs(bias)
    return y, magnitude


def tolerance(y, magnitude, K, eps_dtype):
    """Bound float64[M, N] for y evaluated in float32 and cast to a dtype of epsilon eps_dtype.

    y and magnitude are those of `linear`, with K terms in each sum.
    """
    return 2 * eps_dtype * np.abs(y) + K * float(FLOAT32.eps) * magnitude
