"""CPU: a rewritten Linear becomes one call of the fused kernel; Linears with a common input share its first half.

before:
    %outlier_mask : bool[64] = int8pass.outlier_mask(%x, 6.0, 'column')
    %scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
    %quantize_per_token : i8[4, 64] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
    %int8_mm : i32[4, 32] = int8pass.int8_mm(%quantize_per_token, %w_codes)
    %outlier_mm : f32[4, 32] = int8pass.outlier_mm(%x, %outlier_mask, %w)
    %dequantize : f32[4, 32] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, %outlier_mm, %bias, float32)
after:
    %cpu_int8_linear : f32[4, 32] = int8pass.cpu_int8_linear(%x, %w_packed, %w_offset, %w_scale, %bias, %w, ...)
or, by the range of a profile (activations="static"):
    %cpu_static_linear : f32[4, 32] = int8pass.cpu_static_linear(%x, %w_packed, %w_offset, %w_scale, %bias, %w, ...)
or, where %x has several readers:
    %cpu_quantize : (u8[4, 64], f32[4], bool[64]) = int8pass.cpu_quantize(%x, 6.0, False)
    %getitem : u8[4, 64] = getitem(%cpu_quantize, 0)
    ...
    %cpu_linear : f32[4, 32] = int8pass.cpu_linear(%x, %getitem, %getitem_1, %getitem_2, %w_packed, %w_offset, ...)
"""

from torch import fx

from int8pass import ops
from int8pass.graph import insert, replace, value_of
from int8pass.kernels.cpu import fused
from int8pass.lower.rewritten_linear import RewrittenLinear, match_rewritten_linear, quantize_shared_inputs
from int8pass.program import Program


def fuse_cpu_linear(program: Program) -> int:
    """Fuse every rewritten Linear on the CPU whose weight is the pass's own. Returns how many were fused."""
    found = [match for node in list(program.graph.nodes) if (match := _match(program, node)) is not None]
    if not found or not fused.is_available():
        return 0
    shared = quantize_shared_inputs(found, _quantize)
    for match in found:
        replace(match.dequantize, _linear(program, match, shared.get(match.quantize, ())))
        if not match.codes.users:
            program.remove_input(match.codes)
    return len(found)


def _match(program: Program, node: fx.Node) -> RewrittenLinear | None:
    match = match_rewritten_linear(node, "cpu", static=True)
    if match is None:
        return None
    reads_codes_alone = all(user.target in (ops.int8_mm, ops.outlier_mm) for user in match.codes.users)
    takes_weight = match.codes.name in program.weight_inputs and value_of(match.codes).shape[1] <= fused.LARGEST_K
    return match if reads_codes_alone and takes_weight else None


def _quantize(match: RewrittenLinear) -> fx.Node:
    if match.static_scale is not None:
        return insert(match.quantize, fused.cpu_quantize_static, match.x, *_static_rule(match))
    return insert(match.quantize, fused.cpu_quantize, match.x, *match.outlier_rule, *match.known_columns)


def _linear(program: Program, match: RewrittenLinear, quantized: tuple[fx.Node, ...]) -> fx.Node:
    node = match.dequantize
    *_, w_scale, _, bias, dtype = node.args
    expression = program.weight_inputs[match.codes.name].expression
    packed, offset = (program.weight_input(expression, part) for part in ("packed", "offset"))
    field = "profiled_cache" if match.known_columns else "column_cache"
    cache = None if match.weight is None else program.weight_input(expression, field)
    weights = (packed, offset, w_scale, bias, match.weight, cache)
    if match.static_scale is not None and not quantized:
        return insert(node, fused.cpu_static_linear, match.x, *weights, *_static_rule(match), dtype)
    op = fused.cpu_linear if quantized else fused.cpu_int8_linear
    return insert(node, op, match.x, *quantized, *weights, *match.outlier_rule, dtype, *match.known_columns)


def _static_rule(match: RewrittenLinear) -> tuple[float, tuple[int, ...]]:
    """The scale, and the outlier columns."""
    return match.static_scale, *(match.known_columns or ((),))
