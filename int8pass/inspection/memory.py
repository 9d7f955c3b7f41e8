"""What quantizing a weight takes in memory: computed from the code that does it, nothing is allocated."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from int8pass.kernels.cpu.packing import LARGEST_K, packing_scratch_bytes
from int8pass.kernels.cuda.column_words import words_bytes
from int8pass.quantization.scheme import DEFAULT, Scheme
from int8pass.torch_private import storage_id
from int8pass.weight_expression import WeightExpression
from int8pass.weights import QuantizedWeight, quantizing_scratch_bytes


@dataclass(frozen=True)
class WeightMemory:
    """Bytes of one weight. before: in float; int8: the form that calls read; peak: the most that is held of both
    while that form is made, scratch included. `kept_float` says whether the float weight stays beside it.
    """

    before: int
    int8: int
    peak: int
    kept_float: bool

    @property
    def after(self) -> int:
        return self.int8 + (self.before if self.kept_float else 0)


def weight_memory(
    tensor: Tensor, expression: WeightExpression, *, kept_float: bool, fused: bool, scheme: Scheme = DEFAULT,
    outliers: bool = False, profiled: bool = False,
) -> WeightMemory:  # fmt: skip
    """The memory of a parameter's or buffer's view.

    fused: calls go to the fused kernels where they take the weight: that of the CPU packs the codes at the first call,
    those of CUDA cache outlier columns. outliers: the outlier branch reads the float weight; profiled: at columns that
    a profile names.
    """
    root = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    weight = expression.evaluate(root)
    rows, columns = weight.shape
    before = weight.numel() * tensor.dtype.itemsize
    copied = 0 if storage_id(weight) == storage_id(root) else weight.nbytes
    scales = math.prod(scheme.weights.scale_shape(rows, columns))
    codes = int8_bytes(rows, columns, packed=False) + (scales - rows) * torch.float32.itemsize
    if not scheme.activations.symmetric:
        codes += scales * torch.int32.itemsize  # code_sums
    peak = before + copied + codes + quantizing_scratch_bytes(rows, columns, scheme.weights, tensor.is_cuda)
    if fused and scheme.has_default_form and tensor.is_cuda and outliers:
        codes += words_bytes(rows, columns, weight.dtype, profiled)
        return WeightMemory(before, codes, max(peak, codes + (before if kept_float else 0)), kept_float)
    if not (fused and scheme.has_default_form and tensor.device.type == "cpu" and columns <= LARGEST_K):
        return WeightMemory(before, codes, peak, kept_float)
    packed = int8_bytes(rows, columns, packed=True)
    packing = (before if kept_float else 0) + codes + packed + packing_scratch_bytes(columns)
    return WeightMemory(before, packed, max(peak, packing), kept_float)


@functools.cache
def int8_bytes(rows: int, columns: int, packed: bool) -> int:
    """What a QuantizedWeight [rows, columns] holds: one on the meta device tells."""
    codes = torch.empty((rows, columns), dtype=torch.int8, device="meta")
    quantized = QuantizedWeight(codes, torch.empty(rows, dtype=torch.float32, device="meta"))
    if packed:
        _ = quantized.packed
    return quantized.nbytes
