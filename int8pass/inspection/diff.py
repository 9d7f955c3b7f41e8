"""What differs between two reports, or between two folders of dumps: decisions, outliers, errors, and graphs."""

import difflib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from int8pass.errors import ReportFileError
from int8pass.inspection.onnx_file import explain_file, is_onnx_file
from int8pass.inspection.report import SCHEMA_VERSION
from int8pass.quantization.scheme import DEFAULT

REPORT_FILE = "report.json"  # beside the graphs in a folder of dumps
TOLERANCE_DB = 0.1
_COLUMNS_SHOWN = 8
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Change:
    """One difference. layer: the module, or graph and stage; what: "decision", "outliers", "error", "graph", ..."""

    layer: str
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.what} {self.before} -> {self.after}"


def compare(a: Path, b: Path, tolerance_db: float = TOLERANCE_DB) -> list[Change]:
    """What changed from `a` to `b`: two JSON reports, two folders of `int8pass dump --out`, or two exported ONNX files.

    Errors count as changed when they differ by more than `tolerance_db`, in dB. Raises ReportFileError, OnnxFileError.
    """
    first, second = kind_of(a), kind_of(b)
    if first != second:
        raise ReportFileError(f"{a} and {b}: compare two of a kind, not a {first} and a {second}")
    if first == "file of ONNX":
        reports = (json.loads(explain_file(path).to_json()) for path in (a, b))
        return compare_reports(*reports, tolerance_db) + compare_graphs(a, b)
    if first == "folder of dumps":
        return compare_reports(_report_in(a), _report_in(b), tolerance_db) + compare_graphs(a, b)
    return compare_reports(read_report(a), read_report(b), tolerance_db)


def kind_of(path: Path) -> str:
    """Which of the things that can be compared a path names."""
    return "folder of dumps" if path.is_dir() else "file of ONNX" if is_onnx_file(path) else "JSON report"


def read_report(path: Path) -> dict[str, Any]:
    """The document of `int8pass report --json PATH`. Raises ReportFileError where it is none, or of another schema."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReportFileError(
            f"there is no file {str(path)!r}; `int8pass report MODEL --json PATH` writes it"
        ) from error
    except ValueError as error:
        raise ReportFileError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise ReportFileError(f"{str(path)!r} is JSON, but no report: `int8pass report MODEL --json PATH` writes one")
    if document.get("schema") != SCHEMA_VERSION:
        raise ReportFileError(
            f"{str(path)!r} has schema {document.get('schema')}, and this int8pass reads {SCHEMA_VERSION}: "
            "write it again"
        )
    return {"scheme": DEFAULT.name, **document}  # reports of before there were others do not say


def compare_reports(a: dict[str, Any], b: dict[str, Any], tolerance_db: float = TOLERANCE_DB) -> list[Change]:
    """What changed from one report's document to another's, in the order of its layers."""
    options = (name for name in ("scheme", "threshold", "outliers", "profile") if a[name] != b[name])
    changes = [Change("options", name, str(a[name]), str(b[name])) for name in options]
    first, second = _by_layer(a), _by_layer(b)
    for key in [*first, *(key for key in second if key not in first)]:
        changes += _row_changes(_layer(key), first.get(key), second.get(key), tolerance_db)
    return changes


def compare_graphs(a: Path, b: Path) -> list[Change]:
    """The stages of two folders of text dumps, or of two ONNX files, that differ, with how many lines."""
    first, second = _texts(a), _texts(b)
    changes = []
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            changes.append(
                Change(name, "graph", *("absent" if name not in texts else "present" for texts in (first, second)))
            )
        elif first[name] != second[name]:
            removed, added = _counts(first[name], second[name])
            changes.append(Change(name, "graph", f"-{removed} lines", f"+{added} lines"))
    return changes


def graph_differences(a: Path, b: Path) -> str:
    """Unified diffs of all stages that both folders or ONNX files hold, one after the other."""
    first, second = _texts(a), _texts(b)
    diffs = (_unified(name, first[name], second[name]) for name in sorted(first.keys() & second.keys()))
    return "".join(diffs)


def _report_in(folder: Path) -> dict[str, Any]:
    if not (folder / REPORT_FILE).is_file():
        raise ReportFileError(
            f"the folder {str(folder)!r} has no {REPORT_FILE}: write it with `int8pass dump MODEL --out {folder}`"
        )
    return read_report(folder / REPORT_FILE)


def _by_layer(document: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """The rows by module, view of the weight, and which of several alike."""
    seen: Counter = Counter()
    found = {}
    for row in document["rows"]:
        name = (row["module"], row["view"])
        found[(*name, seen[name])] = row
        seen[name] += 1
    return found


def _layer(key: Key) -> str:
    module, view, number = key
    return f"{module or '(root)'}{view}" + (f" (call {number + 1})" if number else "")


def _row_changes(layer: str, a: dict | None, b: dict | None, tolerance_db: float) -> Iterator[Change]:
    if a is None or b is None:
        yield Change(layer, "layer", "absent" if a is None else _decision(a), "absent" if b is None else _decision(b))
        return
    for name, text in (("weight", _shape), ("decision", _decision), ("outliers", _outliers), ("missed", _missed)):
        if text(a) != text(b) or (name == "outliers" and a["outlier_columns"] != b["outlier_columns"]):
            yield Change(layer, name, text(a), text(b))
    if a["rewritten"] and b["rewritten"] and _differ(a["snr_db"], b["snr_db"], tolerance_db):
        yield Change(layer, "error", _decibels(a["snr_db"]), _decibels(b["snr_db"]))


def _differ(a: float | None, b: float | None, tolerance_db: float) -> bool:
    return a != b and (a is None or b is None or abs(a - b) > tolerance_db)


def _shape(row: dict) -> str:
    return f"{row['dtype']} {'x'.join(map(str, row['weight_shape'] or ()))}".strip()


def _decision(row: dict) -> str:
    return "int8" if row["rewritten"] else f"skipped: {row['reason']}"


def _outliers(row: dict) -> str:
    columns = row["outlier_columns"]
    if columns is None:
        return "in each call"
    more = f", ... ({len(columns)})" if len(columns) > _COLUMNS_SHOWN else ""
    return "[" + ", ".join(map(str, columns[:_COLUMNS_SHOWN])) + more + "]"


def _missed(row: dict) -> str:
    return str(row["missed_columns"])


def _decibels(value: float | None) -> str:
    return "no error" if value is None else f"{value:.1f} dB"


def _texts(folder: Path) -> dict[str, str]:
    if is_onnx_file(folder):
        return {stage.name: stage.text for stages in explain_file(folder).stages for stage in stages}
    files = sorted(folder.glob("graph-*/*.txt"))
    return {f"{file.parent.name}/{file.stem}": file.read_text(encoding="utf-8") for file in files}


def _unified(name: str, a: str, b: str) -> str:
    lines = difflib.unified_diff(a.splitlines(True), b.splitlines(True), f"a/{name}", f"b/{name}", n=1)
    return "".join(lines)


def _counts(a: str, b: str) -> tuple[int, int]:
    lines = _unified("", a, b).splitlines()[2:]
    return sum(line.startswith("-") for line in lines), sum(line.startswith("+") for line in lines)
