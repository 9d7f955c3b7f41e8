"""`check`: which rules of TensorRT an ONNX file breaks, node by node."""

import os
from pathlib import Path

from int8pass.errors import ConfigError
from int8pass.export.tensorrt.onnx_graph import load_graph
from int8pass.export.tensorrt.rule import Finding, Rule, Violation
from int8pass.export.tensorrt.rules import RULES

_RULES = {"tensorrt": RULES}


def rules_of(target: str) -> tuple[Rule, ...]:
    """The rules of a target. Raises ConfigError for an unknown one."""
    if target not in _RULES:
        raise ConfigError(f"there are no rules for {target!r}; the targets are: {', '.join(_RULES)}")
    return _RULES[target]


def check(path: str | os.PathLike, target: str = "tensorrt") -> list[Finding]:
    """Check an ONNX file against the rules of TensorRT's parser and of its explicit quantization; [] if all hold.

    path: any ONNX file, whoever wrote it; external data is read from beside it. TensorRT itself is not needed, and is
    not asked: an empty list means that no documented rule is broken, not that an engine was built.

    Raises OnnxFileError where the file is missing, is not ONNX, or lacks its external data; ConfigError for an unknown
    target; MissingDependencyError without onnx.
    """
    rules = rules_of(target)
    graph = load_graph(Path(path))
    return [_finding(rule, violation) for rule in rules for violation in rule.find(graph)]


def _finding(rule: Rule, violation: Violation) -> Finding:
    place = violation.place
    operator = getattr(place, "op_type", "")
    name = place.name or (place.outputs[0].name if operator and place.outputs else "") or "(unnamed)"
    return Finding(rule.id, name, operator, violation.message, rule.statement, rule.citation)
