"""LayerNorm and RMSNorm over the last dimension, in each dialect, and RMSNorm as transformers writes it out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from int8pass.graph import is_tensor, is_torch_call, node_argument, operation, value_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_CASTS = ("to", "float", "half", "bfloat16", "type_as", "_to_copy")
_VIEWS = ("view", "reshape", "flatten", "unsqueeze", "squeeze")
# what eps=None stands for, of any dtype: the norm is computed in float32
_DEFAULT_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Norm:
    """y = norm(x) * weight + bias, each row by itself. first: the node that the computation starts with; centered:
    LayerNorm, else RMSNorm."""

    y: fx.Node
    first: fx.Node
    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float
    centered: bool


def match_norm(node: fx.Node) -> Norm | None:
    """The norm over the last dimension whose result `node` is, in the dtype of its input; None where it is none."""
    found = _layer_norm(node) or _rms_norm(node) or _written_out(node)
    return found if found and _is_of_one_dtype(found) and _is_by_feature(found) else None


def _layer_norm(node: fx.Node) -> Norm | None:
    if not _calls(node, "layer_norm") or not _is_over_features(node):
        return None
    weight, bias = node_argument(node, 2, "weight"), node_argument(node, 3, "bias")
    return Norm(node, node, _input(node), weight, bias, node_argument(node, 4, "eps", 1e-5), True)


def _rms_norm(node: fx.Node) -> Norm | None:
    if not _calls(node, "rms_norm") or not _is_over_features(node):
        return None
    eps = node_argument(node, 3, "eps")
    weight = node_argument(node, 2, "weight")
    return Norm(node, node, _input(node), weight, None, _DEFAULT_EPS if eps is None else eps, False)


def _written_out(node: fx.Node) -> Norm | None:
    """weight * (x.float() * rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)"""
    for weight, scaled in _factors(node):
        for x, factor in _factors(without_cast(scaled)):
            (shifted,) = _operands(factor, "rsqrt", 1)
            mean, eps = _operands(shifted, "add", 2)
            power = _mean_over_features(mean)
            squared, exponent = _operands(power, "pow", 2)
            if not isinstance(eps, float) or exponent != 2 or value_of(power).dtype != torch.float32:
                continue
            if x is squared or x is without_cast(squared):
                first = squared if x is squared and squared is not without_cast(squared) else power
                return Norm(node, first, without_cast(squared), weight, None, eps, False)
    return None


def _factors(node: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The operands of a product, in both orders."""
    left, right = _operands(node, "mul", 2)
    if is_tensor(left) and is_tensor(right):
        yield left, right
        yield right, left


def _operands(node: Any, name: str, count: int) -> tuple[Any, ...]:
    """The operands of a call that has nothing else, else as many Nones."""
    plain = isinstance(node, fx.Node) and _calls(node, name) and len(node.args) == count and not node.kwargs
    return node.args if plain else (None,) * count


def _mean_over_features(node: Any) -> fx.Node | None:
    """What node is the mean of over the last dimension, which is kept."""
    if not isinstance(node, fx.Node) or not _calls(node, "mean") or node.kwargs.get("dtype") is not None:
        return None
    dimension, keeps = node_argument(node, 1, "dim"), node_argument(node, 2, "keepdim", False)
    return node.args[0] if dimension in (-1, [-1], (-1,)) and keeps else None


def without_cast(node: Any) -> Any:
    """What a conversion to another dtype converts; a node that is none as it is."""
    casts = isinstance(node, fx.Node) and _calls(node, *_CASTS) and is_tensor(node.args[0])
    return node.args[0] if casts and value_of(node.args[0]).device == value_of(node).device else node


def without_view(node: fx.Node) -> fx.Node:
    """What a view shows in another shape with the same rows; a node that is none as it is."""
    views = _calls(node, *_VIEWS) and is_tensor(node.args[0])
    return node.args[0] if views and features(node.args[0]) == features(node) is not None else node


def features(node: fx.Node) -> int | None:
    """The size of the last dimension; None where it is not known, or there is none."""
    shape = value_of(node).shape
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def _calls(node: fx.Node, *names: str) -> bool:
    return operation(node) in names and is_torch_call(node)


def _input(node: fx.Node) -> fx.Node:
    return node_argument(node, 0, "input")


def _is_over_features(node: fx.Node) -> bool:
    shape = node_argument(node, 1, "normalized_shape")
    listed = isinstance(shape, list | tuple) and is_tensor(_input(node))
    return listed and list(shape) == [features(_input(node))]


def _is_of_one_dtype(norm: Norm) -> bool:
    return value_of(norm.y).dtype == value_of(norm.x).dtype in FLOATS


def _is_by_feature(norm: Norm) -> bool:
    """Whether weight and bias have one value for each feature, and the result the shape of x."""
    parts = [value_of(part) for part in (norm.weight, norm.bias) if part is not None]
    by_feature = all(tuple(part.shape) == (features(norm.x),) and part.dtype in FLOATS for part in parts)
    return by_feature and value_of(norm.y).shape == value_of(norm.x).shape
