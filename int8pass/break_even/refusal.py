"""Why a Linear is left in float by `break_even="measured"`."""

import logging

from torch import fx

from int8pass.break_even import measure, store
from int8pass.break_even.case import Case
from int8pass.program import Program
from int8pass.weight_expression import WeightExpression

logger = logging.getLogger(__name__)


def slower_in_int8(program: Program, node: fx.Node, expression: WeightExpression) -> str:
    """The reason to leave a canonical Linear alone; "" where int8 is as fast. Times it unless the result is on disk."""
    case = Case.of(program, node, expression)
    if case is None:
        logger.info("%s is not measured: nothing tells its number of rows", node.name)
        return ""
    key = store.key_of(case, program.config)
    speedup = store.load(key)
    if speedup is None:
        speedup = measure.measure(case, program.config)
        store.save(key, speedup)
        logger.info("%s: int8 measured %.2fx the speed of float at %d rows", node.name, speedup, case.rows)
    if speedup >= 1:
        return ""
    rows = "1 row" if case.rows == 1 else f"{case.rows} rows"
    return f"int8 measured slower: {min(speedup, 0.99):.2f}x at {rows}"
