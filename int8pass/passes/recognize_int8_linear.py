"""Linears that are int8 already (`int8pass.Int8Linear`): recorded, never quantized again.

before and after: the same graph.
"""

from int8pass import ops
from int8pass.graph import module_path, value_of
from int8pass.program import Decision, Program

_WEIGHT = {ops.int8_mm: 1, ops.grouped_int8_mm: 2}  # the place of the codes among the arguments
ALREADY_INT8 = "already int8 (Int8Linear)"


def recognize_int8_linear(program: Program) -> int:
    """Record each int8 product that the model itself holds. Returns how many there are."""
    found = [node for node in program.graph.nodes if node.target in _WEIGHT]
    for node in found:
        weight = node.args[_WEIGHT[node.target]]
        source = program.tensors.get(weight.name)
        program.decisions.append(
            Decision(
                node=node.name,
                module=source.module if source else module_path(node),
                operation="int8_mm",
                weight_shape=tuple(value_of(weight).shape),
                dtype="int8",
                reason=ALREADY_INT8,
                weight_bytes=value_of(weight).numel(),
                int8_bytes=value_of(weight).numel(),
            )
        )
    return len(found)
