"""`StreamedProgram`: a Program whose int8 weights are made while a file is written, piece by piece, and not kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from int8pass.program import Program
from int8pass.quantization.absmax import absmax_codes
from int8pass.quantization.columns import kept_columns
from int8pass.quantization.rounded_weights import RoundedWeights, WeightForm
from int8pass.quantization.scheme import PER_CHANNEL
from int8pass.weight_expression import WeightExpression
from int8pass.weights import quantize_weight, weight_scale

_LARGEST_HELD = 2**16  # elements
_ELEMENTS_AT_ONCE = 2**18
_FEATURES_AT_ONCE = 64  # at least: a row's features lie side by side in the float weight


def inputs_first(codes: Tensor, multiple: int) -> Tensor:
    """int8[N, K] as int8[K, N], with zeros behind so that both sizes are multiples of `multiple`."""
    rows, features = codes.shape
    return F.pad(codes.t(), (0, -rows % multiple, 0, -features % multiple)).contiguous()


class StreamedWeight:
    """An int8 weight of which only the scale is held. shape: (N, K).

    scale: float32[N]; codes: int8[N, K] without values, on the meta device; inputs_first: int8 of `stored_shape`,
    (K, N) raised to multiples of `multiple`, without values too where the weight `is_streamed`: it stands for what
    `pieces` give.
    """

    def __init__(self, read: Callable[[], Tensor], form: WeightForm = PER_CHANNEL, multiple: int = 1) -> None:
        weight = read()
        rounded = quantize_weight(weight, form) if isinstance(form, RoundedWeights) else None
        scale = rounded.scale if rounded else weight_scale(weight, form)
        self._read = read
        self._rounded = rounded.codes if rounded else None  # the profile holds them anyway
        # a row of zeros has codes 0 at any scale, and TensorRT wants scales above 0
        self.scale = scale.masked_fill(scale == 0, 1.0)
        self.input_factor = rounded.input_factor if rounded else None
        self.shape = tuple(weight.shape)
        self.stored_shape = tuple(size + -size % multiple for size in self.shape[::-1])
        self.nbytes = weight.numel() + scale.nbytes

    @property
    def is_streamed(self) -> bool:
        """Whether it is too large to be held; torch.onnx looks into the values of small tensors."""
        return self.shape[0] * self.shape[1] > _LARGEST_HELD

    @property
    def inputs_first(self) -> Tensor:
        if self.is_streamed:
            return torch.empty(self.stored_shape, dtype=torch.int8, device="meta")
        return torch.cat(list(self.pieces()))

    @property
    def codes(self) -> Tensor:
        return torch.empty(self.shape, dtype=torch.int8, device="meta")

    def empty(self, part: str) -> Tensor:
        """An uninitialized tensor like a part, for shape propagation."""
        shape = {
            "scale": self.shape[:1],
            "input_factor": self.shape[1:],
            "codes": self.shape,
            "inputs_first": self.stored_shape,
        }[part]
        dtype = torch.float32 if part in ("scale", "input_factor") else torch.int8
        return torch.empty(shape, dtype=dtype, device=self.scale.device)

    def pieces(self) -> Iterator[Tensor]:
        """The codes, inputs first, in contiguous pieces int8[some, N] that make up `stored_shape`."""
        features, outputs = self.stored_shape
        for part in self._source().split(max(_FEATURES_AT_ONCE, _ELEMENTS_AT_ONCE // outputs), dim=1):
            yield F.pad(self._as_codes(part).t(), (0, outputs - self.shape[0])).contiguous()
        if features > self.shape[1]:
            yield torch.zeros(features - self.shape[1], outputs, dtype=torch.int8)

    def columns(self, columns: tuple[int, ...], original: bool) -> tuple[Tensor, bool]:
        """Rows of inputs, 16-bit [J, N], of the float weight or of the codes; and whether `scale` is their unit."""
        if original:
            kept, unit = kept_columns(self._read()[:, list(columns)], self.scale)
        else:
            kept, unit = self._as_codes(self._source()[:, list(columns)]).to(torch.float16), self.scale
        return kept.t().contiguous(), unit is not None

    def _source(self) -> Tensor:
        """[N, K], whose parts `_as_codes` turns into codes."""
        return self._read() if self._rounded is None else self._rounded

    def _as_codes(self, part: Tensor) -> Tensor:
        return part if part.dtype == torch.int8 else absmax_codes(part, self.scale)


@dataclass
class StreamedProgram(Program):
    """A Program for files. streamed: its weights so far; multiple: what their sizes in the file are multiples of."""

    multiple: int = 1
    streamed: dict[tuple[int, str, WeightForm], StreamedWeight] = field(default_factory=dict)

    def quantized(self, expression: WeightExpression, form: WeightForm | None = None) -> StreamedWeight:
        tensor = self.tensors[expression.root].tensor
        form = form or self.config.weight_form
        key = (id(tensor), expression.key, form)
        if key not in self.streamed:
            self.streamed[key] = StreamedWeight(lambda: expression.evaluate(tensor.detach()), form, self.multiple)
        return self.streamed[key]
