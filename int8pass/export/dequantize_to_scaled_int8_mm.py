"""For files: int8_mm and dequantize become one op over a weight that lies inputs first; profiled columns, constants.

before:
    %int8_mm : i32[4, 32] = int8pass.int8_mm(%quantize_per_token, %weight_codes)
    %outlier_mm : f32[4, 32] = int8pass.outlier_mm(%x, %outlier_mask, %weight_codes, %weight_scale)
    %dequantize : f32[4, 32] = int8pass.dequantize(%int8_mm, %scale_per_token, %weight_scale, %outlier_mm, ...)
after:
    %gathered_mm : f32[4, 32] = int8pass.gathered_mm(%x, %outlier_mask, %weight_inputs_first, %weight_scale)
    %scaled_int8_mm : f32[4, 32] = int8pass.scaled_int8_mm(%quantize_per_token, %scale_per_token,
        %weight_inputs_first, %weight_scale, %gathered_mm, %bias, float32)
and where the mask is a `column_mask`, of calibrated columns, in place of %gathered_mm and %bias:
    %column_mm : f32[4, 32] = int8pass.column_mm(%x, (3, 7), %weight_columns, %weight_scale, %bias)
"""

import torch
from torch import fx

from int8pass import ops
from int8pass.export.streamed_program import StreamedProgram, inputs_first
from int8pass.graph import insert, replace, value_of

_Weight = tuple[fx.Node, fx.Node]  # codes int8[K, N], scale float32[N]


def dequantize_to_scaled_int8_mm(program: StreamedProgram) -> int:
    """Rewrite every Linear. Returns how many there were."""
    found = [node for node in program.graph.nodes if node.target is ops.dequantize]
    int8_linears: dict[fx.Node, _Weight] = {}
    for node in found:
        sums, x_scale, scale, outlier, bias, dtype = node.args
        x_codes, codes = sums.args
        weight = _inputs_first(program, codes, scale, int8_linears)
        part = None if outlier is None else _outlier_part(program, node, outlier, codes, weight)
        rest = None if part is not None and part.target is ops.column_mm else bias
        linear = insert(node, ops.scaled_int8_mm, x_codes, x_scale, *weight, part, rest, dtype)
        replace(node, linear)
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in program.weight_inputs and not node.users:
            program.remove_input(node)
    return len(found)


def _inputs_first(
    program: StreamedProgram, codes: fx.Node, scale: fx.Node, int8_linears: dict[fx.Node, _Weight]
) -> _Weight:
    """The weight of a Linear; that of an Int8Linear is a buffer, of which a transposed copy is added once."""
    if codes.name in program.weight_inputs:
        expression = program.weight_inputs[codes.name].expression
        return program.weight_input(expression, "inputs_first"), program.weight_input(expression, "scale")
    if codes not in int8_linears:
        transposed = inputs_first(program.tensors[codes.name].tensor, program.multiple)
        int8_linears[codes] = (program.add_constant(f"{codes.name}_inputs_first", transposed), scale)
    return int8_linears[codes]


def _outlier_part(
    program: StreamedProgram, node: fx.Node, outlier: fx.Node, codes: fx.Node, weight: _Weight
) -> fx.Node:
    x, mask, columns_of, *_ = outlier.args
    if mask.target is not ops.column_mask:
        return insert(node, ops.gathered_mm, x, mask, *weight)
    columns = tuple(mask.args[1])
    expression = program.weight_inputs[codes.name].expression
    original = value_of(columns_of).dtype is not torch.int8
    rows, in_units_of_scale = program.quantized(expression).columns(columns, original)
    constant = program.add_constant(f"{program.source(expression).name}_columns", rows)
    unit = weight[1] if in_units_of_scale else None
    return insert(node, ops.column_mm, x, columns, constant, unit, node.args[4])
