"""The compiler, read top to bottom: `PASSES` is the order of the rewrites, `run` applies them."""

import logging
import os
from collections.abc import Callable
from typing import NamedTuple

from int8pass.passes.canonicalize_linear import canonicalize_linear
from int8pass.passes.expand_fused_attention import expand_fused_attention
from int8pass.passes.linear_to_int8_mixed import linear_to_int8_mixed
from int8pass.passes.recognize_int8_linear import recognize_int8_linear
from int8pass.passes.select_linear import select_linear
from int8pass.passes.share_activation_quantize import share_activation_quantize
from int8pass.passes.verify_ops import verify_ops
from int8pass.program import Program

logger = logging.getLogger(__name__)

Tap = Callable[[str, Program], None]


class Pass(NamedTuple):
    """A named rewrite: takes a Program, changes its graph in place, returns how many places matched."""

    name: str
    apply: Callable[[Program], int]


PASSES: tuple[Pass, ...] = (
    Pass("recognize_int8_linear", recognize_int8_linear),
    Pass("expand_fused_attention", expand_fused_attention),
    Pass("canonicalize_linear", canonicalize_linear),
    Pass("select_linear", select_linear),
    Pass("linear_to_int8_mixed", linear_to_int8_mixed),
    Pass("share_activation_quantize", share_activation_quantize),
)
# Up to here a graph still computes in float, with its Linears found and chosen: where reports measure.
FLOAT_PASSES = PASSES[: [step.name for step in PASSES].index("linear_to_int8_mixed")]


def run(program: Program, tap: Tap | None = None, passes: tuple[Pass, ...] = PASSES) -> Program:
    """Apply passes in order. `tap` is called after each pass, and before the first of PASSES with the captured graph.

    With a tap, or with INT8PASS_VERIFY set, the graph is checked against the IR table after every pass.
    """
    verify_each = tap is not None or bool(os.environ.get("INT8PASS_VERIFY"))
    if tap is not None and passes[:1] == PASSES[:1]:
        tap("captured", program)
    for step in passes:
        matches = step.apply(program)
        logger.info("%s: %d", step.name, matches)
        if verify_each:
            verify_ops(program)
        if tap is not None:
            tap(step.name, program)
    program.graph_module.recompile()
    return program
