"""`StreamedProgram`: a Program whose int8 weights are made when a file is written, one at a time, and not kept."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from int8pass.program import Program
from int8pass.quantization.columns import kept_columns
from int8pass.quantization.scheme import PER_CHANNEL, Scheme, WeightQuantization
from int8pass.weight_expression import WeightExpression
from int8pass.weights import quantize_weight

_LARGEST_HELD = 2**16  # elements


def inputs_first(codes: Tensor, multiple: int) -> Tensor:
    """int8[N, K] as int8[K, N], with zeros behind so that both sizes are multiples of `multiple`."""
    rows, features = codes.shape
    return torch.nn.functional.pad(codes.t(), (0, -rows % multiple, 0, -features % multiple)).contiguous()


class StreamedWeight:
    """An int8 weight of which only the scale is held. shape: (N, K).

    scale: float32[N]; codes: int8[N, K] without values, on the meta device; inputs_first: int8 of `stored_shape`,
    (K, N) raised to multiples of `multiple`, without values too where the weight `is_streamed`: it stands for what
    `compute` returns.
    """

    def __init__(self, read: Callable[[], Tensor], form: WeightQuantization = PER_CHANNEL, multiple: int = 1) -> None:
        quantized = quantize_weight(read(), form)
        self._read, self._form = read, form
        self._multiple = multiple
        # a row of zeros has codes 0 at any scale, and TensorRT wants scales above 0
        self.scale = quantized.scale.masked_fill(quantized.scale == 0, 1.0)
        self.shape = quantized.shape
        self.stored_shape = tuple(size + -size % multiple for size in self.shape[::-1])
        self.nbytes = quantized.nbytes

    @property
    def is_streamed(self) -> bool:
        """Whether it is too large to be held; torch.onnx looks into the values of small tensors."""
        return self.shape[0] * self.shape[1] > _LARGEST_HELD

    @property
    def inputs_first(self) -> Tensor:
        return torch.empty(self.stored_shape, dtype=torch.int8, device="meta") if self.is_streamed else self.compute()

    @property
    def codes(self) -> Tensor:
        return torch.empty(self.shape, dtype=torch.int8, device="meta")

    def empty(self, part: str) -> Tensor:
        """An uninitialized tensor like a part, for shape propagation."""
        shape = {"scale": self.shape[:1], "codes": self.shape, "inputs_first": self.stored_shape}[part]
        dtype = torch.float32 if part == "scale" else torch.int8
        return torch.empty(shape, dtype=dtype, device=self.scale.device)

    def compute(self) -> Tensor:
        """The codes, inputs first: int8 of `stored_shape`."""
        return inputs_first(quantize_weight(self._read(), self._form).codes, self._multiple)

    def columns(self, columns: tuple[int, ...], original: bool) -> tuple[Tensor, bool]:
        """Rows of inputs, 16-bit [J, N], of the float weight or of the codes; and whether `scale` is their unit."""
        weight = self._read()
        if original:
            kept, unit = kept_columns(weight[:, list(columns)], self.scale)
        else:
            kept, unit = quantize_weight(weight, self._form).codes[:, list(columns)].to(torch.float16), self.scale
        return kept.t().contiguous(), unit is not None


@dataclass
class StreamedProgram(Program):
    """A Program for files. streamed: its weights so far; multiple: what their sizes in the file are multiples of."""

    multiple: int = 1
    streamed: dict[tuple[int, str, WeightQuantization], StreamedWeight] = field(default_factory=dict)

    def quantized(self, expression: WeightExpression, scheme: Scheme | None = None) -> StreamedWeight:
        tensor = self.tensors[expression.root].tensor
        form = (scheme or self.config.scheme).weights
        key = (id(tensor), expression.key, form)
        if key not in self.streamed:
            self.streamed[key] = StreamedWeight(lambda: expression.evaluate(tensor.detach()), form, self.multiple)
        return self.streamed[key]
