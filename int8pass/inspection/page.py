"""The report as one page of HTML: the data as JSON, and the scripts and styles of `html/`, inlined."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from int8pass.files import write_text
from int8pass.inspection.observation import Details
from int8pass.inspection.stages import Stage, StageNode
from int8pass.version import VERSION

if TYPE_CHECKING:
    from int8pass.inspection.report import Report, Row

SCHEMA_VERSION = 2
# in the order in which the page needs them; vendor/README.md says where the first two come from
SCRIPTS = (
    "vendor/d3.min.js",
    "vendor/dagre.min.js",
    "dom.js",
    "theme.js",
    "table.js",
    "plots.js",
    "drawing.js",
    "layer.js",
    "model.js",
    "stages.js",
    "main.js",
)
LICENCES = ("vendor/d3.LICENSE", "vendor/dagre.LICENSE")


def write_page(report: "Report", path: Path, title: str) -> None:
    """Write the page. It holds all that it shows, and asks for nothing from the network."""
    write_text(path, page(report, title))


def page(report: "Report", title: str) -> str:
    """The text of the page."""
    html = resources.files("int8pass.inspection") / "html"
    read = {name: (html / name).read_text(encoding="utf-8") for name in (*SCRIPTS, *LICENCES, "style.css", "page.html")}
    parts = {
        "title": _escaped(title),
        "style": read["style.css"],
        "licences": _escaped("\n".join(read[name] for name in LICENCES)),
        "data": json.dumps(page_data(report, title), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "scripts": "\n".join(f"<script>\n{_without_source_map(read[name])}</script>" for name in SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], read["page.html"])


def _without_source_map(script: str) -> str:
    """A browser's developer tools would ask for the map of a minified file."""
    return re.sub(r"^//# sourceMappingURL=.*$", "", script, flags=re.MULTILINE)


def page_data(report: "Report", title: str) -> dict[str, Any]:
    """What the page's scripts read: the report's document, and for each row and graph what they show of it."""
    graphs = [_graph(stages) for stages in report.stages]
    details = report.details or (None,) * len(report.rows)
    rows = [_row(row, detail, report) for row, detail in zip(report.rows, details, strict=True)]
    return {
        "schema": SCHEMA_VERSION,
        "title": title,
        "versions": {"int8pass": VERSION, "torch": torch.__version__},
        "scheme": report.scheme,
        "inputs": report.inputs,
        "threshold": report.threshold,
        "outliers": report.outliers,
        "profile": report.profile,
        "file": report.file,
        "converted": report.converted,
        "slower_in_int8": report.slower_in_int8,
        "saved_by_skipping": report.saved_by_skipping,
        "totals": dataclasses.asdict(report.totals),
        "rows": rows,
        "graphs": graphs,
    }


def _row(row: "Row", details: Details | None, report: "Report") -> dict[str, Any]:
    """A row, its details, and the names of the nodes of its Linear and around it, before and after the passes."""
    document = {**dataclasses.asdict(row), "snr_db": _finite(row.snr_db), "exact": row.snr_db == math.inf}
    document["schemes"] = [
        {"scheme": each.scheme, "snr_db": _finite(each.snr_db), "exact": each.snr_db == math.inf}
        for each in row.schemes
    ]
    if details is None:
        return document
    peaks = [(column, _finite(peak)) for column, peak in details.peaks]
    document |= {**dataclasses.asdict(details), "peaks": peaks}
    if details.graph < len(report.stages):
        first, last = report.stages[details.graph][0], report.stages[details.graph][-1]
        document |= {"before": _part(first, row, details), "after": _part(last, row, details)}
    return document


def _part(stage: Stage, row: "Row", details: Details) -> dict[str, list[str]]:
    own = stage.around_weight(row.weight) if row.weight else {details.node} & {node.name for node in stage.nodes}
    beside = stage.beside(own)
    order = [node.name for node in stage.nodes]
    return {
        "own": [name for name in order if name in own],
        "beside": [name for name in order if name in beside],
    }


def _graph(stages: Sequence[Stage]) -> dict[str, Any]:
    """Each node once, the stages as lists of numbers of nodes, and what changed from one stage to the next."""
    numbers: dict[StageNode, int] = {}
    modules: dict[str, int] = {}
    listed = [[numbers.setdefault(node, len(numbers)) for node in stage.nodes] for stage in stages]
    return {
        "nodes": [
            [node.name, node.text, node.kind, modules.setdefault(node.module, len(modules)), node.inputs]
            for node in numbers
        ],
        "modules": list(modules),
        "stages": [
            {"name": stage.name, "nodes": nodes, "changes": _changes(listed[number - 1], nodes) if number else []}
            for number, (stage, nodes) in enumerate(zip(stages, listed, strict=True))
        ],
    }


def _changes(before: list[int], after: list[int]) -> list[tuple[int, int, int, int]]:
    """[i1, i2, j1, j2]: lines i1 to i2 of the stage before became lines j1 to j2."""
    opcodes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [places for tag, *places in opcodes if tag != "equal"]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
