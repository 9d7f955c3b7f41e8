"""Which form an int8 Linear takes in an engine: TensorRT's own layers, or the plugin around the Triton kernels.

"auto": the plugin where outliers are found in each call, which TensorRT's layers cannot, and its own layers with a
profile or without an outlier branch. "native" and "plugin": always that one.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from int8pass import ops
from int8pass.errors import ConfigError
from int8pass.graph import replace
from int8pass.lower.tensorrt.to_cuda_int8_linear import to_cuda_int8_linear
from int8pass.lower.tensorrt.to_scaled_int8_mm import to_scaled_int8_mm

SETTING = "linear_form"
FORMS = ("auto", "native", "plugin")
_FORM = contextvars.ContextVar("linear form", default="auto")  # torch-tensorrt hands its passes its own settings alone


def linear_form(given: Mapping[str, Any]) -> str:
    """The form that the option `tensorrt` asks for. Raises ConfigError."""
    form = given.get(SETTING, "auto")
    if form not in FORMS:
        raise ConfigError(f"option 'tensorrt': {SETTING} must be one of {FORMS}, not {form!r}")
    return form


@contextlib.contextmanager
def building(form: str) -> Iterator[None]:
    """A block in which Linears take that form."""
    token = _FORM.set(form)
    try:
        yield
    finally:
        _FORM.reset(token)


def lower_linears(graph_module: fx.GraphModule, settings: object = None) -> fx.GraphModule:
    """A lowering pass of torch-tensorrt, on its aten graph, whose weights are attributes. Rewrites every int8 Linear.

    Raises ConfigError, EngineError, UnsupportedDeviceError, MissingDependencyError.
    """
    for node in list(graph_module.graph.nodes):
        if node.target is ops.dequantize:
            rewrite = to_cuda_int8_linear if _takes_plugin(node) else to_scaled_int8_mm
            replace(node, rewrite(graph_module, node))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _takes_plugin(node: fx.Node) -> bool:
    outlier, form = node.args[3], _FORM.get()
    found_in_each_call = outlier is not None and outlier.args[1].target is ops.outlier_mask
    return form == "plugin" or (form == "auto" and found_in_each_call)
