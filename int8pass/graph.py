"""Reading and writing fx graphs of either dialect, Dynamo's and torch.export's."""

import builtins
import inspect
import operator
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from int8pass.torch_private import (
    BUILTIN_FUNCTIONS,
    NO_MODULE,
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    is_mutable,
    qualified_name,
    shape_function,
    tree_leaves,
)

# what a rewritten node hands on to the nodes that replace it
PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


def value_of(node: Any) -> Any:
    """The fake value of a node (Dynamo keeps it as example_value, torch.export as val); None where there is none."""
    if not isinstance(node, fx.Node):
        return None
    return node.meta.get("val", node.meta.get("example_value"))


def is_tensor(node: Any) -> bool:
    return isinstance(value_of(node), torch.Tensor)


def operation(node: fx.Node) -> str:
    """The bare name of what a call node calls, the same in both dialects: linear, matmul, t, getitem, ..."""
    if node.op == "call_method":
        return node.target
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return qualified_name(node.target).rpartition("::")[2]
    return getattr(node.target, "__name__", str(node.target))


def is_torch_call(node: fx.Node) -> bool:
    """Whether a call is PyTorch's own: not a custom op or a user's function that happens to bear the same name."""
    if namespace(node):
        return namespace(node) == "aten"
    homes = (torch, torch.nn.functional, BUILTIN_FUNCTIONS, operator, builtins)
    return node.op == "call_method" or any(getattr(home, operation(node), None) is node.target for home in homes)


def namespace(node: fx.Node) -> str:
    """The library a call node's op belongs to (aten, int8pass, bitsandbytes, ...); empty for Python functions."""
    if isinstance(node.target, OpOverload | OpOverloadPacket):
        return qualified_name(node.target).partition("::")[0]
    return ""


def is_mutation(node: fx.Node) -> bool:
    """Whether a call node may write to one of its arguments."""
    if isinstance(node.target, OpOverload | OpOverloadPacket):
        return is_mutable(node.target)
    if isinstance(node.target, HigherOrderOperator):
        return True
    name = operation(node)
    in_place_operator = node.target is operator.setitem or name.strip("_") in _IN_PLACE_OPERATORS
    trailing_underscore = name.endswith("_") and not name.endswith("__")
    return in_place_operator or trailing_underscore or "out" in node.kwargs or _is_told_to_write(node)


def _is_told_to_write(node: fx.Node) -> bool:
    """Whether a call has `inplace=True`, by name or by position (F.relu(x, True))."""
    if "inplace" in node.kwargs or node.op != "call_function":
        return bool(node.kwargs.get("inplace"))
    try:
        names = list(inspect.signature(node.target).parameters)
    except (TypeError, ValueError):  # a builtin: those write only under a name of their own
        return False
    return any(name == "inplace" and bool(value) for name, value in zip(names, node.args, strict=False))


# iadd, imul, ...: the names whose rest is an operator of its own (__add__, __mul__)
_IN_PLACE_OPERATORS = frozenset(
    name for name in dir(operator) if name.startswith("i") and f"__{name[1:]}__" in dir(operator)
)


def insert(like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert a call before `like`, computing its fake value and keeping the provenance of `like`."""
    graph = like.graph
    with graph.inserting_before(like):
        node = graph.create_node("call_function", target, args, kwargs, name=_base_name(target))
    keep_provenance(node, like)
    compute_value(node)
    return node


def compute_value(node: fx.Node) -> None:
    """Give a call its fake value, from those of its arguments."""
    compute = shape_function(node.target) or node.target
    with fake_mode_of(node.args), torch.no_grad():
        node.meta["val"] = compute(*map_arg(node.args, value_of), **map_arg(node.kwargs, value_of))


def keep_provenance(node: fx.Node, original: fx.Node) -> None:
    """Hand on to `node` where the node that it stands for came from."""
    node.meta.update({key: original.meta[key] for key in PROVENANCE if key in original.meta})


def in_dtype_of(node: fx.Node, result: fx.Node) -> fx.Node:
    """`result` in the dtype of the node it stands for, which an autocast region may have chosen."""
    if value_of(result).dtype == value_of(node).dtype:
        return result
    return insert(node, torch.ops.aten.to.dtype, result, value_of(node).dtype)


def _base_name(target: Any) -> str:
    return qualified_name(target).rpartition("::")[2] if isinstance(target, OpOverload) else target.__name__


def insert_linear(like: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None, *, value: Any = None) -> fx.Node:
    """Insert a canonical Linear before `like`; its dtype and need of a gradient are those of `value` (of `like`)."""
    with like.graph.inserting_before(like):
        linear = like.graph.create_node(
            "call_function", torch.ops.aten.linear.default, (x, weight, bias), name="linear"
        )
    keep_provenance(linear, like)
    original = value_of(like) if value is None else value
    shape = (*value_of(x).shape[:-1], value_of(weight).shape[0])
    with original.fake_mode, torch.no_grad():  # not computed: in an autocast region x and weight may differ in dtype
        linear.meta["val"] = original.new_empty(shape).requires_grad_(original.requires_grad)
    return linear


def fake_mode_of(args: Any):
    """The fake tensor mode of the first fake tensor among the (nested) node arguments."""
    nodes: list[fx.Node] = []
    map_arg(args, nodes.append)
    leaves = (leaf for node in nodes for leaf in tree_leaves(value_of(node)))
    return next(leaf.fake_mode for leaf in leaves if hasattr(leaf, "fake_mode"))


def replace(node: fx.Node, replacement: fx.Node) -> None:
    """Let `replacement` stand for `node`, then remove `node` and whatever only it used."""
    node.replace_all_uses_with(replacement)
    erase_dead(node)


def erase_dead(node: fx.Node) -> None:
    """Remove a node without users, and in turn each of its inputs that is left without users."""
    erased: set[fx.Node] = set()
    queue = [node]
    while queue:
        current = queue.pop()
        if current in erased or current.users or current.op in ("placeholder", "get_attr", "output"):
            continue
        queue.extend(producer for producer in current.all_input_nodes if not is_mutation(producer))
        current.graph.erase_node(current)
        erased.add(current)


def node_argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call given by position or by name."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def subgraphs(graph_module: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """The bodies of higher-order ops (checkpoint, cond, autocast regions): nested graph modules by name."""
    for name, child in graph_module.named_modules():
        if name and isinstance(child, fx.GraphModule):
            yield name, child


def is_canonical_linear(node: fx.Node) -> bool:
    """Whether a node is a Linear in the one form that the passes after canonicalize_linear read."""
    return node.op == "call_function" and node.target is torch.ops.aten.linear.default


def module_path(node: fx.Node) -> str:
    """The dotted name of the innermost module whose code made a node, relative to the captured one; "" if unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("",))[0] if stack else ""
    if path == NO_MODULE:
        return ""
    return re.sub(r"^(L\['\w+'\]|G\['\w+'\])\.?", "", str(path))


def dtype_name(tensor: Any) -> str:
    """float32, bfloat16, ... of a tensor; "" of anything else."""
    return str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, torch.Tensor) else ""
