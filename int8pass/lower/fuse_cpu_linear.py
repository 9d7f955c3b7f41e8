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

import operator
from collections import Counter
from dataclasses import dataclass

from torch import fx

from int8pass import ops
from int8pass.graph import insert, replace, value_of
from int8pass.kernels.cpu import fused
from int8pass.program import Program

# a static zero point other than 0 goes with dequantize_asymmetric, which is not matched
_QUANTIZE = (ops.quantize_per_token, ops.quantize_static)


@dataclass(frozen=True)
class Match:
    """The parts of one rewritten Linear. mask: None at threshold 0; weight: None where columns are dequantized."""

    dequantize: fx.Node
    quantize: fx.Node
    codes: fx.Node
    mask: fx.Node | None
    weight: fx.Node | None

    @property
    def static(self) -> bool:
        """Whether the scale is that of a profile's range."""
        return self.quantize.target is ops.quantize_static

    @property
    def x(self) -> fx.Node:
        return self.quantize.args[0]


def fuse_cpu_linear(program: Program) -> int:
    """Fuse every rewritten Linear on the CPU whose weight is the pass's own. Returns how many were fused."""
    found = [match for node in list(program.graph.nodes) if (match := _match(program, node)) is not None]
    if not found or not fused.is_available():
        return 0
    readers = Counter(match.quantize for match in found)
    shared: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for match in found:
        if readers[match.quantize] > 1 and match.quantize not in shared:
            shared[match.quantize] = _quantize(match)
    for match in found:
        replace(match.dequantize, _linear(program, match, shared.get(match.quantize, ())))
        if not match.codes.users:
            program.remove_input(match.codes)
    return len(found)


def _match(program: Program, node: fx.Node) -> Match | None:
    if node.target is not ops.dequantize or value_of(node).device.type != "cpu":
        return None
    sums, _, _, outlier, _, _ = node.args
    quantize, codes = sums.args
    reads_codes_alone = all(user.target in (ops.int8_mm, ops.outlier_mm) for user in codes.users)
    if codes.name not in program.weight_inputs or not reads_codes_alone:
        return None
    if value_of(codes).shape[1] > fused.LARGEST_K or quantize.target not in _QUANTIZE:
        return None
    mask = quantize.args[-1]
    weight = outlier.args[2] if outlier is not None and outlier.args[2] is not codes else None
    return Match(node, quantize, codes, mask, weight)


def _quantize(match: Match) -> tuple[fx.Node, ...]:
    if match.static:
        result = insert(match.quantize, fused.cpu_quantize_static, match.x, *_static_rule(match))
    else:
        threshold, per_token, columns = _outlier_rule(match)
        result = insert(match.quantize, fused.cpu_quantize, match.x, threshold, per_token, *columns)
    return tuple(insert(match.quantize, operator.getitem, result, index) for index in range(3))


def _linear(program: Program, match: Match, quantized: tuple[fx.Node, ...]) -> fx.Node:
    node = match.dequantize
    *_, w_scale, _, bias, dtype = node.args
    expression = program.weight_inputs[match.codes.name].expression
    packed, offset = (program.weight_input(expression, part) for part in ("packed", "offset"))
    threshold, per_token, columns = _outlier_rule(match)
    field = "profiled_cache" if columns else "column_cache"
    cache = None if match.weight is None else program.weight_input(expression, field)
    if match.static and not quantized:
        return insert(
            node, fused.cpu_static_linear, match.x, packed, offset, w_scale, bias, match.weight, cache,
            *_static_rule(match), dtype,
        )  # fmt: skip
    op = fused.cpu_linear if quantized else fused.cpu_int8_linear
    return insert(
        node, op, match.x, *quantized, packed, offset, w_scale, bias, match.weight, cache, threshold, per_token, dtype,
        *columns,
    )  # fmt: skip


def _static_rule(match: Match) -> tuple[float, tuple[int, ...]]:
    """The scale, and the outlier columns."""
    return match.quantize.args[1], () if match.mask is None else match.mask.args[1]


def _outlier_rule(match: Match) -> tuple[float, bool, tuple[tuple[int, ...], ...]]:
    """threshold (0.0: no outlier is looked for), per_token, and the columns of a profile, if any, as arguments."""
    if match.mask is None:
        return 0.0, False, ()
    if match.mask.target is ops.column_mask:
        return 0.0, False, (match.mask.args[1],)
    _, threshold, outliers = match.mask.args
    return threshold, outliers == "token", ()
