"""The legal IR as a table: what each int8pass op takes and gives. Checked after every pass in tests and debug runs."""

from dataclasses import dataclass

import torch
from torch import fx

from int8pass import ops
from int8pass.errors import VerificationError
from int8pass.graph import dtype_name, value_of
from int8pass.kernels.cpu import fused
from int8pass.kernels.cuda import fused as cuda
from int8pass.program import Program
from int8pass.torch_private import OpOverload

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
BOOL, INT8, UINT8, INT32, FLOAT32 = (torch.bool,), (torch.int8,), (torch.uint8,), (torch.int32,), (torch.float32,)
WORDS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Signature:
    """Allowed dtypes of each tensor argument in order (None: may be absent), and of the result.

    rank: how the result's rank derives from the first argument's; None: not checked. results: of an op with several.
    """

    arguments: tuple[tuple[torch.dtype, ...], ...]
    result: tuple[torch.dtype, ...] = ()
    rank: int | None = 0
    results: tuple[tuple[torch.dtype, ...], ...] = ()


TABLE: dict[OpOverload, Signature] = {
    ops.outlier_mask: Signature((FLOATS,), BOOL, rank=None),
    ops.scale_features: Signature((FLOATS, FLOAT32), FLOATS),
    ops.column_mask: Signature((FLOATS,), BOOL, rank=None),
    ops.scale_per_token: Signature((FLOATS, BOOL), FLOAT32, rank=-1),
    ops.scale_per_tensor: Signature((FLOATS, BOOL), FLOAT32, rank=None),
    ops.asymmetric_scale: Signature((FLOATS, BOOL), FLOAT32, rank=None),
    ops.static_scale: Signature((FLOATS, BOOL), FLOAT32, rank=-1),
    ops.static_zero_point: Signature((FLOATS,), INT32, rank=None),
    ops.zero_point: Signature((FLOATS, FLOAT32, BOOL), INT32, rank=None),
    ops.quantize_per_token: Signature((FLOATS, FLOAT32, BOOL), INT8),
    ops.quantize_per_tensor: Signature((FLOATS, FLOAT32, BOOL), INT8),
    ops.quantize_asymmetric: Signature((FLOATS, FLOAT32, INT32, BOOL), INT8),
    ops.int8_mm: Signature((INT8, INT8), INT32),
    ops.outlier_mm: Signature((FLOATS, BOOL, (*FLOATS, torch.int8), FLOAT32), FLOAT32),
    ops.quantize_static: Signature((FLOATS, BOOL), INT8),
    ops.dequantize: Signature((INT32, FLOAT32, FLOAT32, FLOAT32, FLOATS), FLOATS),
    ops.dequantize_asymmetric: Signature((INT32, FLOAT32, INT32, FLOAT32, INT32, FLOAT32, FLOATS), FLOATS),
    ops.pad_features: Signature((FLOATS,), FLOAT32),
    ops.grouped_int8_mm: Signature((INT8, INT32, INT8, FLOAT32, INT32), FLOAT32),
    ops.dequantize_grouped: Signature((FLOAT32, FLOAT32, FLOAT32, FLOATS), FLOATS),
    ops.scaled_int8_mm: Signature((INT8, FLOAT32, INT8, FLOAT32, FLOAT32, FLOATS), FLOATS),
    ops.gathered_mm: Signature((FLOATS, BOOL, INT8, FLOAT32), FLOAT32),
    ops.column_mm: Signature((FLOATS, (torch.float16, torch.bfloat16), FLOAT32, FLOATS), FLOAT32),
    ops.straight_through: Signature((FLOAT32, FLOATS, INT8, FLOAT32), FLOAT32),
    fused.cpu_quantize: Signature((FLOATS,), rank=None, results=(UINT8, FLOAT32, BOOL)),
    fused.cpu_linear: Signature((FLOATS, UINT8, FLOAT32, BOOL, INT8, INT32, FLOAT32, FLOATS, FLOATS, UINT8), FLOATS),
    fused.cpu_quantize_static: Signature((FLOATS,), rank=None, results=(UINT8, FLOAT32, BOOL)),
    fused.cpu_static_linear: Signature((FLOATS, INT8, INT32, FLOAT32, FLOATS, FLOATS, UINT8), FLOATS),
    fused.cpu_int8_linear: Signature((FLOATS, INT8, INT32, FLOAT32, FLOATS, FLOATS, UINT8), FLOATS),
    cuda.cuda_quantize: Signature((FLOATS,), rank=None, results=(INT8, FLOAT32, INT32)),
    cuda.cuda_norm_quantize: Signature((FLOATS,) * 4, rank=None, results=(FLOATS, INT8, FLOAT32, INT32, FLOATS)),
    cuda.cuda_linear: Signature((FLOATS, INT8, FLOAT32, INT32, INT8, FLOAT32, FLOATS, FLOATS, WORDS), FLOATS),
    cuda.cuda_int8_linear: Signature((FLOATS, INT8, FLOAT32, FLOATS, FLOATS, WORDS), FLOATS),
}


def verify_ops(program: Program) -> int:
    """Check every int8pass op against the table. Returns how many there are; raises VerificationError."""
    found = [node for node in program.graph.nodes if node.target in TABLE]
    for node in found:
        _verify(node, TABLE[node.target])
    program.graph.lint()
    return len(found)


def _verify(node: fx.Node, signature: Signature) -> None:
    tensors = [argument for argument in node.args if argument is None or isinstance(argument, fx.Node)]
    for position, (argument, allowed) in enumerate(zip(tensors, signature.arguments, strict=False)):
        if argument is not None and value_of(argument).dtype not in allowed:
            _fail(node, f"argument {position} is {dtype_name(value_of(argument))}", allowed)
    results = value_of(node) if signature.results else (value_of(node),)
    for result, allowed in zip(results, signature.results or (signature.result,), strict=True):
        if result.dtype not in allowed:
            _fail(node, f"the result is {dtype_name(result)}", allowed)
        if signature.rank is not None and result.dim() != value_of(tensors[0]).dim() + signature.rank:
            expected = value_of(tensors[0]).dim() + signature.rank
            raise VerificationError(f"{node.name}: the result has {result.dim()} dimensions, not {expected}")


def _fail(node: fx.Node, what: str, allowed: tuple[torch.dtype, ...]) -> None:
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    raise VerificationError(f"{node.name} ({node.target}): {what}, and may be {names}")
