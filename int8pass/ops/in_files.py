"""Ops of exported files only, whose weights lie inputs first."""

import torch

from int8pass.ops.declare import define
from int8pass.ops.epilogue import dequantize
from int8pass.ops.products import int8_mm, outlier_mm

# --- pad_features: x in float32 with zeros behind its K features, up to `features`


def _pad_features(x, features):
    return torch.nn.functional.pad(x.float(), (0, features - x.shape[-1])).contiguous()


def _pad_features_fake(x, features):
    return x.new_empty((*x.shape[:-1], features), dtype=torch.float32)


pad_features = define("pad_features(Tensor x, int features) -> Tensor", _pad_features_fake, _pad_features)


# --- scaled_int8_mm: int8_mm and dequantize in one, as files hold it; w_q: int8[K, N or more], inputs first


def _scaled_int8_mm(x_q, x_scale, w_q, w_scale, outlier, bias, dtype):
    sums = int8_mm(x_q, w_q[:, : w_scale.shape[0]].t())
    return dequantize(sums, x_scale, w_scale, outlier, bias, dtype)


def _scaled_int8_mm_fake(x_q, x_scale, w_q, w_scale, outlier, bias, dtype):
    return x_q.new_empty((*x_q.shape[:-1], w_scale.shape[0]), dtype=dtype)


scaled_int8_mm = define(
    "scaled_int8_mm(Tensor x_q, Tensor x_scale, Tensor w_q, Tensor w_scale, Tensor? outlier, Tensor? bias, "
    "ScalarType dtype) -> Tensor",
    _scaled_int8_mm_fake,
    _scaled_int8_mm,
)


# --- gathered_mm: outlier_mm over a weight that lies inputs first; w_q: int8[K, N or more]


def _gathered_mm(x, mask, w_q, w_scale):
    return outlier_mm(x, mask, w_q[:, : w_scale.shape[0]].t(), w_scale)


def _gathered_mm_fake(x, mask, w_q, w_scale):
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=torch.float32)


gathered_mm = define(
    "gathered_mm(Tensor x, Tensor mask, Tensor w_q, Tensor w_scale) -> Tensor", _gathered_mm_fake, _gathered_mm
)
