"""Weights become constants: torch-tensorrt would make inputs of the engine of those that are graph inputs.

before:
    %w_codes : i8[32, 64] = placeholder
    %bias : f32[32] = placeholder
    %x : f32[4, 64] = placeholder
after:
    %x : f32[4, 64] = placeholder
    %w_codes_constant : i8[32, 64] = get_attr
    %bias_constant : f32[32] = get_attr
"""

import copy
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from int8pass.errors import EngineError
from int8pass.program import Program


@dataclass(frozen=True)
class FrozenGraph:
    """A graph whose weights are constants. users: positions of the inputs that are left, in order.

    weights: of each frozen input its position, its name in the model, and the tensor and version that the engine holds.
    """

    graph_module: fx.GraphModule
    users: tuple[int, ...]
    weights: tuple[tuple[int, str, weakref.ref, int | None], ...]

    def user_inputs(self, args: Any) -> list:
        """The inputs of the engine. Raises EngineError where a weight is not the one that the engine holds."""
        for position, name, held, version in self.weights:
            if held() is not args[position] or version != _version(args[position]):
                raise EngineError(
                    f"{name} has changed, or belongs to another layer, since it became a constant of a TensorRT "
                    "engine: call torch.compiler.reset() and the model again, and compile whole models, not layers"
                )
        return [args[position] for position in self.users]


def freeze_weights(program: Program) -> FrozenGraph:
    """A copy of the graph in which every weight, float or int8, is a constant."""
    graph_module = copy.copy(program.graph_module)
    graph_module.graph = copy.deepcopy(program.graph)
    users, weights = [], []
    for position, node in enumerate(graph_module.graph.find_nodes(op="placeholder")):
        tensor = _weight(program, node.name)
        if tensor is None:
            users.append(position)
            continue
        source = program.weight_inputs.get(node.name)
        name = program.tensors[source.expression.root if source else node.name].name
        weights.append((position, name, weakref.ref(tensor), _version(tensor)))
        _to_constant(graph_module, node, tensor)
    graph_module.recompile()
    return FrozenGraph(graph_module, tuple(users), tuple(weights))


def _weight(program: Program, name: str) -> Tensor | None:
    """The tensor behind a graph input; None for an input of the model."""
    if name in program.weight_inputs:
        wanted = program.weight_inputs[name]
        return getattr(program.quantized(wanted.expression), wanted.field)
    return program.tensors[name].tensor if name in program.tensors else None


def _to_constant(graph_module: fx.GraphModule, node: fx.Node, tensor: Tensor) -> None:
    target = f"{node.name}_constant"
    graph_module.register_buffer(target, tensor.detach())
    with graph_module.graph.inserting_before(node):
        constant = graph_module.graph.get_attr(target)
    constant.meta = {key: value for key, value in node.meta.items() if key in ("val", "example_value")}
    node.replace_all_uses_with(constant)
    graph_module.graph.erase_node(node)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
