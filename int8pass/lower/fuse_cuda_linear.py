"""CUDA: a rewritten Linear becomes one op of Triton kernels; Linears with a common input share its quantization.

before:
    %outlier_mask : bool[64] = int8pass.outlier_mask(%x, 6.0, 'column')
    %scale_per_token : f32[32] = int8pass.scale_per_token(%x, %outlier_mask)
    %quantize_per_token : i8[32, 64] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
    %int8_mm : i32[32, 48] = int8pass.int8_mm(%quantize_per_token, %w_codes)
    %outlier_mm : f32[32, 48] = int8pass.outlier_mm(%x, %outlier_mask, %w)
    %dequantize : f16[32, 48] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, %outlier_mm, %bias, float16)
after:
    %cuda_int8_linear : f16[32, 48] = int8pass.cuda_int8_linear(%x, %w_codes, %w_scale, %bias, %w, %w_column_words, ...)
or, where %x has several readers and more than a few rows:
    %cuda_quantize : (i8[32, 64], f32[32], i32[65]) = int8pass.cuda_quantize(%x, 6.0, False)
    %getitem : i8[32, 64] = getitem(%cuda_quantize, 0)
    ...
    %cuda_linear : f16[32, 48] = int8pass.cuda_linear(%x, %getitem, %getitem_1, %getitem_2, %w_codes, %w_scale, ...)

%w_column_words : i32[8, 48] keeps outlier columns of %w between calls. A profile's columns follow as a last argument.
"""

import math

import torch
from torch import fx

from int8pass.graph import insert, replace, value_of
from int8pass.kernels.cuda import fused
from int8pass.kernels.cuda.column_words import words_field
from int8pass.lower.rewritten_linear import RewrittenLinear, match_rewritten_linear, quantize_shared_inputs
from int8pass.program import Program


def fuse_cuda_linear(program: Program) -> int:
    """Fuse every rewritten Linear on CUDA. Returns how many. Raises UnsupportedDeviceError, MissingDependencyError."""
    found = [match for node in list(program.graph.nodes) if (match := _match(node)) is not None]
    for match in found:
        _prepare(match)
    shared = quantize_shared_inputs([match for match in found if not _has_few_rows(match.x)], _quantize)
    for match in found:
        replace(match.dequantize, _linear(program, match, shared.get(match.quantize, ())))
    return len(found)


def _match(node: fx.Node) -> RewrittenLinear | None:
    match = match_rewritten_linear(node, "cuda")
    return match if match and 0 < value_of(match.codes).shape[1] <= fused.LARGEST_K else None


def _prepare(match: RewrittenLinear) -> None:
    """Check the device, and put a profile's columns there."""
    x = value_of(match.x)
    if torch.cuda.is_available():  # not where a graph is only looked at, on a machine without a GPU
        fused.require_device(x.device)
        for columns in match.known_columns:
            fused.known_columns(columns, x.shape[-1], x.device)


def _has_few_rows(x: fx.Node) -> bool:
    """Whether x has so few rows that each Linear quantizes it within its one kernel."""
    rows = math.prod(value_of(x).shape[:-1])
    return isinstance(rows, int) and rows <= fused.FEW_ROWS


def _quantize(match: RewrittenLinear) -> fx.Node:
    return insert(match.quantize, fused.cuda_quantize, match.x, *match.outlier_rule, *match.known_columns)


def _linear(program: Program, match: RewrittenLinear, quantized: tuple[fx.Node, ...]) -> fx.Node:
    op = fused.cuda_linear if quantized else fused.cuda_int8_linear
    *_, w_scale, _, bias, dtype = match.dequantize.args
    return insert(
        match.dequantize, op, match.x, *quantized, match.codes, w_scale, bias, match.weight,
        _column_words(program, match), *match.outlier_rule, dtype, *match.known_columns,
    )  # fmt: skip


def _column_words(program: Program, match: RewrittenLinear) -> fx.Node | None:
    """The cache of the weight's outlier columns; None where they come from int8, or the weight is not the pass's."""
    held = program.weight_inputs.get(match.codes.name)
    if match.weight is None or held is None:
        return None
    field = words_field(value_of(match.weight).dtype, bool(match.known_columns))
    return program.weight_input(held.expression, field)
