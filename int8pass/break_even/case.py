"""`Case`: a Linear as far as its time depends on it."""

import math
from dataclasses import dataclass

import torch
from torch import fx

from int8pass.graph import value_of
from int8pass.program import Program
from int8pass.torch_private import size_hint
from int8pass.weight_expression import WeightExpression


@dataclass(frozen=True)
class Case:
    """x [rows, K] of dtype `input` times weight [N, K] of dtype `weight`, plus a bias, in dtype `output`.

    rows: of all leading dimensions together, where they are dynamic those of the call that is compiled for.
    bias: its dtype, or None; profiled: how many outlier columns a profile names, None without a profile.
    differentiable: whether the result needs a gradient, for which the ops run one by one.
    """

    rows: int
    in_features: int
    out_features: int
    input: torch.dtype
    weight: torch.dtype
    output: torch.dtype
    bias: torch.dtype | None
    device: torch.device
    differentiable: bool = False
    profiled: int | None = None

    @classmethod
    def of(cls, program: Program, node: fx.Node, expression: WeightExpression) -> "Case | None":
        """The case of a canonical Linear; None where nothing tells its rows, or there are none. Raises ProfileError."""
        x, weight, bias = (value_of(argument) for argument in (*node.args, None)[:3])
        sizes = [size_hint(size) for size in x.shape[:-1]]
        if None in sizes or 0 in sizes:
            return None
        columns = program.profiled_columns(expression, node)
        return cls(
            rows=math.prod(sizes),
            in_features=int(weight.shape[1]),
            out_features=int(weight.shape[0]),
            input=x.dtype,
            weight=weight.dtype,
            output=value_of(node).dtype,
            bias=None if bias is None else bias.dtype,
            device=x.device,
            differentiable=value_of(node).requires_grad,
            profiled=None if columns is None else len(columns),
        )
