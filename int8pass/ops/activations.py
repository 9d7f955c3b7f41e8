"""What is done to an activation before the int8 product: outliers, scales, zero points, codes."""

import torch
from torch import Tensor

from int8pass.graph import value_of
from int8pass.ops.declare import DECOMPOSITIONS, LIBRARY, NAMESPACE, define
from int8pass.quantization.absmax import absmax_codes, absmax_scale, absmax_tensor_scale
from int8pass.quantization.static import static_codes, static_token_scale
from int8pass.quantization.zeropoint import asymmetric_codes, range_scale, range_zero_point


def _rank(x: Tensor | torch.fx.Proxy) -> int:
    return value_of(x.node).dim() if isinstance(x, torch.fx.Proxy) else x.dim()


# --- outlier_mask: which features |x| >= threshold, over the whole call (bool[K]) or per token (bool[..., K])


def _outlier_mask(x, threshold, outliers="column"):
    over = x.to(torch.float32).abs() >= threshold  # in float32: a half would round the threshold
    leading = tuple(range(_rank(x) - 1))
    if outliers == "token":
        return over.contiguous()
    return over.any(leading) if leading else over.clone()


def _outlier_mask_fake(x, threshold, outliers="column"):
    return x.new_empty(x.shape if outliers == "token" else x.shape[-1:], dtype=torch.bool)


outlier_mask = define(
    "outlier_mask(Tensor x, float threshold, str outliers='column') -> Tensor", _outlier_mask_fake, _outlier_mask
)
DECOMPOSITIONS[outlier_mask] = _outlier_mask


# --- column_mask: the features of a calibrated profile, as bool[K]


def _column_mask(x, columns):
    mask = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
    mask[list(columns)] = True
    return mask


def _column_mask_fake(x, columns):
    return x.new_empty(x.shape[-1:], dtype=torch.bool)


column_mask = define("column_mask(Tensor x, int[] columns) -> Tensor", _column_mask_fake, _column_mask)


# --- scale_features: x times what a profile's migration gives each feature, in the dtype of x; factor: float32[K]


def _scale_features(x, factor):
    return x * factor.to(x.dtype)


def _scale_features_fake(x, factor):
    return torch.empty_like(x)


scale_features = define("scale_features(Tensor x, Tensor factor) -> Tensor", _scale_features_fake, _scale_features)
DECOMPOSITIONS[scale_features] = _scale_features


def _save_factor(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scaled_gradient(ctx, gradient):
    (factor,) = ctx.saved_tensors
    return gradient * factor.to(gradient.dtype), None


torch.library.register_autograd(
    f"{NAMESPACE}::scale_features", _scaled_gradient, setup_context=_save_factor, lib=LIBRARY
)


# --- scale_per_token: max |x| / 127 of each row, outliers left out


def _scale_per_token_fake(x, mask):
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


scale_per_token = define("scale_per_token(Tensor x, Tensor? mask) -> Tensor", _scale_per_token_fake, absmax_scale)
DECOMPOSITIONS[scale_per_token] = absmax_scale


# --- scale_per_tensor: max |x| / 127 of all rows, outliers left out


def _scale_per_tensor_fake(x, mask):
    return x.new_empty((), dtype=torch.float32)


scale_per_tensor = define(
    "scale_per_tensor(Tensor x, Tensor? mask) -> Tensor", _scale_per_tensor_fake, absmax_tensor_scale
)
DECOMPOSITIONS[scale_per_tensor] = absmax_tensor_scale


# --- asymmetric_scale, zero_point: of the range from min(x, 0) to max(x, 0), by row or of all, outliers left out


def _asymmetric_scale_fake(x, mask, granularity):
    return x.new_empty(() if granularity == "per_tensor" else x.shape[:-1], dtype=torch.float32)


asymmetric_scale = define(
    "asymmetric_scale(Tensor x, Tensor? mask, str granularity) -> Tensor", _asymmetric_scale_fake, range_scale
)
DECOMPOSITIONS[asymmetric_scale] = range_scale


def _zero_point_fake(x, scale, mask, granularity):
    return torch.empty_like(scale, dtype=torch.int32)


zero_point = define(
    "zero_point(Tensor x, Tensor scale, Tensor? mask, str granularity) -> Tensor", _zero_point_fake, range_zero_point
)
DECOMPOSITIONS[zero_point] = range_zero_point


# --- static_scale, static_zero_point: of a calibrated range, the scale by row, as NaN where a row is not finite


def _static_scale_fake(x, scale, mask):
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


static_scale = define(
    "static_scale(Tensor x, float scale, Tensor? mask) -> Tensor", _static_scale_fake, static_token_scale
)
DECOMPOSITIONS[static_scale] = static_token_scale


def _static_zero_point(x, zero_point):
    return torch.full((), zero_point, dtype=torch.int32, device=x.device)


def _static_zero_point_fake(x, zero_point):
    return x.new_empty((), dtype=torch.int32)


static_zero_point = define(
    "static_zero_point(Tensor x, int zero_point) -> Tensor", _static_zero_point_fake, _static_zero_point
)
DECOMPOSITIONS[static_zero_point] = _static_zero_point


# --- quantize_per_token, quantize_per_tensor: int8 codes of each row, outliers as 0


def _quantize_fake(x, scale, mask):
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


quantize_per_token = define(
    "quantize_per_token(Tensor x, Tensor scale, Tensor? mask) -> Tensor", _quantize_fake, absmax_codes
)
DECOMPOSITIONS[quantize_per_token] = absmax_codes

quantize_per_tensor = define(
    "quantize_per_tensor(Tensor x, Tensor scale, Tensor? mask) -> Tensor", _quantize_fake, absmax_codes
)
DECOMPOSITIONS[quantize_per_tensor] = absmax_codes


# --- quantize_asymmetric: int8 codes with a zero point, outliers as the zero point


def _quantize_asymmetric_fake(x, scale, zero_point, mask):
    return _quantize_fake(x, scale, mask)


quantize_asymmetric = define(
    "quantize_asymmetric(Tensor x, Tensor scale, Tensor zero_point, Tensor? mask) -> Tensor",
    _quantize_asymmetric_fake,
    asymmetric_codes,
)
DECOMPOSITIONS[quantize_asymmetric] = asymmetric_codes


# --- quantize_static: int8 codes by a calibrated range, outliers as the zero point; what lies past it is clamped


def _quantize_static_fake(x, scale, zero_point, mask):
    return _quantize_fake(x, scale, mask)


quantize_static = define(
    "quantize_static(Tensor x, float scale, int zero_point, Tensor? mask) -> Tensor",
    _quantize_static_fake,
    static_codes,
)
DECOMPOSITIONS[quantize_static] = static_codes
