"""Linears that read the same activation (q/k/v, gate/up) share one outlier mask, one scale and one quantization.

before:
    %scale_1 : f32[4] = int8pass.scale_per_token(%x, %mask)
    %scale_2 : f32[4] = int8pass.scale_per_token(%x, %mask)
after:
    %scale_1 : f32[4] = int8pass.scale_per_token(%x, %mask)
"""

import torch
from torch import fx

from int8pass import ops
from int8pass.graph import is_mutation
from int8pass.program import Program

_SHARED = frozenset(
    {
        torch.ops.aten.detach.default,
        ops.outlier_mask,
        ops.column_mask,
        ops.scale_features,
        ops.scale_per_token,
        ops.scale_per_tensor,
        ops.asymmetric_scale,
        ops.zero_point,
        ops.static_scale,
        ops.static_zero_point,
        ops.quantize_per_token,
        ops.quantize_per_tensor,
        ops.quantize_asymmetric,
        ops.quantize_static,
    }
)


def share_activation_quantize(program: Program) -> int:
    """Merge equal nodes. A node that may write to memory starts over: what follows it may read other values."""
    present: dict[tuple, fx.Node] = {}
    merged = 0
    for node in list(program.graph.nodes):
        if node.op in ("call_function", "call_method") and is_mutation(node):
            present.clear()
        if node.op != "call_function" or node.target not in _SHARED:
            continue
        key = (node.target, node.args)
        if key in present:
            node.replace_all_uses_with(present[key])
            program.graph.erase_node(node)
            merged += 1
        else:
            present[key] = node
    return merged
