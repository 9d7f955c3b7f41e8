"""How a Linear's weight derives from a parameter: a chain of views (transpose, slice, cast) that can be replayed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from int8pass.graph import operation

# Operations that only rearrange or convert one tensor. Their other arguments must be constants.
_VIEWS = frozenset(
    "T mT H t numpy_T transpose swapaxes swapdims permute movedim view _unsafe_view reshape flatten unflatten squeeze "
    "unsqueeze expand contiguous clone detach alias lift_fresh_copy chunk split split_with_sizes unbind tensor_split "
    "narrow select slice getitem getattr to type _to_copy float half bfloat16 as_strided".split()
)
_VIEW_ATTRIBUTES = frozenset({"T", "mT", "H", "data"})


@dataclass(frozen=True)
class WeightExpression:
    """A parameter (by the name of its graph input) and the views that lead from it to a weight.

    key names the views, so that one parameter's views are told apart: "" for the parameter itself.
    """

    root: str
    key: str = ""
    evaluate: Callable[[Tensor], Any] = field(default=lambda tensor: tensor, compare=False)


def weight_expression(node: Any, roots: frozenset[str] | set[str]) -> WeightExpression | None:
    """Follow views back from `node` to one of the graph inputs `roots`; None where anything else takes part."""
    if not isinstance(node, fx.Node):
        return None
    if node.op in ("placeholder", "get_attr"):
        return WeightExpression(node.name) if node.name in roots else None
    name = operation(node)
    if name not in _VIEWS or len(node.all_input_nodes) != 1 or not _is_node(node.args[:1]):
        return None
    if name == "getattr" and node.args[1] not in _VIEW_ATTRIBUTES:
        return None
    source = weight_expression(node.args[0], roots)
    if source is None:
        return None
    return WeightExpression(source.root, source.key + _step_text(name, node), _replay(source.evaluate, node))


def _is_node(arguments: tuple) -> bool:
    return bool(arguments) and isinstance(arguments[0], fx.Node)


def _step_text(name: str, node: fx.Node) -> str:
    constants = [repr(argument) for argument in node.args[1:]]
    constants += [f"{key}={value!r}" for key, value in sorted(node.kwargs.items())]
    return f".{name}({', '.join(constants)})"


def _replay(source: Callable[[Tensor], Any], node: fx.Node) -> Callable[[Tensor], Any]:
    target, constants, keywords = node.target, tuple(node.args[1:]), dict(node.kwargs)
    if node.op == "call_method":
        return lambda tensor: getattr(source(tensor), target)(*constants, **keywords)
    return lambda tensor: target(source(tensor), *constants, **keywords)
