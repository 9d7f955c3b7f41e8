"""For runtimes whose int8 product wants sizes of a multiple: what is quantized gets zero features behind its own.

The weight has as many rows of zeros (`StreamedWeight.stored_shape`), so the sums are the same. A whole number of
`program.multiple` features is left as it is.

before:
    %scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
    %quantize_per_token : i8[4, 33] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
after:
    %pad_features : f32[4, 64] = int8pass.pad_features(%x, 64)
    %scale_per_token : f32[4] = int8pass.scale_per_token(%pad_features, %outlier_mask)
    %quantize_per_token : i8[4, 64] = int8pass.quantize_per_token(%pad_features, %scale_per_token, %outlier_mask)
where %outlier_mask, and the outlier branch that it selects for, read %pad_features too.
"""

from torch import fx

from int8pass import ops
from int8pass.export.streamed_program import StreamedProgram
from int8pass.graph import compute_value, insert, value_of

_READERS = (
    *(ops.outlier_mask, ops.column_mask, ops.scale_per_token, ops.quantize_per_token),
    *(ops.gathered_mm, ops.column_mm),
)


def pad_quantized_features(program: StreamedProgram) -> int:
    """Pad every input of a Linear that needs it. Returns how many were padded."""
    padded: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.target not in _READERS:
            continue
        x = node.args[0]
        features = value_of(x).shape[-1]
        if features % program.multiple == 0:
            continue
        if x not in padded:
            padded[x] = insert(node, ops.pad_features, x, features + -features % program.multiple)
        node.update_arg(0, padded[x])
        compute_value(node)
    return len(padded)
