"""The ops as they are, one after the other: for debugging."""

from collections.abc import Callable

from int8pass.inspection.dump import Dump
from int8pass.program import Program


def rewrite(program: Program, tap: Dump | None) -> None:
    """Nothing to rewrite."""


def lower(program: Program, example_inputs: list) -> Callable:
    """Return a callable over the graph's flat inputs."""
    return program.graph_module.forward
