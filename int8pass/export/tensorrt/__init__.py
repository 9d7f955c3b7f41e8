"""TensorRT: a checker of ONNX files against its rules, and engines built from them. See README.md in this folder."""

from int8pass.export.tensorrt.check import check, rules_of
from int8pass.export.tensorrt.rule import Finding, Rule

__all__ = ["Finding", "Rule", "check", "rules_of"]
