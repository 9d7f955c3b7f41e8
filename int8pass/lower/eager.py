"""The ops as they are, one after the other: for debugging."""

from collections.abc import Callable

from int8pass.pipeline import Pass
from int8pass.program import Program

PASSES: tuple[Pass, ...] = ()


def lower(program: Program, example_inputs: list) -> Callable:
    """Return a callable over the graph's flat inputs."""
    return program.graph_module
