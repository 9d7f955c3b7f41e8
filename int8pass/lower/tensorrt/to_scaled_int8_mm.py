"""For engines: int8_mm and dequantize become one op over a constant weight; profiled outlier columns, constants.

A lowering pass of torch-tensorrt, on its aten graph, whose weights are attributes.

before:
    %int8_mm : i32[4, 32] = int8pass.int8_mm(%quantize_per_token, %codes)
    %outlier_mm : f32[4, 32] = int8pass.outlier_mm(%x, %column_mask, %weight, %scale)
    %dequantize : f32[4, 32] = int8pass.dequantize(%int8_mm, %scale_per_token, %scale, %outlier_mm, %bias, float32)
after:
    %column_mm : f32[4, 32] = int8pass.column_mm(%x, (3, 7), %columns)
    %scaled_int8_mm : f32[4, 32] = int8pass.scaled_int8_mm(%quantize_per_token, %scale_per_token, %codes_inputs_first,
        %positive_scale, %column_mm, %bias, float32)
"""

import torch
from torch import Tensor, fx

from int8pass import ops
from int8pass.errors import ConfigError, EngineError
from int8pass.graph import insert, namespace, replace, value_of
from int8pass.quantization.columns import kept_columns
from int8pass.torch_private import without_fake_tensors

_IN_EACH_CALL = (
    "TensorRT finds no outlier columns in a call: pass options={'profile': ...}, made with int8pass.calibrate, or "
    "threshold 0.0 for no outlier branch"
)


def to_scaled_int8_mm(graph_module: fx.GraphModule, settings: object = None) -> fx.GraphModule:
    """Rewrite every Linear. Raises ConfigError for outliers that are to be found in each call."""
    for node in list(graph_module.graph.nodes):
        if node.target is ops.outlier_mask:
            raise ConfigError(_IN_EACH_CALL)
        if node.target is ops.dequantize:
            replace(node, _scaled_int8_mm(graph_module, node))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _scaled_int8_mm(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node:
    sums, x_scale, scale, outlier, bias, dtype = node.args
    x_codes, codes = sums.args
    part = None if outlier is None else _column_mm(graph_module, node, outlier)
    with without_fake_tensors():
        inputs_first = _constant(graph_module, codes).t().contiguous()
        positive = _constant(graph_module, scale)
        positive = positive.masked_fill(positive == 0, 1.0)  # a row of zeros has codes 0 at any scale
    weight = (_attribute(graph_module, node, inputs_first), _attribute(graph_module, node, positive))
    return insert(node, ops.scaled_int8_mm, x_codes, x_scale, *weight, part, bias, dtype)


def _column_mm(graph_module: fx.GraphModule, node: fx.Node, outlier: fx.Node) -> fx.Node:
    x, mask, weight, *scale = outlier.args
    if mask.target is not ops.column_mask:
        raise ConfigError(_IN_EACH_CALL)
    columns = list(mask.args[1])
    with without_fake_tensors():
        rows = _constant(graph_module, weight)[:, columns]
        unit = _constant(graph_module, scale[0]) if scale and scale[0] is not None else None
        if unit is not None and rows.is_floating_point():
            rows, unit = kept_columns(rows, unit)
        rows = (rows.float() if unit is None else rows.float() * unit[:, None]).t().contiguous()
    return insert(node, ops.column_mm, x, columns, _attribute(graph_module, node, rows))


def _constant(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a node holds. Raises EngineError where it is computed, so that no engine can be built of it."""
    if node.op != "get_attr":
        raise EngineError(f"{node.name} is no constant: the weight of an int8 Linear is computed in the graph")
    found = graph_module
    for part in node.target.split("."):
        found = getattr(found, part)
    return found.detach()


def _attribute(graph_module: fx.GraphModule, before: fx.Node, tensor: Tensor) -> fx.Node:
    name = next(name for number in range(2**31) if not hasattr(graph_module, name := f"int8pass_constant{number}"))
    graph_module.register_buffer(name, tensor)
    with before.graph.inserting_before(before):
        node = before.graph.get_attr(name)
    node.meta["val"] = value_of(before).fake_mode.from_tensor(tensor, static_shapes=True)
    return node


def int8pass_ops_left(module: torch.nn.Module) -> list[str]:
    """Names of the nodes that still call ops of int8pass, in the graphs of a compiled module."""
    graphs = (child.graph for child in module.modules() if isinstance(child, fx.GraphModule))
    return [node.name for graph in graphs for node in graph.nodes if namespace(node) == ops.NAMESPACE]
