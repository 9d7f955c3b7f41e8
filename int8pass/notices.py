"""Warnings for a program in which the pass did less than was asked for; each text once a process."""

import logging
import warnings
from collections import Counter

from int8pass.passes.recognize_int8_linear import ALREADY_INT8
from int8pass.passes.select_linear import GRADIENT_REASON
from int8pass.program import Program

logger = logging.getLogger(__name__)

_warned: set[str] = set()


def warn_where_nothing_happened(program: Program) -> None:
    """Warn about Linears left alone for their gradients, and about a graph in which nothing was rewritten."""
    reasons = Counter(decision.reason for decision in program.decisions if not decision.rewritten)
    if reasons[GRADIENT_REASON]:
        warn_once(
            f"int8mixed left Linears in float: {GRADIENT_REASON}. For inference, call the model under "
            "torch.no_grad() or torch.inference_mode(), or freeze it: model.requires_grad_(False)."
        )
    elif program.decisions and not program.rewritten and not reasons[ALREADY_INT8]:
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        warn_once(f"int8mixed rewrote nothing in a graph with Linear-like nodes: {why}.")


def warn_once(message: str) -> None:
    logger.info(message)
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
