"""The rewrite: a Linear becomes row-quantize, int8 GEMM, dequantize, plus a 16-bit branch for outlier features.

before:
    %y : f32[4, 32] = aten.linear(%x, %w, %bias)
after:
    %outlier_mask : bool[64] = int8pass.outlier_mask(%x, 6.0, 'column')
    %scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
    %quantize_per_token : i8[4, 64] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
    %int8_mm : i32[4, 32] = int8pass.int8_mm(%quantize_per_token, %w_codes)
    %outlier_mm : f32[4, 32] = int8pass.outlier_mm(%x, %outlier_mask, %w)
    %dequantize : f32[4, 32] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, %outlier_mm, %bias, float32)

With a calibrated profile the mask is a constant, `int8pass.column_mask(%x, (3, 7))`, and the outlier branch reads the
weight in 16 bits, `int8pass.outlier_mm(%x, %column_mask, %w, %w_scale)`; a Linear without outlier columns has no such
branch. Where the profile holds an input factor, `int8pass.scale_features(%x, %w_input_factor)` takes the place of %x.
Other schemes than the default have other ops in the place of these (`composition.py`). Where a gradient is wanted the
ops read %x.detach(), and `int8pass.straight_through` carries the gradient of x around them, through the dequantized
weight; the bias is added by plain operations, which autograd knows.
"""

import functools

import torch
from torch import fx

from int8pass import ops
from int8pass.composition import int8_mixed_linear
from int8pass.errors import WeightError
from int8pass.freed_parameter import free, is_freed
from int8pass.graph import insert, replace, value_of
from int8pass.program import Program
from int8pass.quantization.static import StaticScale
from int8pass.weight_expression import WeightExpression


def linear_to_int8_mixed(program: Program) -> int:
    """Rewrite each Linear in program.linears. Returns how many were rewritten."""
    count = 0
    while program.linears:
        node, expression = next(iter(program.linears.items()))
        del program.linears[node]
        columns = program.profiled_columns(expression, node)
        static = program.static_scale(expression, node)
        try:
            program.quantized(expression)
        except WeightError as error:
            program.skip(node, str(error), expression)
            continue
        program.rewrote(node, expression)
        replace(node, _int8_mixed(program, node, expression, columns, static))
        _free_if_unused(program, expression)
        count += 1
    return count


def _int8_mixed(
    program: Program,
    node: fx.Node,
    expression: WeightExpression,
    columns: tuple[int, ...] | None,
    static: StaticScale | None,
) -> fx.Node:
    config = program.config
    x, weight, bias = (*node.args, None)[:3]
    x = _with_factor(program, node, x, expression)
    return int8_mixed_linear(
        functools.partial(insert, node),
        x,
        functools.partial(program.weight_input, expression),
        bias,
        scheme=config.scheme,
        threshold=config.threshold,
        outliers=config.outliers,
        dtype=value_of(node).dtype,
        weight=weight if config.keeps_original_weights else None,
        differentiable=value_of(node).requires_grad,
        columns=columns,
        static=static,
    )


def _with_factor(program: Program, node: fx.Node, x: fx.Node, expression: WeightExpression) -> fx.Node:
    """x, times the input factor where the profile gives the weight one. Those of x with equal ones read one."""
    factor = program.quantized(expression).input_factor
    if factor is None:
        return x
    for other in x.users:
        if other.target is ops.scale_features and other.args[1].name in program.weight_inputs:
            known = program.quantized(program.weight_inputs[other.args[1].name].expression).input_factor
            if torch.equal(known, factor):
                return insert(node, ops.scale_features, x, other.args[1])
    return insert(node, ops.scale_features, x, program.weight_input(expression, "input_factor"))


def _free_if_unused(program: Program, expression: WeightExpression) -> None:
    """Release the float weight as soon as the last Linear that read it is rewritten."""
    tensor = program.tensors[expression.root].tensor
    at_once = program.config.free_weights and not program.frees_at_calls
    freeable = isinstance(tensor, torch.nn.Parameter) and not is_freed(tensor)
    if at_once and freeable and not program.source(expression).users:
        free(tensor)
