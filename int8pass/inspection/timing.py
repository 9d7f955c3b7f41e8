"""What a rewritten Linear takes on the inputs that it met, part by part, against the float Linear."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from int8pass import ops
from int8pass.bench.timing import SHORT_PAUSE_SECONDS, interleave, median
from int8pass.composition import call_op, dequantize, multiply
from int8pass.config import Int8MixedConfig
from int8pass.inspection.float_run import LinearCall
from int8pass.kernels.cpu import fused
from int8pass.weights import QuantizedWeight

ROUNDS = 3
BATCH_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """Seconds a call, medians of interleaved rounds. float: PyTorch's Linear; int8: all of the rewritten one.

    quantize: mask, scales and codes; gemm: the int8 product; dequantize: scales, bias and cast, None where the fused
    CPU kernel does them inside the product; outliers: the outlier branch. The parts of the fused kernel are
    differences of whole calls; op by op they are timed one by one.
    """

    float: float
    int8: float
    quantize: float
    gemm: float
    dequantize: float | None
    outliers: float


def time_linear(call: LinearCall, config: Int8MixedConfig) -> Timing | None:
    """Time a Linear as compiled models run it, without what Inductor fuses around it. None: it cannot be int8."""
    if call.int8(config) is None:
        return None
    held = call.graph.program.quantized(call.expression, config.weight_form)
    weight = QuantizedWeight(held.codes, held.scale)  # of its own: packing gives up the codes
    is_fused = (
        config.lowering == "inductor"
        and config.scheme.has_default_form
        and call.x.device.type == "cpu"
        and call.x.shape[-1] <= fused.LARGEST_K
        and fused.is_available()
    )
    calls = _fused_calls(call, weight, config) if is_fused else _op_calls(call, weight, config)
    calls["float"] = functools.partial(torch.nn.functional.linear, call.x, call.weight, call.bias)
    found = interleave(calls, ROUNDS, BATCH_SECONDS, longest_pause=SHORT_PAUSE_SECONDS)
    seconds = {name: median(each) for name, each in found.items()}
    return _from_fused(seconds) if is_fused else _from_ops(seconds)


def _fused_calls(call: LinearCall, weight: QuantizedWeight, config: Int8MixedConfig) -> dict[str, Callable]:
    static, profiled = call.static(config), call.columns(config)

    def rule(branch: bool) -> tuple[float, bool, tuple[int, ...] | None]:
        """threshold, per_token and columns, with or without an outlier branch."""
        if profiled is not None:
            return 0.0, False, (profiled or None) if branch and config.threshold else None
        return (config.threshold if branch else 0.0), config.outliers == "token", None

    def quantize(branch: bool) -> Any:
        threshold, per_token, columns = rule(branch)
        if static is not None:
            return fused.cpu_quantize_static(call.x, static.scale, columns or ())
        return fused.cpu_quantize(call.x, threshold, per_token, columns)

    def whole(branch: bool) -> Tensor:
        threshold, per_token, columns = rule(branch)
        original = call.weight if config.keeps_original_weights and (threshold or columns) else None
        cache = None if original is None else weight.profiled_cache if columns else weight.column_cache
        held = (weight.packed, weight.offset, weight.scale, call.bias, original, cache)
        if static is not None:
            return fused.cpu_static_linear(call.x, *held, static.scale, columns or (), call.y.dtype)
        return fused.cpu_int8_linear(call.x, *held, threshold, per_token, call.y.dtype, columns)

    return {
        "int8": functools.partial(whole, True),
        "plain": functools.partial(whole, False),
        "quantize": functools.partial(quantize, True),
        "quantize plain": functools.partial(quantize, False),
    }


def _from_fused(seconds: dict[str, float]) -> Timing:
    """The outlier branch is what leaving it out saves beyond a cheaper quantization; the product is the rest."""
    gemm = max(seconds["plain"] - seconds["quantize plain"], 0.0)
    outliers = max(seconds["int8"] - seconds["quantize"] - gemm, 0.0)
    return Timing(seconds["float"], seconds["int8"], seconds["quantize"], gemm, None, outliers)


def _op_calls(call: LinearCall, weight: QuantizedWeight, config: Int8MixedConfig) -> dict[str, Callable]:
    mask, quantized = call.quantized(config)
    columns = (call.weight,) if config.keeps_original_weights else (weight.codes, weight.scale)
    if config.keeps_original_weights and config.profile is not None:
        columns = (call.weight, weight.scale)  # in 16 bits
    part, form = functools.partial(getattr, weight), config.scheme.weights
    sums = multiply(call_op, form, quantized, part)
    outlier = None if mask is None else ops.outlier_mm(call.x, mask, *columns)
    calls: dict[str, Callable] = {
        "int8": functools.partial(call.int8, config),
        "quantize": functools.partial(call.quantized, config),
        "gemm": functools.partial(multiply, call_op, form, quantized, part),
        "dequantize": functools.partial(
            dequantize, call_op, form, sums, quantized, part, outlier, call.bias, call.y.dtype
        ),
    }
    if mask is not None:
        calls["outliers"] = functools.partial(ops.outlier_mm, call.x, mask, *columns)
    return calls


def _from_ops(seconds: dict[str, float]) -> Timing:
    return Timing(**{"outliers": 0.0, **seconds})
