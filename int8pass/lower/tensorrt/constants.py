"""Weights as attributes of a graph that torch-tensorrt makes an engine of."""

from torch import Tensor, fx

from int8pass.errors import EngineError
from int8pass.graph import value_of


def constant(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a node holds. Raises EngineError where it is computed, so that no engine can be built of it."""
    if node.op != "get_attr":
        raise EngineError(f"{node.name} is no constant: the weight of an int8 Linear is computed in the graph")
    found = graph_module
    for part in node.target.split("."):
        found = getattr(found, part)
    return found.detach()


def attribute(graph_module: fx.GraphModule, before: fx.Node, tensor: Tensor) -> fx.Node:
    """A node that holds a tensor of its own, inserted before another."""
    name = next(name for number in range(2**31) if not hasattr(graph_module, name := f"int8pass_constant{number}"))
    graph_module.register_buffer(name, tensor)
    with before.graph.inserting_before(before):
        node = before.graph.get_attr(name)
    node.meta["val"] = value_of(before).fake_mode.from_tensor(tensor, static_shapes=True)
    return node
