"""The ops as they are, one after the other: for debugging."""

from collections.abc import Callable

from int8pass.inspection.dump import Dump
from int8pass.program import Program


def lower(program: Program, example_inputs: list, tap: Dump | None) -> Callable:
    """Return a callable over the graph's flat inputs."""
    return program.graph_module.forward
