"""The ops of the fused CUDA kernels: schema, shape function and implementation of each.

Triton is imported when an op first runs. Nothing waits for the device: how many outlier columns there are, and which,
stays in its memory, so a CUDA graph captures every op.
"""

import functools
import importlib.util
import logging

import torch
from torch import Tensor

from int8pass.errors import MissingDependencyError, UnsupportedDeviceError
from int8pass.torch_private import OpOverload

logger = logging.getLogger(__name__)

_LIBRARY = torch.library.Library("int8pass", "FRAGMENT")
# |sums| <= 127 * 127 * K stays below 2**31.
LARGEST_K = 2**31 // 127**2
# Up to here a Linear is one kernel, which reads each weight once.
FEW_ROWS = 16
# Which features are outliers: none, columns that hold one, single elements, or columns known beforehand.
NONE, COLUMN, TOKEN, LISTED = range(4)
OLDEST_CAPABILITY = (7, 5)  # Turing: the first with int8 tensor cores ...
_FAST_CAPABILITY = (8, 0)  # ... that Triton uses from Ampere on


def _define(schema: str, fake, implementation) -> OpOverload:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"int8pass::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.int8pass, name).default


# --- cuda_quantize: codes int8[..., K], scale float32[...], outlier columns int32[K + 1]: their number, then which
# (empty at threshold 0 and for columns known beforehand)


def _cuda_quantize(x, threshold, per_token, columns=None):
    from int8pass.kernels.cuda.quantize import quantize

    _require(x)
    rows = _rows(x)
    flags = None if columns is None else known_columns(tuple(columns), x.shape[-1], x.device)[0]
    codes, scale, found = quantize(rows, outlier_kind(threshold, per_token, columns), threshold, flags)
    return codes.reshape(x.shape), scale.reshape(x.shape[:-1]), found


def _cuda_quantize_fake(x, threshold, per_token, columns=None):
    found = 0 if columns is not None or threshold == 0.0 else x.shape[-1] + 1
    return (
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device),
        torch.empty(found, dtype=torch.int32, device=x.device),
    )


cuda_quantize = _define(
    "cuda_quantize(Tensor x, float threshold, bool per_token, int[]? columns=None) -> (Tensor, Tensor, Tensor)",
    _cuda_quantize_fake,
    _cuda_quantize,
)


# --- cuda_norm_quantize: y = LayerNorm (centered) or RMSNorm of x + residual over the last dimension, and cuda_quantize
# of y. Results: y [..., K], what cuda_quantize gives, and x + residual [..., K] (empty without a residual).


def _cuda_norm_quantize(x, residual, weight, bias, eps, centered, threshold, per_token, columns=None):
    from int8pass.kernels.cuda.norm_quantize import norm_quantize

    _require(x)
    flags = None if columns is None else known_columns(tuple(columns), x.shape[-1], x.device)[0]
    kind = outlier_kind(threshold, per_token, columns)
    added = None if residual is None else _rows(residual)
    weight, bias = (part if part is None else part.contiguous() for part in (weight, bias))
    y, codes, scale, found, total = norm_quantize(
        _rows(x), added, weight, bias, eps, centered, kind, threshold, flags
    )  # fmt: skip
    total = total if residual is None else total.reshape(x.shape)
    return y.reshape(x.shape), codes.reshape(x.shape), scale.reshape(x.shape[:-1]), found, total


def _cuda_norm_quantize_fake(x, residual, weight, bias, eps, centered, threshold, per_token, columns=None):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(0 if residual is None else x.shape, dtype=x.dtype, device=x.device)
    return y, *_cuda_quantize_fake(x, threshold, per_token, columns), total


cuda_norm_quantize = _define(
    "cuda_norm_quantize(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, bool centered, "
    "float threshold, bool per_token, int[]? columns=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _cuda_norm_quantize_fake,
    _cuda_norm_quantize,
)


# --- cuda_linear: the Linear of a quantized x; weight float[N, K], or None to dequantize outlier columns from w_codes
# words: a cache of the weight's columns (`column_words.py`), or None. That the op writes to it is in no schema: what a
# cache holds changes no result, and graphs need no copies of it, nor an order of those that share it.


def _cuda_linear(
    x, codes, scale, found, w_codes, w_scale, bias, weight, words, threshold, per_token, dtype, columns=None
):  # fmt: skip
    from int8pass.kernels.cuda.epilogue import Epilogue
    from int8pass.kernels.cuda.many_rows import many_rows_linear

    _require(x)
    if columns is not None:
        found = known_columns(tuple(columns), x.shape[-1], x.device)[1]
    source = w_codes if weight is None else weight
    epilogue = Epilogue(
        scale.reshape(-1), w_scale, bias, _rows(x), source, words, found, outlier_kind(threshold, per_token, columns),
        threshold, dtype,
    )  # fmt: skip
    y = many_rows_linear(codes.reshape(-1, codes.shape[-1]), w_codes, epilogue)
    return y.reshape(*x.shape[:-1], w_scale.shape[0])


def _cuda_linear_fake(
    x, codes, scale, found, w_codes, w_scale, bias, weight, words, threshold, per_token, dtype, columns=None
):  # fmt: skip
    return torch.empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype, device=x.device)


cuda_linear = _define(
    "cuda_linear(Tensor x, Tensor codes, Tensor scale, Tensor found, Tensor w_codes, Tensor w_scale, Tensor? bias, "
    "Tensor? weight, Tensor? words, float threshold, bool per_token, ScalarType dtype, int[]? columns=None) -> Tensor",
    _cuda_linear_fake,
    _cuda_linear,
)


# --- cuda_int8_linear: both in one, for an input that no other Linear reads, and for few rows


def _cuda_int8_linear(x, w_codes, w_scale, bias, weight, words, threshold, per_token, dtype, columns=None):
    from int8pass.kernels.cuda.few_rows import few_rows_linear

    _require(x)
    rows = _rows(x)
    if rows.shape[0] > FEW_ROWS or rows.numel() == 0:
        quantized = _cuda_quantize(x, threshold, per_token, columns)
        return _cuda_linear(x, *quantized, w_codes, w_scale, bias, weight, words, threshold, per_token, dtype, columns)
    flags = None if columns is None else known_columns(tuple(columns), x.shape[-1], x.device)[0]
    kind = outlier_kind(threshold, per_token, columns)
    y = few_rows_linear(rows, w_codes, w_scale, bias, weight, words, flags, kind, threshold, dtype)
    return y.reshape(*x.shape[:-1], w_scale.shape[0])


def _cuda_int8_linear_fake(x, w_codes, w_scale, bias, weight, words, threshold, per_token, dtype, columns=None):
    return torch.empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype, device=x.device)


cuda_int8_linear = _define(
    "cuda_int8_linear(Tensor x, Tensor w_codes, Tensor w_scale, Tensor? bias, Tensor? weight, Tensor? words, "
    "float threshold, bool per_token, ScalarType dtype, int[]? columns=None) -> Tensor",
    _cuda_int8_linear_fake,
    _cuda_int8_linear,
)


@functools.lru_cache(maxsize=4096)
def known_columns(columns: tuple[int, ...], features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The columns of a profile on the device: flags int8[K], and int32[1 + J], their number, then they themselves.

    Made once, when a graph is compiled: a copy from the host is nothing that a CUDA graph may capture.
    """
    flags = torch.zeros(features, dtype=torch.int8)
    flags[list(columns)] = 1
    listed = torch.tensor([len(columns), *sorted(columns)], dtype=torch.int32)
    return flags.to(device), listed.to(device)


def outlier_kind(threshold: float, per_token: bool, columns: list[int] | None) -> int:
    """Which features the kernels take for outliers."""
    if columns is not None:
        return LISTED
    if threshold == 0.0:
        return NONE
    return TOKEN if per_token else COLUMN


def _rows(x: Tensor) -> Tensor:
    """x as [M, K] with contiguous rows; copied only where it lies otherwise."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _require(x: Tensor) -> None:
    if x.device.type == "cuda":
        require_device(x.device)


@functools.cache
def require_device(device: torch.device) -> None:
    """Raise UnsupportedDeviceError for a GPU without int8 tensor cores, MissingDependencyError without Triton."""
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip or capability < OLDEST_CAPABILITY:
        name, found = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise UnsupportedDeviceError(
            f"{name} (compute capability {found}) has no int8 tensor cores that int8pass uses: it needs an NVIDIA GPU "
            "of compute capability 7.5 or newer. options={'lowering': 'eager'} runs the ops one by one, slower than "
            "the float model."
        )
    if capability < _FAST_CAPABILITY:
        logger.warning(
            "Triton compiles int8 products for compute capability 7.5 without tensor cores: the results are right, but "
            "slower than the float model's"
        )
    if importlib.util.find_spec("triton") is None:
        raise MissingDependencyError(
            "int8 on CUDA needs Triton, which PyTorch's CUDA builds bring along: pip install 'int8pass[gpu]'"
        )
