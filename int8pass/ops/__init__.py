"""The vocabulary of the rewritten graph: the ops `int8pass::*`.

Each op is declared once: schema, shape function and default implementation together. Every output shape is static
(outliers are a mask, never a list). A decomposition, where an op has one, is its default implementation: plain tensor
operations that a lowering may inline and fuse. Notation: x [..., K] float16, bfloat16 or float32; W [N, K].
Source of the arithmetic: LLM.int8(), Dettmers et al. 2022 (arXiv 2208.07339), equations 4, 7 and 8.
"""

from int8pass.ops.activations import (
    asymmetric_scale,
    column_mask,
    outlier_mask,
    quantize_asymmetric,
    quantize_per_tensor,
    quantize_per_token,
    quantize_static,
    scale_features,
    scale_per_tensor,
    scale_per_token,
    static_scale,
    static_zero_point,
    zero_point,
)
from int8pass.ops.declare import (
    DECOMPOSITIONS,
    NAMESPACE,
)
from int8pass.ops.epilogue import (
    dequantize,
    dequantize_asymmetric,
    dequantize_grouped,
)
from int8pass.ops.in_files import (
    gathered_mm,
    pad_features,
    scaled_int8_mm,
)
from int8pass.ops.products import (
    column_mm,
    grouped_int8_mm,
    int8_mm,
    outlier_mm,
    straight_through,
)

__all__ = [
    "DECOMPOSITIONS",
    "NAMESPACE",
    "asymmetric_scale",
    "column_mask",
    "column_mm",
    "dequantize",
    "dequantize_asymmetric",
    "dequantize_grouped",
    "gathered_mm",
    "grouped_int8_mm",
    "int8_mm",
    "outlier_mask",
    "outlier_mm",
    "pad_features",
    "quantize_asymmetric",
    "quantize_per_tensor",
    "quantize_per_token",
    "quantize_static",
    "scale_features",
    "scale_per_tensor",
    "scale_per_token",
    "scaled_int8_mm",
    "static_scale",
    "static_zero_point",
    "straight_through",
    "zero_point",
]
