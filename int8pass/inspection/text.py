"""A graph as text: one typed line a node, the same text for the same graph, no ids, paths or weight values."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from int8pass.graph import value_of
from int8pass.torch_private import OpOverload

_SHORT_DTYPES = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "bool",
}


def graph_text(graph: fx.Graph, labels: dict[str, str] | None = None) -> str:
    """Return one line a node: `%y : f32[4, 32] = aten.linear(%x, %w)`; `labels` says what stands behind inputs."""
    return "\n".join(graph_lines(graph, labels)) + "\n"


def graph_lines(graph: fx.Graph, labels: dict[str, str] | None = None) -> list[str]:
    """The lines of `graph_text`, one a node in the graph's order."""
    symbols = Symbols()
    return [_line(node, labels or {}, symbols) for node in graph.nodes]


class Symbols:
    """Symbolic sizes renamed s0, s1, ... in the order in which they appear."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        return re.sub(r"\b[su]\d+\b", lambda found: self._rename(found.group()), text)

    def _rename(self, symbol: str) -> str:
        return self._names.setdefault(symbol, f"s{len(self._names)}")


def _line(node: fx.Node, labels: dict[str, str], symbols: Symbols) -> str:
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    kind = _type(value_of(node), symbols)
    left = f"%{node.name} : {kind}" if kind else f"%{node.name}"
    return f"{left} = {_right(node, labels)}"


def _right(node: fx.Node, labels: dict[str, str]) -> str:
    if node.op in ("placeholder", "get_attr"):
        default = "input" if node.op == "placeholder" else f"attribute '{node.target}'"
        return labels.get(node.name, default)
    arguments = [_argument(argument) for argument in node.args]
    arguments += [f"{name}={_argument(value)}" for name, value in node.kwargs.items()]
    return f"{_target(node.target)}({', '.join(arguments)})"


def _target(target: str | Callable) -> str:
    if isinstance(target, OpOverload):
        return str(target).removesuffix(".default")
    return target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)


def _argument(argument: Any) -> str:
    if isinstance(argument, fx.Node):
        return f"%{argument.name}"
    if isinstance(argument, list | tuple):
        inner = ", ".join(_argument(item) for item in argument)
        return f"[{inner}]" if isinstance(argument, list) else f"({inner}{',' * (len(argument) == 1)})"
    if isinstance(argument, dict):
        return "{" + ", ".join(f"{key!r}: {_argument(value)}" for key, value in argument.items()) + "}"
    if isinstance(argument, slice):
        parts = (argument.start, argument.stop, argument.step)
        return f"slice({', '.join(_argument(part) for part in parts)})"
    if isinstance(argument, torch.dtype):
        return str(argument).removeprefix("torch.")
    if isinstance(argument, str | int | float | bool | type(None)):
        return repr(argument)
    return re.sub(r" at 0x[0-9a-f]+", "", str(argument))


def _type(value: Any, symbols: Symbols) -> str:
    if isinstance(value, torch.Tensor):
        shape = ", ".join(symbols(str(size)) for size in value.shape)
        return f"{_SHORT_DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{shape}]"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_type(item, symbols) or "?" for item in value) + ")"
    return f"sym {symbols(str(value))}" if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else ""
