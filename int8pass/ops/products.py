"""The int8 product, the product of the outlier features, and the gradient through both."""

import torch

from int8pass.kernels.integer_matmul import integer_matmul
from int8pass.kernels.outlier_product import outlier_product
from int8pass.ops.declare import LIBRARY, NAMESPACE, define
from int8pass.quantization.groups import grouped_integer_matmul, scale_of_each

# --- int8_mm: x_q @ W_q.T, exact in int32


def _int8_mm(x_q, w_q):
    return integer_matmul(x_q.reshape(-1, x_q.shape[-1]), w_q).reshape(*x_q.shape[:-1], w_q.shape[0])


def _int8_mm_fake(x_q, w_q):
    torch._check(x_q.shape[-1] == w_q.shape[1], lambda: f"int8_mm: {x_q.shape} and {w_q.shape} differ in K")
    return x_q.new_empty((*x_q.shape[:-1], w_q.shape[0]), dtype=torch.int32)


int8_mm = define("int8_mm(Tensor x_q, Tensor w_q) -> Tensor", _int8_mm_fake, _int8_mm)


# --- grouped_int8_mm: int8_mm of each group of features, exact, times that group's w_scale [N, groups], in float32


def _grouped_int8_mm(x_q, zero_point, w_q, w_scale, code_sums):
    points = None if zero_point is None else zero_point.reshape(-1, 1)
    sums = grouped_integer_matmul(x_q.reshape(-1, x_q.shape[-1]), points, w_q, w_scale, code_sums)
    return sums.reshape(*x_q.shape[:-1], w_q.shape[0])


def _grouped_int8_mm_fake(x_q, zero_point, w_q, w_scale, code_sums):
    torch._check(x_q.shape[-1] == w_q.shape[1], lambda: f"grouped_int8_mm: {x_q.shape} and {w_q.shape} differ in K")
    return x_q.new_empty((*x_q.shape[:-1], w_q.shape[0]), dtype=torch.float32)


grouped_int8_mm = define(
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


outlier_mm = define(
    "outlier_mm(Tensor x, Tensor mask, Tensor w, Tensor? w_scale=None) -> Tensor", _outlier_mm_fake, _outlier_mm
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


column_mm = define(
    "column_mm(Tensor x, int[] columns, Tensor w, Tensor? w_scale=None, Tensor? bias=None) -> Tensor",
    _column_mm_fake,
    _column_mm,
)


# --- straight_through: y unchanged; its gradient reaches x through the dequantized weight


def _straight_through(y, x, w_q, w_scale):
    return y.clone()


def _straight_through_fake(y, x, w_q, w_scale):
    return torch.empty_like(y)


straight_through = define(
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
    f"{NAMESPACE}::straight_through", _input_gradient, setup_context=_save_weight, lib=LIBRARY
)
