"""A stage in Graphviz's DOT language: `dot -Tpdf graph.dot` draws it, one cluster a module."""

import re

from int8pass.inspection.stages import Stage, StageNode

_SHAPES = {"input": "ellipse", "weight": "cylinder", "call": "box", "output": "ellipse"}


def stage_dot(stage: Stage) -> str:
    """The graph with a box for each call, its type below its name, and an edge for each input."""
    modules = dict.fromkeys(node.module for node in stage.nodes)
    lines = [f"digraph {_quoted(stage.name)} {{", "  node [fontname=monospace, fontsize=10];"]
    for number, module in enumerate(modules):
        members = [_node(node) for node in stage.nodes if node.module == module]
        lines += _cluster(number, module, members) if module else [f"  {member}" for member in members]
    lines += [f"  {_quoted(name)} -> {_quoted(node.name)};" for node in stage.nodes for name in node.inputs]
    return "\n".join([*lines, "}"]) + "\n"


def _cluster(number: int, module: str, members: list[str]) -> list[str]:
    return [
        f"  subgraph cluster_{number} {{",
        f"    label={_quoted(module)};",
        *(f"    {member}" for member in members),
        "  }",
    ]


def _node(node: StageNode) -> str:
    style = ", style=filled, fillcolor=lightblue" if is_int8(node) else ""
    label = "\n".join(caption(node))
    return f"{_quoted(node.name)} [label={_quoted(label)}, shape={_SHAPES[node.kind]}{style}];"


def is_int8(node: StageNode) -> bool:
    """Whether a drawing shows a node as one of int8: an op of the pass, or an operator of an ONNX file."""
    return re.search(r" = (int8pass\.|(QuantizeLinear|DequantizeLinear|MatMulInteger)\()", node.text) is not None


def caption(node: StageNode) -> tuple[str, str]:
    """Two short lines for a drawing: the op, or what stands behind an input; and the type."""
    left, _, right = node.text.partition(" = ")
    if node.kind == "output":
        return "output", ""
    behind = right.replace("'", "") if node.kind == "weight" else node.name
    first, more, _ = left.partition(" : ")[2].partition(", %")  # an operator of a file may have several results
    return right.partition("(")[0] if node.kind == "call" else behind, f"{first}, ..." if more else first


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
