"""A rewritten Linear as the fusing lowerings find it: the ops of `passes/linear_to_int8_mixed.py`, default form."""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from int8pass import ops
from int8pass.graph import insert, node_argument, value_of


@dataclass(frozen=True)
class RewrittenLinear:
    """The parts of one. mask: None without an outlier branch; weight: None where its columns are dequantized."""

    dequantize: fx.Node
    quantize: fx.Node
    codes: fx.Node
    mask: fx.Node | None
    weight: fx.Node | None

    @property
    def x(self) -> fx.Node:
        return self.quantize.args[0]

    @property
    def static_scale(self) -> float | None:
        """The scale of x by a profile's range; None where each row has its own."""
        return self.quantize.args[1] if self.quantize.target is ops.quantize_static else None

    @property
    def outlier_rule(self) -> tuple[float, bool]:
        """threshold and per_token; 0.0 where a kernel is to look for no outliers."""
        if self.mask is None or self.mask.target is not ops.outlier_mask:
            return 0.0, False
        return self.mask.args[1], node_argument(self.mask, 2, "outliers", "column") == "token"

    @property
    def known_columns(self) -> tuple[tuple[int, ...], ...]:
        """The columns of a profile, as the last argument of an op; no argument without a profile."""
        return (tuple(self.mask.args[1]),) if self.mask is not None and self.mask.target is ops.column_mask else ()


def match_rewritten_linear(node: fx.Node, device_type: str, static: bool = False) -> RewrittenLinear | None:
    """The Linear on that type of device whose result `node` is; None where it is none, or of another form.

    static: also one whose input has the scale of a profile's range. (A zero point goes with `dequantize_asymmetric`.)
    """
    if node.target is not ops.dequantize or value_of(node).device.type != device_type:
        return None
    sums, _, _, outlier, _, _ = node.args
    quantize, codes = sums.args
    if quantize.target not in (ops.quantize_per_token, *((ops.quantize_static,) if static else ())):
        return None
    weight = outlier.args[2] if outlier is not None and outlier.args[2] is not codes else None
    return RewrittenLinear(node, quantize, codes, quantize.args[-1], weight)


def quantize_shared_inputs(
    matches: Sequence[RewrittenLinear], quantize: Callable[[RewrittenLinear], fx.Node]
) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Quantize an x that several Linears read once for all of them, through the op that `quantize` inserts.

    Returns its three results, by the node that stood for the codes of that x.
    """
    readers = Counter(match.quantize for match in matches)
    shared: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for match in matches:
        if readers[match.quantize] > 1 and match.quantize not in shared:
            result = quantize(match)
            parts = (insert(match.quantize, operator.getitem, result, index) for index in range(3))
            shared[match.quantize] = tuple(parts)
    return shared
