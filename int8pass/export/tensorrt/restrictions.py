"""The restrictions of operators.json that a file can be checked for: operator -> whether a node keeps its own."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from int8pass.export.tensorrt.onnx_graph import attribute, dtype, input_of, is_constant, numbers

if TYPE_CHECKING:
    from onnx_ir import Node

_TOPK_LIMIT = 3840


def _constant(index: int) -> "Callable[[Node], bool]":
    return lambda node: input_of(node, index) is None or is_constant(input_of(node, index))


def _only_first_output(node: "Node") -> bool:
    return all(output.name == "" or not (output.uses() or output.is_graph_output()) for output in node.outputs[1:])


def _undilated(node: "Node") -> bool:
    return set(attribute(node, "dilations", ())) <= {1}


def _top_k(node: "Node") -> bool:
    count = numbers(input_of(node, 1))
    return attribute(node, "sorted", 1) == 1 and (count is None or count.max() < _TOPK_LIMIT)


def _not_training(node: "Node") -> bool:
    training = input_of(node, 2)
    value = numbers(training)
    return training is None or (value is not None and not value.any())


def _attention(node: "Node") -> bool:
    inputs = [input_of(node, index) for index in range(7)]
    ranks = {len(value.shape) for value in inputs[:4] if value is not None and value.shape is not None}
    return ranks <= {4} and not any(inputs[4:]) and _only_first_output(node) and not attribute(node, "softcap", 0.0)


RESTRICTIONS: "dict[str, Callable[[Node], bool]]" = {
    "Attention": _attention,
    "AveragePool": _undilated,
    "CumSum": _constant(1),
    "Dropout": _not_training,
    "LayerNormalization": _only_first_output,
    "LpPool": _undilated,
    "LSTM": lambda node: attribute(node, "input_forget", 0) == attribute(node, "layout", 0) == 0,
    "MaxPool": lambda node: _undilated(node) and _only_first_output(node),
    "OneHot": _constant(1),
    "Resize": lambda node: attribute(node, "mode", "nearest") != "cubic" and not attribute(node, "antialias", 0),
    "RotaryEmbedding": lambda node: dtype(input_of(node, 3)) in ("", "INT64"),
    "ScatterND": lambda node: attribute(node, "reduction", "none") == "none",
    "Squeeze": _constant(1),
    "TopK": _top_k,
    "Unsqueeze": _constant(1),
    **{
        f"Reduce{name}": _constant(1)
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
