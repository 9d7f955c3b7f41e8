"""A stage as an SVG picture: rows by the longest path from the inputs, each row ordered by its readers' places."""

from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from int8pass.inspection.dot import caption, is_int8
from int8pass.inspection.stages import Stage, StageNode

_HEIGHT, _ROW, _GAP, _MARGIN, _CHARACTER = 34, 64, 14, 12, 6.7  # pixels; a character of the 11 px font
_SWEEPS = 4
_FILLS = {"input": "#eef1f5", "weight": "#fff4d6", "call": "#ffffff", "output": "#eef1f5", "int8": "#d9ecff"}


@dataclass
class Box:
    """A node's place. x: its middle; y: its top; width: in pixels."""

    x: float
    y: float
    width: float


def stage_svg(stage: Stage) -> str:
    """The picture. The same graph gives the same bytes."""
    boxes = _place(stage.nodes)
    width = max((box.x + box.width / 2 for box in boxes.values()), default=0) + _MARGIN
    height = max((box.y for box in boxes.values()), default=0) + _HEIGHT + _MARGIN
    edges = [_edge(boxes[name], boxes[node.name]) for node in stage.nodes for name in node.inputs]
    shapes = [_shape(node, boxes[node.name]) for node in stage.nodes]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="monospace" font-size="11">',
            f"<title>{escape(stage.name)}</title>",
            '<g fill="none" stroke="#8a94a3">',
            *edges,
            "</g>",
            *shapes,
            "</svg>\n",
        ]
    )


def _place(nodes: tuple[StageNode, ...]) -> dict[str, Box]:
    rows = _rows(nodes)
    boxes = {node.name: Box(0.0, rows[node.name] * _ROW + _MARGIN, _width(node)) for node in nodes}
    order: list[list[str]] = [[] for _ in range(max(rows.values(), default=-1) + 1)]
    for node in nodes:
        order[rows[node.name]].append(node.name)
    neighbours = _neighbours(nodes)
    for row in order:
        _spread(row, boxes)
    for _ in range(_SWEEPS):
        for row in order:
            row.sort(key=lambda name: _mean((boxes[other].x for other in neighbours[name]), boxes[name].x))
            _spread(row, boxes)
    _centre(order, boxes)
    return boxes


def _rows(nodes: tuple[StageNode, ...]) -> dict[str, int]:
    """The row of each node: below all that it reads; an input stands right above its first reader."""
    rows: dict[str, int] = {}
    for node in nodes:
        rows[node.name] = max((rows[name] + 1 for name in node.inputs), default=0)
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            readers[name] = min(readers.get(name, rows[node.name]), rows[node.name])
    for node in nodes:
        if not node.inputs:
            rows[node.name] = max(readers.get(node.name, 1) - 1, 0)
    return rows


def _neighbours(nodes: tuple[StageNode, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {node.name: [] for node in nodes}
    for node in nodes:
        for name in node.inputs:
            found[name].append(node.name)
            found[node.name].append(name)
    return found


def _spread(row: list[str], boxes: dict[str, Box]) -> None:
    left = float(_MARGIN)
    for name in row:
        boxes[name].x = left + boxes[name].width / 2
        left += boxes[name].width + _GAP


def _centre(order: list[list[str]], boxes: dict[str, Box]) -> None:
    ends = [boxes[row[-1]].x + boxes[row[-1]].width / 2 for row in order]
    for row, end in zip(order, ends, strict=True):
        for name in row:
            boxes[name].x += (max(ends) - end) / 2


def _width(node: StageNode) -> float:
    return round(max(map(len, caption(node))) * _CHARACTER + 16, 1)


def _mean(values: Iterable[float], default: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else default


def _edge(start: Box, end: Box) -> str:
    top, bottom = start.y + _HEIGHT, end.y
    bend = (bottom - top) / 2
    return (
        f'<path d="M{start.x:.1f} {top:.0f} C{start.x:.1f} {top + bend:.0f} {end.x:.1f} {bottom - bend:.0f} '
        f'{end.x:.1f} {bottom:.0f}"/>'
    )


def _shape(node: StageNode, box: Box) -> str:
    first, second = (escape(line) for line in caption(node))
    fill = _FILLS["int8" if is_int8(node) else node.kind]
    left, middle = box.x - box.width / 2, box.y + (14 if second else 21)
    lines = f'<text x="{box.x:.1f}" y="{middle:.0f}" text-anchor="middle">{first}</text>'
    if second:
        lines += f'<text x="{box.x:.1f}" y="{middle + 14:.0f}" text-anchor="middle" fill="#5b6573">{second}</text>'
    return (
        f'<g><title>{escape(node.text)}</title><rect x="{left:.1f}" y="{box.y:.0f}" width="{box.width:.1f}" '
        f'height="{_HEIGHT}" rx="4" fill="{fill}" stroke="#5b6573"/>{lines}</g>'
    )
