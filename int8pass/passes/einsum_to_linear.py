"""An einsum that contracts the last dimensions of an activation with a parameter becomes a Linear.

before:
    %y : f32[2, 4, 8, 16] = einsum('bsd,dhk->bshk', %x, %w)
after:
    %flat : f32[32, 128] = aten.reshape(%w, [32, 128])
    %t : f32[128, 32] = aten.t(%flat)
    %linear : f32[2, 4, 128] = aten.linear(%x, %t)
    %y : f32[2, 4, 8, 16] = aten.reshape(%linear, [2, 4, 8, 16])
"""

import math

import torch
from torch import fx

from int8pass.graph import insert, insert_linear, value_of
from int8pass.program import Program, Skip

aten = torch.ops.aten


def einsum_to_linear(program: Program, node: fx.Node) -> tuple[fx.Node, fx.Node] | Skip:
    """Return (linear, node of the einsum's value), inserted before `node`; or why it is no Linear."""
    equation, operands = _read(node)
    if equation is None or len(operands) != 2:
        return Skip(node, "einsum of other than two operands")
    terms = _labels(equation, [value_of(operand).dim() for operand in operands])
    if terms is None:
        return Skip(node, "einsum with repeated labels or an inner ellipsis")
    *inputs, output = terms
    weights = [position for position in (1, 0) if program.expression(operands[position])]
    if not weights:
        return Skip(node, "activation x activation, no weight")
    position = weights[0]
    return _rewrite(node, operands[1 - position], inputs[1 - position], operands[position], inputs[position], output)


def _read(node: fx.Node) -> tuple[str | None, tuple]:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    return (equation.replace(" ", "") if isinstance(equation, str) else None), tuple(operands)


def _labels(equation: str, ranks: list[int]) -> list[str] | None:
    """Spell out the terms of an equation: `...d,df->...f` for ranks (3, 2) becomes [`01d`, `df`, `01f`]."""
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = [label for label in left if label.isalpha()]
        output = "..." * ("..." in left) + "".join(sorted(label for label in set(letters) if letters.count(label) == 1))
    spelled = [_spell(term, rank) for term, rank in zip(terms, ranks, strict=True)]
    batch = max((spell.ellipsis for spell in spelled), key=len)
    result = [spell.text for spell in spelled] + [output.replace("...", batch)]
    return result if all(len(set(term)) == len(term) for term in result) else None


class _spell:
    """One term with its ellipsis spelled in digits, counted from the right as einsum aligns them."""

    def __init__(self, term: str, rank: int) -> None:
        width = rank - len(term.replace("...", "")) if "..." in term else 0
        self.ellipsis = "".join(str(digit) for digit in reversed(range(width)))
        self.text = term.replace("...", self.ellipsis)


def _rewrite(node: fx.Node, x: fx.Node, x_labels: str, w: fx.Node, w_labels: str, output: str):
    contracted = [label for label in x_labels if label in w_labels and label not in output]
    batch = [label for label in x_labels if label not in contracted]
    free = [label for label in w_labels if label not in contracted]
    if any(label in w_labels for label in batch):
        return Skip(node, "stacked weights (one matrix a batch entry or expert)")
    if not contracted or not free or set(output) != {*batch, *free}:
        return Skip(node, "einsum that contracts nothing, or sums a label of one operand alone")
    if x_labels != "".join(batch + contracted):
        return Skip(node, "einsum that does not contract the last dimension")
    if any((value_of(x).shape[x_labels.index(label)] == 1) != (_size(w, w_labels, label) == 1) for label in contracted):
        return Skip(node, "einsum that stretches a dimension of size 1")
    weight = _matrix(node, w, w_labels, contracted, free)
    linear = _linear_over_flat(node, x, len(batch), contracted, weight)
    sizes = [*value_of(x).shape[: len(batch)], *(_size(w, w_labels, label) for label in free)]
    result = linear if len(free) == 1 else insert(node, aten.reshape.default, linear, _as_arguments(node, x, sizes))
    order = [(batch + free).index(label) for label in output]
    if order != sorted(order):
        result = insert(node, aten.permute.default, result, order)
    return linear, result


def _size(node: fx.Node, labels: str, label: str) -> int:
    return int(value_of(node).shape[labels.index(label)])


def _matrix(node: fx.Node, w: fx.Node, w_labels: str, contracted: list[str], free: list[str]) -> fx.Node:
    """The weight as [N, K]: free labels first, in their order, then the contracted ones as the activation has them."""
    order = [w_labels.index(label) for label in free + contracted]
    if order != sorted(order):
        w = insert(node, aten.permute.default, w, order)
        w_labels = "".join(free + contracted)
    if len(w_labels) == 2:
        return w
    rows = math.prod(_size(w, w_labels, label) for label in free)
    columns = math.prod(_size(w, w_labels, label) for label in contracted)
    return insert(node, aten.reshape.default, w, [rows, columns])


def _linear_over_flat(node: fx.Node, x: fx.Node, batch: int, contracted: list[str], weight: fx.Node) -> fx.Node:
    if len(contracted) > 1:
        x = insert(node, aten.flatten.using_ints, x, batch, batch + len(contracted) - 1)
    return insert_linear(node, x, weight, None)


def _as_arguments(node: fx.Node, x: fx.Node, sizes: list) -> list:
    """Sizes as graph arguments: a symbolic one is read from x again."""
    return [
        size if isinstance(size, int) else insert(node, aten.sym_size.int, x, dimension)
        for dimension, size in enumerate(sizes)
    ]
