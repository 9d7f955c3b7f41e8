"""The vocabulary of the rewritten graph: the ops `int8pass::*`.

Each op is declared once: schema, shape function and default implementation together. Every output shape is static
(outliers are a mask, never a list). A decomposition, where an op has one, is its default implementation: plain tensor
operations that a lowering may inline and fuse. Notation: x [..., K] float16, bfloat16 or float32; W [N, K].
Source of the arithmetic: LLM.int8(), Dettmers et al. 2022 (arXiv 2208.07339), equations 4, 7 and 8.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from int8pass.graph import value_of
from int8pass.kernels.integer_matmul import integer_matmul
from int8pass.kernels.outlier_product import outlier_product
from int8pass.quantization.absmax import absmax_codes, absmax_scale, absmax_tensor_scale
from int8pass.quantization.groups import grouped_integer_matmul, scale_of_each
from int8pass.quantization.static import static_codes, static_token_scale
from int8pass.quantization.zeropoint import asymmetric_codes, range_scale, range_zero_point
from int8pass.torch_private import OpOverload

NAMESPACE = "int8pass"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

# op -> function of the same arguments in plain tensor operations
DECOMPOSITIONS: dict[OpOverload, Callable] = {}


def _define(schema: str, fake: Callable, implementation: Callable) -> OpOverload:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


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


outlier_mask = _define(
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


column_mask = _define("column_mask(Tensor x, int[] columns) -> Tensor", _column_mask_fake, _column_mask)


# --- scale_features: x times what a profile's migration gives each feature, in the dtype of x; factor: float32[K]


def _scale_features(x, factor):
    return x * factor.to(x.dtype)


def _scale_features_fake(x, factor):
    return torch.empty_like(x)


scale_features = _define("scale_features(Tensor x, Tensor factor) -> Tensor", _scale_features_fake, _scale_features)
DECOMPOSITIONS[scale_features] = _scale_features


def _save_factor(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scaled_gradient(ctx, gradient):
    (factor,) = ctx.saved_tensors
    return gradient * factor.to(gradient.dtype), None


torch.library.register_autograd(
    f"{NAMESPACE}::scale_features", _scaled_gradient, setup_context=_save_factor, lib=_LIBRARY
)


# --- scale_per_token: max |x| / 127 of each row, outliers left out


def _scale_per_token_fake(x, mask):
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


scale_per_token = _define("scale_per_token(Tensor x, Tensor? mask) -> Tensor", _scale_per_token_fake, absmax_scale)
DECOMPOSITIONS[scale_per_token] = absmax_scale


# --- scale_per_tensor: max |x| / 127 of all rows, outliers left out


def _scale_per_tensor_fake(x, mask):
    return x.new_empty((), dtype=torch.float32)


scale_per_tensor = _define(
    "scale_per_tensor(Tensor x, Tensor? mask) -> Tensor", _scale_per_tensor_fake, absmax_tensor_scale
)
DECOMPOSITIONS[scale_per_tensor] = absmax_tensor_scale


# --- asymmetric_scale, zero_point: of the range from min(x, 0) to max(x, 0), by row or of all, outliers left out


def _asymmetric_scale_fake(x, mask, granularity):
    return x.new_empty(() if granularity == "per_tensor" else x.shape[:-1], dtype=torch.float32)


asymmetric_scale = _define(
    "asymmetric_scale(Tensor x, Tensor? mask, str granularity) -> Tensor", _asymmetric_scale_fake, range_scale
)
DECOMPOSITIONS[asymmetric_scale] = range_scale


def _zero_point_fake(x, scale, mask, granularity):
    return torch.empty_like(scale, dtype=torch.int32)


zero_point = _define(
    "zero_point(Tensor x, Tensor scale, Tensor? mask, str granularity) -> Tensor", _zero_point_fake, range_zero_point
)
DECOMPOSITIONS[zero_point] = range_zero_point


# --- static_scale, static_zero_point: of a calibrated range, the scale by row, as NaN where a row is not finite


def _static_scale_fake(x, scale, mask):
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


static_scale = _define(
    "static_scale(Tensor x, float scale, Tensor? mask) -> Tensor", _static_scale_fake, static_token_scale
)
DECOMPOSITIONS[static_scale] = static_token_scale


def _static_zero_point(x, zero_point):
    return torch.full((), zero_point, dtype=torch.int32, device=x.device)


def _static_zero_point_fake(x, zero_point):
    return x.new_empty((), dtype=torch.int32)


static_zero_point = _define(
    "static_zero_point(Tensor x, int zero_point) -> Tensor", _static_zero_point_fake, _static_zero_point
)
DECOMPOSITIONS[static_zero_point] = _static_zero_point


# --- quantize_per_token, quantize_per_tensor: int8 codes of each row, outliers as 0


def _quantize_fake(x, scale, mask):
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


quantize_per_token = _define(
    "quantize_per_token(Tensor x, Tensor scale, Tensor? mask) -> Tensor", _quantize_fake, absmax_codes
)
DECOMPOSITIONS[quantize_per_token] = absmax_codes

quantize_per_tensor = _define(
    "quantize_per_tensor(Tensor x, Tensor scale, Tensor? mask) -> Tensor", _quantize_fake, absmax_codes
)
DECOMPOSITIONS[quantize_per_tensor] = absmax_codes


# --- quantize_asymmetric: int8 codes with a zero point, outliers as the zero point


def _quantize_asymmetric_fake(x, scale, zero_point, mask):
    return _quantize_fake(x, scale, mask)


quantize_asymmetric = _define(
    "quantize_asymmetric(Tensor x, Tensor scale, Tensor zero_point, Tensor? mask) -> Tensor",
    _quantize_asymmetric_fake,
    asymmetric_codes,
)
DECOMPOSITIONS[quantize_asymmetric] = asymmetric_codes


# --- quantize_static: int8 codes by a calibrated range, outliers as the zero point; what lies past it is clamped


def _quantize_static_fake(x, scale, zero_point, mask):
    return _quantize_fake(x, scale, mask)


quantize_static = _define(
    "quantize_static(Tensor x, float scale, int zero_point, Tensor? mask) -> Tensor",
    _quantize_static_fake,
    static_codes,
)
DECOMPOSITIONS[quantize_static] = static_codes


# --- int8_mm: x_q @ W_q.T, exact in int32


def _int8_mm(x_q, w_q):
    return integer_matmul(x_q.reshape(-1, x_q.shape[-1]), w_q).reshape(*x_q.shape[:-1], w_q.shape[0])


def _int8_mm_fake(x_q, w_q):
    torch._check(x_q.shape[-1] == w_q.shape[1], lambda: f"int8_mm: {x_q.shape} and {w_q.shape} differ in K")
    return x_q.new_empty((*x_q.shape[:-1], w_q.shape[0]), dtype=torch.int32)


int8_mm = _define("int8_mm(Tensor x_q, Tensor w_q) -> Tensor", _int8_mm_fake, _int8_mm)


# --- grouped_int8_mm: int8_mm of each group of features, exact, times that group's w_scale [N, groups], in float32


def _grouped_int8_mm(x_q, zero_point, w_q, w_scale, code_sums):
    points = None if zero_point is None else zero_point.reshape(-1, 1)
    sums = grouped_integer_matmul(x_q.reshape(-1, x_q.shape[-1]), points, w_q, w_scale, code_sums)
    return sums.reshape(*x_q.shape[:-1], w_q.shape[0])


def _grouped_int8_mm_fake(x_q, zero_point, w_q, w_scale, code_sums):
    torch._check(x_q.shape[-1] == w_q.shape[1], lambda: f"grouped_int8_mm: {x_q.shape} and {w_q.shape} differ in K")
    return x_q.new_empty((*x_q.shape[:-1], w_q.shape[0]), dtype=torch.float32)


grouped_int8_mm = _define(
    "grouped_int8_mm(Tensor x_q, Tensor? zero_point, Tensor w_q, Tensor w_scale, Tensor? code_sums) -> Tensor",
    _grouped_int8_mm_fake,
    _grouped_int8_mm,
)


# --- outlier_mm: x[:, O] @ W[:, O].T in float32; with w_scale, w holds int8 codes, or is floating and read in 16 bits


def _outlier_mm(x, mask, w, w_scale=None):
    flat_mask = mask.reshape(-1, mask.shape[-1]) if mask.dim() > 1 else mask
    result = outlier_product(x.reshape(-1, x.shape[-1]), flat_mask, w, w_scale)
    return result.reshape(*x.shape[:-1], w.shape[0])


def _outlier_mm_fake(x, mask, w, w_scale=None):
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.float32)


outlier_mm = _define(
    "outlier_mm(Tensor x, Tensor mask, Tensor w, Tensor? w_scale=None) -> Tensor", _outlier_mm_fake, _outlier_mm
)


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


dequantize = _define(
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


dequantize_asymmetric = _define(
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


dequantize_grouped = _define(
    "dequantize_grouped(Tensor sums, Tensor x_scale, Tensor? outlier, Tensor? bias, ScalarType dtype) -> Tensor",
    _dequantize_grouped_fake,
    _dequantize_grouped,
)
DECOMPOSITIONS[dequantize_grouped] = _dequantize_grouped


# --- pad_features: x in float32 with zeros behind its K features, up to `features`


def _pad_features(x, features):
    return torch.nn.functional.pad(x.float(), (0, features - x.shape[-1])).contiguous()


def _pad_features_fake(x, features):
    return x.new_empty((*x.shape[:-1], features), dtype=torch.float32)


pad_features = _define("pad_features(Tensor x, int features) -> Tensor", _pad_features_fake, _pad_features)


# --- scaled_int8_mm: int8_mm and dequantize in one, as files hold it; w_q: int8[K, N or more], inputs first


def _scaled_int8_mm(x_q, x_scale, w_q, w_scale, outlier, bias, dtype):
    sums = _int8_mm(x_q, w_q[:, : w_scale.shape[0]].t())
    return _dequantize(sums, x_scale, w_scale, outlier, bias, dtype)


def _scaled_int8_mm_fake(x_q, x_scale, w_q, w_scale, outlier, bias, dtype):
    return x_q.new_empty((*x_q.shape[:-1], w_scale.shape[0]), dtype=dtype)


scaled_int8_mm = _define(
    "scaled_int8_mm(Tensor x_q, Tensor x_scale, Tensor w_q, Tensor w_scale, Tensor? outlier, Tensor? bias, "
    "ScalarType dtype) -> Tensor",
    _scaled_int8_mm_fake,
    _scaled_int8_mm,
)


# --- gathered_mm: outlier_mm over a weight that lies inputs first; w_q: int8[K, N or more]


def _gathered_mm(x, mask, w_q, w_scale):
    return _outlier_mm(x, mask, w_q[:, : w_scale.shape[0]].t(), w_scale)


def _gathered_mm_fake(x, mask, w_q, w_scale):
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=torch.float32)


gathered_mm = _define(
    "gathered_mm(Tensor x, Tensor mask, Tensor w_q, Tensor w_scale) -> Tensor", _gathered_mm_fake, _gathered_mm
)


# --- column_mm: x[:, columns] @ (w * w_scale) + bias in float32, for columns known beforehand; w: [J, N] 16-bit


def _column_mm(x, columns, w, w_scale=None, bias=None):
    features = x.reshape(-1, x.shape[-1])[:, list(columns)].float()
    result = torch.zeros((features.shape[0], w.shape[1]), device=x.device)
    # in place is not autocast, so an enclosing autocast region cannot round the product
    result.addmm_(features, w.float() if w_scale is None else w.float() * w_scale)
    if bias is not None:
        result += bias.float()
    return result.reshape(*x.shape[:-1], w.shape[1])


def _column_mm_fake(x, columns, w, w_scale=None, bias=None):
    return x.new_empty((*x.shape[:-1], w.shape[1]), dtype=torch.float32)


column_mm = _define(
    "column_mm(Tensor x, int[] columns, Tensor w, Tensor? w_scale=None, Tensor? bias=None) -> Tensor",
    _column_mm_fake,
    _column_mm,
)


# --- straight_through: y unchanged; its gradient reaches x through the dequantized weight


def _straight_through(y, x, w_q, w_scale):
    return y.clone()


def _straight_through_fake(y, x, w_q, w_scale):
    return torch.empty_like(y)


straight_through = _define(
    "straight_through(Tensor y, Tensor x, Tensor w_q, Tensor w_scale) -> Tensor",
    _straight_through_fake,
    _straight_through,
)


def _save_weight(ctx, inputs, output):
    _, x, w_q, w_scale = inputs
    ctx.save_for_backward(w_q, w_scale)
    ctx.x_dtype = x.dtype


def _input_gradient(ctx, gradient):
    w_q, w_scale = ctx.saved_tensors
    if w_scale.dim() == 1:
        weighted = (gradient.to(torch.float32) * w_scale) @ w_q.to(torch.float32)
    else:
        weighted = gradient.to(torch.float32) @ (w_q * scale_of_each(w_scale, w_q.shape[1]))
    return gradient, weighted.to(ctx.x_dtype), None, None


torch.library.register_autograd(
    f"{NAMESPACE}::straight_through", _input_gradient, setup_context=_save_weight, lib=_LIBRARY
)
