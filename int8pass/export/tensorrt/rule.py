"""What a rule is: an id, one sentence, a citation, and a function that finds where a graph breaks it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx_ir

    from int8pass.export.tensorrt.onnx_graph import OnnxGraph


class Violation(NamedTuple):
    """A place that breaks a rule: a node, or a value (an input, output or initializer); and in what way."""

    place: "onnx_ir.Node | onnx_ir.Value"
    message: str


@dataclass(frozen=True)
class Rule:
    """id: kebab-case. statement: what must hold, in one sentence. citation: the document, its section or its words.

    find: yields every violation in a graph, each of which is no other rule's.
    """

    id: str
    statement: str
    citation: str
    find: Callable[["OnnxGraph"], Iterator[Violation]]


@dataclass(frozen=True)
class Finding:
    """One violation: the rule, the node (or tensor) by name, its operator ("" for a tensor), and what is wrong."""

    rule: str
    node: str
    operator: str
    message: str
    statement: str
    citation: str
