"""CUDA: the quantization of what LayerNorm or RMSNorm gives becomes one op with it, and with the add before it.

Only at sizes where `examples/bench_gpu.py --norms` measured that to be faster on the device: nowhere, until it has run.

before:
    %add : f16[32, 64] = add(%x, %attention)
    %rms_norm : f16[32, 64] = rms_norm(%add, (64,), %weight, 1e-05)
    %cuda_quantize : (i8[32, 64], f32[32], i32[65]) = int8pass.cuda_quantize(%rms_norm, 6.0, False)
after:
    %cuda_norm_quantize : (f16[32, 64], i8[32, 64], f32[32], i32[65], f16[32, 64])
        = int8pass.cuda_norm_quantize(%x, %attention, %weight, None, 1e-05, False, 6.0, False)

Its results: what the norm gives, codes, scale, outlier columns, and the sum. A Linear that is alone behind a norm
(`cuda_int8_linear`) becomes `cuda_linear` of them, unless it has so few rows that it quantizes within its one kernel.
"""

import logging
import math
import operator
from dataclasses import dataclass

import torch
from torch import fx

from int8pass.graph import erase_dead, insert, is_mutation, is_torch_call, operation, replace, value_of
from int8pass.kernels.cuda import fused, norms
from int8pass.lower.norm import Norm, match_norm, without_view
from int8pass.program import Program
from int8pass.torch_private import size_hint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Quantized:
    """A norm and the node that quantizes its result. add: the sum that the norm is of, None where that stays apart;
    rule: threshold, per_token, and the columns of a profile if there is one, the last arguments of the op."""

    reader: fx.Node
    norm: Norm
    add: fx.Node | None
    rule: tuple

    @property
    def size(self) -> norms.Size | None:
        """What was measured, or not; None where the number of rows depends on data."""
        *leading, features = value_of(self.norm.x).shape
        rows = [size_hint(size) for size in leading]
        if None in rows:
            return None
        threshold, per_token, columns = (*self.rule, None)[:3]
        kind = fused.outlier_kind(threshold, per_token, columns)
        dtype, added = value_of(self.norm.y).dtype, self.add is not None
        return norms.Size.of(math.prod(rows), features, dtype, kind, self.norm.centered, added)


def fuse_cuda_norm(program: Program) -> int:
    """Fuse each norm where that was measured to gain. Returns how many; the log says why another one is left."""
    found = 0
    for node in list(program.graph.nodes):
        match = _match(node)
        if match is None:
            continue
        if reason := _refusal(match):
            logger.debug("%s, quantized by %s, is left as it is: %s", match.norm.y.name, node.name, reason)
        else:
            _rewrite(match)
            found += 1
    return found


def _match(node: fx.Node) -> _Quantized | None:
    if node.target is fused.cuda_quantize:
        rule = node.args[1:]
    elif node.target is fused.cuda_int8_linear:
        rule = (*node.args[6:8], *node.args[9:])
    else:
        return None
    norm = match_norm(without_view(node.args[0]))
    return None if norm is None else _Quantized(node, norm, _residual_add(norm), rule)


def _residual_add(norm: Norm) -> fx.Node | None:
    """The sum of two equal tensors that a norm is of, where all that the norm reads besides is there before it."""
    add = without_view(norm.x)
    if operation(add) != "add" or not is_torch_call(add) or len(add.args) != 2 or add.kwargs:
        return None
    values = [value_of(part) for part in (add, *add.args)]
    if not all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in values):
        return None
    total = values[0]
    is_plain = all(value.dtype == total.dtype and value.shape == total.shape for value in values)
    parts_are_inputs = all(part is None or part.op in ("placeholder", "get_attr") for part in (norm.weight, norm.bias))
    return add if is_plain and parts_are_inputs else None


def _refusal(match: _Quantized) -> str:
    """Why a norm is left as it is; "" where it is fused."""
    x, rows = value_of(match.norm.x), math.prod(value_of(match.norm.x).shape[:-1])
    if match.reader.target is fused.cuda_int8_linear and not (isinstance(rows, int) and rows > fused.FEW_ROWS):
        return "so few rows, or it may be so few, are quantized within the Linear's one kernel"
    if not (x.is_contiguous() and value_of(match.norm.y).is_contiguous()):
        return "its input does not lie row after row, or its result"
    if _is_written_between(match.norm.first if match.add is None else match.add, match.reader):
        return "memory is written to in between"
    if match.size is None:
        return "its number of rows depends on data"
    if not norms.pays(match.size, x.device):
        return f"not measured to be faster: {match.size}"
    return ""


def _is_written_between(first: fx.Node, last: fx.Node) -> bool:
    node = first
    while node is not last:
        if node.op in ("call_function", "call_method") and is_mutation(node):
            return True
        node = node.next
    return False


def _rewrite(match: _Quantized) -> None:
    norm, add = match.norm, match.add
    start = norm.y if add is None else add
    x, residual = (norm.x, None) if add is None else add.args
    rest = (norm.weight, norm.bias, norm.eps, norm.centered, *match.rule)
    results = insert(start, fused.cuda_norm_quantize, x, residual, *rest)
    y, *quantized = (insert(start, operator.getitem, results, index) for index in range(4))
    _replace_quantized(match.reader, quantized)
    if add is not None:
        add.replace_all_uses_with(insert(start, operator.getitem, results, 4))
        y = y if norm.x is add else _in_view(norm, y)
    replace(norm.y, y)
    if add is not None:
        erase_dead(add)


def _replace_quantized(reader: fx.Node, quantized: list[fx.Node]) -> None:
    """Let codes, scale and columns stand for those of a cuda_quantize, or be what a cuda_int8_linear multiplies."""
    if reader.target is fused.cuda_quantize:
        for part in list(reader.users):
            replace(part, quantized[part.args[1]])
    else:
        x, *rest = reader.args
        replace(reader, insert(reader, fused.cuda_linear, x, *quantized, *rest))


def _in_view(norm: Norm, y: fx.Node) -> fx.Node:
    """y in the shape in which the norm saw the sum."""
    view = norm.x
    with view.graph.inserting_before(view):
        seen = view.graph.node_copy(view, lambda node: y if node is view.args[0] else node)
    seen.meta["val"] = value_of(norm.y)
    return seen
