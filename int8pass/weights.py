"""`QuantizedWeight`: an int8 weight in the layouts that graphs read, and how it is made."""

import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from int8pass.errors import WeightError
from int8pass.kernels.cpu import fused
from int8pass.kernels.cpu.packing import ZERO_POINT, code_offset, pack, packed_shape, unpack
from int8pass.kernels.cuda.column_words import empty_words, words_shape
from int8pass.quantization.absmax import INT8_MAX, absmax_codes
from int8pass.quantization.rounded_weights import RoundedWeights, WeightForm
from int8pass.quantization.scheme import PER_CHANNEL, WeightQuantization
from int8pass.released_memory import released

_NOT_FINITE = "the weight holds NaN or infinity"
_ELEMENTS_AT_ONCE = 2**16  # float32 copies made while a weight is quantized stay in cache
_ELEMENTS_AT_ONCE_ON_CUDA = 2**24  # a launch for each few rows would take longer than they do


class ColumnCounts(NamedTuple):
    """Of a weight's column cache. found, gathered: columns asked for; held: columns kept now, in `nbytes` bytes."""

    found: int
    gathered: int
    held: int
    nbytes: int


class QuantizedWeight:
    """An int8 weight: W[n, k] = codes[n, k] * scale[n] up to rounding.

    scale: float32[N], all equal where there is one for the tensor, or float32[N, groups]; codes: int8[N, K];
    code_sums: int32 like scale, sums of the codes; packed and offset: the layout of the fused CPU kernel. Memory holds
    the codes once: `packed` takes their place. Only where a graph that is not fused (training, debugging) reads `codes`
    after that are both kept. column_cache, profiled_cache: where that kernel keeps outlier columns of the float weight
    between calls, as they are and, for those that a profile names, in 16 bits. column_words, wide_column_words: the
    CUDA kernels' cache, of 16-bit values and of float32.
    """

    _lock = threading.Lock()

    def __init__(self, codes: Tensor, scale: Tensor, input_factor: Tensor | None = None) -> None:
        self.scale = scale
        self.input_factor = input_factor
        self.shape = tuple(codes.shape)
        self._codes: Tensor | None = codes
        self._packed: Tensor | None = None
        self._offset: Tensor | None = None
        self._code_sums: Tensor | None = None
        self._caches: dict[str, Tensor] = {}
        self._words: dict[str, Tensor] = {}
        self._fields: dict[tuple[str, ...], tuple[Tensor, ...]] = {}

    def fields(self, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Several fields at once. They are kept, since a graph asks for the same at every call; codes come and go."""
        kept = self._fields.get(names)
        if kept is None:
            kept = tuple(getattr(self, name) for name in names)
            if "codes" not in names:
                self._fields[names] = kept
        return kept

    @property
    def codes(self) -> Tensor:
        codes = self._codes  # read once: another thread may pack
        if codes is None:
            self._codes = codes = unpack(self._packed, *self.shape)
        return codes

    @property
    def packed(self) -> Tensor:
        if self._packed is not None:
            return self._packed
        with self._lock:
            if self._packed is None:
                self._offset = code_offset(self._codes)
                self._packed = pack(self._codes)
                self._codes = None
                released(self._packed.nbytes)
        return self._packed

    @property
    def offset(self) -> Tensor:
        _ = self.packed
        return self._offset

    @property
    def code_sums(self) -> Tensor:
        with self._lock:
            if self._code_sums is None and self.scale.dim() == 2:
                self._code_sums = _filled(self.codes.view(*self.scale.shape, -1).sum(-1, dtype=torch.int32))
            elif self._code_sums is None:
                offset = code_offset(self._codes) if self._offset is None else self._offset
                self._code_sums = _filled(offset // ZERO_POINT)
        return self._code_sums

    @property
    def column_cache(self) -> Tensor:
        return self._cache("column_cache")

    @property
    def profiled_cache(self) -> Tensor:
        return self._cache("profiled_cache")

    def _cache(self, field: str) -> Tensor:
        with self._lock:
            if field not in self._caches:
                self._caches[field] = fused.cpu_column_cache(fused.cache_capacity(self.shape[1]))
            return self._caches[field]

    @property
    def column_words(self) -> Tensor:
        return self._column_words("column_words", wide=False)

    @property
    def wide_column_words(self) -> Tensor:
        return self._column_words("wide_column_words", wide=True)

    def _column_words(self, field: str, wide: bool) -> Tensor:
        with self._lock:
            if field not in self._words:
                self._words[field] = _filled(empty_words(*self.shape, wide, self.scale.device))
            return self._words[field]

    @property
    def cached_columns(self) -> ColumnCounts:
        """What became of the outlier columns that calls asked for."""
        counts = [fused.cpu_column_cache_counts(cache).tolist() for cache in list(self._caches.values())]
        return ColumnCounts(*map(sum, zip((0, 0, 0, 0), *counts, strict=True)))

    @property
    def nbytes(self) -> int:
        held = (
            self._codes, self._packed, self._offset, self._code_sums, self.scale, self.input_factor,
            *list(self._words.values()),
        )  # fmt: skip
        return sum(tensor.nbytes for tensor in held if tensor is not None) + self.cached_columns.nbytes

    def empty(self, field: str) -> Tensor:
        """An uninitialized tensor like a field, for shape propagation; it forces no layout."""
        shape, dtype = {
            "codes": (self.shape, torch.int8),
            "scale": (self.scale.shape, torch.float32),
            "input_factor": (self.shape[1:], torch.float32),
            "code_sums": (self.scale.shape, torch.int32),
            "packed": (packed_shape(*self.shape), torch.int8),
            "offset": (self.shape[:1], torch.int32),
            "column_cache": ((fused.COLUMN_CACHE_BYTES,), torch.uint8),
            "profiled_cache": ((fused.COLUMN_CACHE_BYTES,), torch.uint8),
            "column_words": (words_shape(*self.shape), torch.int32),
            "wide_column_words": (words_shape(*self.shape), torch.int64),
        }[field]
        return torch.empty(shape, dtype=dtype, device=self.scale.device)


def _filled(tensor: Tensor) -> Tensor:
    """The tensor, once the device has written it: other threads may read it on streams of their own."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    return tensor


def quantize_weight(weight: Tensor, form: WeightForm = PER_CHANNEL) -> QuantizedWeight:
    """Quantize as `form` says; the default is one scale for each output channel (LLM.int8(), section 3.1).

    weight: [N, K] float16, bfloat16 or float32, any strides. Raises WeightError for NaN, infinity, or magnitudes whose
    int32 sums would overflow float32 once scaled; ProfileError where `form` holds rounded weights, and not this one.
    """
    input_factor = None
    if not isinstance(form, RoundedWeights):
        codes, scale = _by_group(weight, form) if form.group_size else _codes_and_scale(weight, form)
    elif bool(torch.isfinite(weight).all()):
        rounded = form.of(weight)
        codes, scale, input_factor = rounded.codes, rounded.scale, rounded.input_factor
    else:
        raise WeightError(_NOT_FINITE)
    _require_usable(scale, weight.shape[1])
    return QuantizedWeight(codes, scale, input_factor)


def _by_group(weight: Tensor, form: WeightQuantization) -> tuple[Tensor, Tensor]:
    if weight.shape[1] % form.group_size:
        raise WeightError(f"K = {weight.shape[1]} is not a multiple of the group size {form.group_size}")
    codes, scale = _codes_and_scale(weight.reshape(-1, form.group_size), form)
    return codes.view(weight.shape), scale.view(form.scale_shape(*weight.shape))


def _codes_and_scale(weight: Tensor, form: WeightQuantization) -> tuple[Tensor, Tensor]:
    """int8[R, C] and float32[R] of rows [R, C] that have a scale each."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for part in _scaled_parts(weight, form, scale):
        codes[part] = absmax_codes(weight[part], scale[part])
    return codes, scale


def weight_scale(weight: Tensor, form: WeightQuantization = PER_CHANNEL) -> Tensor:
    """The scale, float32[N], that `quantize_weight` finds; it raises what that does, and holds no codes."""
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for _ in _scaled_parts(weight, form, scale):
        pass
    _require_usable(scale, weight.shape[1])
    return scale


def _scaled_parts(weight: Tensor, form: WeightQuantization, scale: Tensor) -> Iterator[slice]:
    """Fill in the scales of a few rows at a time, and name those rows while they are in cache."""
    rows, columns = weight.shape
    if form.granularity == "per_tensor":
        scale[:] = form.scale(weight.reshape(1, -1))
    at_once = _ELEMENTS_AT_ONCE_ON_CUDA if weight.is_cuda else _ELEMENTS_AT_ONCE
    step = max(1, at_once // max(1, columns))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        if form.granularity != "per_tensor":
            scale[part] = form.scale(weight[part])
        yield part


def _require_usable(scale: Tensor, columns: int) -> None:
    if not bool(torch.isfinite(scale).all()):
        raise WeightError(_NOT_FINITE)
    if float(scale.max()) * INT8_MAX**2 * columns > torch.finfo(torch.float32).max:
        raise WeightError("the weight is so large that its products overflow float32")


def quantizing_scratch_bytes(
    rows: int, columns: int, form: WeightQuantization = PER_CHANNEL, on_cuda: bool = False
) -> int:
    """The most that `quantize_weight` holds beside weight and codes: two float32 copies of the rows taken at a time."""
    taken = rows * columns if form.granularity == "per_tensor" else columns
    return 2 * torch.float32.itemsize * max(_ELEMENTS_AT_ONCE_ON_CUDA if on_cuda else _ELEMENTS_AT_ONCE, taken)
