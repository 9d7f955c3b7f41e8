"""The native form: int8_mm and dequantize become one op over a constant weight; profiled outlier columns, constants.

before:
    %int8_mm : i32[4, 32] = int8pass.int8_mm(%quantize_per_token, %codes)
    %outlier_mm : f32[4, 32] = int8pass.outlier_mm(%x, %column_mask, %weight, %scale)
    %dequantize : f32[4, 32] = int8pass.dequantize(%int8_mm, %scale_per_token, %scale, %outlier_mm, %bias, float32)
after:
    %column_mm : f32[4, 32] = int8pass.column_mm(%x, (3, 7), %columns)
    %scaled_int8_mm : f32[4, 32] = int8pass.scaled_int8_mm(%quantize_per_token, %scale_per_token, %codes_inputs_first,
        %positive_scale, %column_mm, %bias, float32)
"""

from torch import fx

from int8pass import ops
from int8pass.errors import ConfigError
from int8pass.graph import insert
from int8pass.lower.tensorrt.constants import attribute, constant
from int8pass.quantization.columns import kept_columns
from int8pass.torch_private import without_fake_tensors

_IN_EACH_CALL = (
    "TensorRT's own layers find no outlier columns in a call: leave tensorrt={'linear_form': ...} out for the plugin, "
    "or pass options={'profile': ...}, made with int8pass.calibrate, or threshold 0.0 for no outlier branch"
)


def to_scaled_int8_mm(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """What stands for a `dequantize`. Raises ConfigError for outliers to be found in each call, EngineError."""
    sums, x_scale, scale, outlier, bias, dtype = node.args
    x_codes, codes = sums.args
    part = None if outlier is None else _column_mm(graph_module, node, outlier)
    with without_fake_tensors():
        inputs_first = constant(graph_module, codes).t().contiguous()
        positive = constant(graph_module, scale)
        positive = positive.masked_fill(positive == 0, 1.0)  # a row of zeros has codes 0 at any scale
    weight = (attribute(graph_module, node, inputs_first), attribute(graph_module, node, positive))
    return insert(node, ops.scaled_int8_mm, x_codes, x_scale, *weight, part, bias, dtype)


def _column_mm(graph_module: fx.GraphModule, node: fx.Node, outlier: fx.Node) -> fx.Node:
    x, mask, weight, *scale = outlier.args
    if mask.target is not ops.column_mask:
        raise ConfigError(_IN_EACH_CALL)
    columns = list(mask.args[1])
    with without_fake_tensors():
        rows = constant(graph_module, weight)[:, columns]
        unit = constant(graph_module, scale[0]) if scale and scale[0] is not None else None
        if unit is not None and rows.is_floating_point():
            rows, unit = kept_columns(rows, unit)
        rows = (rows.float() if unit is None else rows.float() * unit[:, None]).t().contiguous()
    return insert(node, ops.column_mm, x, columns, attribute(graph_module, node, rows))
