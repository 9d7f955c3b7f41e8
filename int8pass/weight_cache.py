"""`WEIGHTS`: int8 weights, computed once for each live float tensor and view of it, noticed when stale."""

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from int8pass.errors import FreedWeightError, WeightError
from int8pass.freed_parameter import FREED, is_freed
from int8pass.quantization.rounded_weights import WeightForm
from int8pass.quantization.scheme import PER_CHANNEL
from int8pass.torch_private import storage_id
from int8pass.weights import ColumnCounts, QuantizedWeight, quantize_weight


def _fingerprint(tensor: Tensor) -> tuple:
    """What changes when a weight is written to or given new storage. Inference tensors have no version counter."""
    version = None if tensor.is_inference() else tensor._version
    return version, storage_id(tensor), tensor.data_ptr(), tensor.dtype


class CachedWeight:
    """One view of one float tensor in int8, or why it has none, with the fingerprint of the tensor it was made from."""

    __slots__ = ("__weakref__", "_fingerprint", "_storage", "_tensor", "quantized")

    def __init__(self, tensor: Tensor, quantized: QuantizedWeight | str) -> None:
        self._tensor = weakref.ref(tensor)
        self._storage = StorageWeakRef(tensor.untyped_storage())  # keeps its id from being given to another storage
        self._fingerprint: tuple | None = _fingerprint(tensor)
        self.quantized = quantized

    def serves(self, tensor: Tensor) -> bool:
        """Whether this is the int8 form of what `tensor` holds now."""
        if self._tensor() is not tensor:
            return False
        return is_freed(tensor) or self._fingerprint == _fingerprint(tensor)

    def expire(self) -> None:
        self._fingerprint = None


def _quantized_or_reason(
    evaluate: Callable[[Tensor], Tensor], tensor: Tensor, form: WeightForm
) -> QuantizedWeight | str:
    if is_freed(tensor):
        raise FreedWeightError(FREED)
    with torch.inference_mode(False), torch.no_grad():
        try:
            return quantize_weight(evaluate(tensor), form)
        except WeightError as error:
            return str(error)  # not the error: its traceback would keep the tensor and the inputs of calls alive


class WeightCache:
    """Int8 weights by identity of the live float tensor (held weakly), by the view of it that a Linear reads, and by
    how that is quantized.
    """

    def __init__(self) -> None:
        self._views: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._lock = threading.RLock()

    def get(
        self,
        tensor: Tensor,
        view: str,
        evaluate: Callable[[Tensor], Tensor],
        form: WeightForm = PER_CHANNEL,
    ) -> CachedWeight:
        """The int8 form of evaluate(tensor), quantizing where it is new or stale. `view` names what evaluate does.

        Raises WeightError as `quantize_weight` does, FreedWeightError where a freed tensor lacks this view.
        """
        with self._lock:
            views = self._views.setdefault(tensor, {})
            cached = views.get((view, form))
            if cached is None or not cached.serves(tensor):
                cached = views[view, form] = CachedWeight(tensor, _quantized_or_reason(evaluate, tensor, form))
            if isinstance(cached.quantized, str):
                raise WeightError(cached.quantized)
            return cached

    def nbytes(self, tensor: Tensor) -> int:
        """Bytes of every int8 form that is held of this tensor."""
        with self._lock:
            held = [cached.quantized for cached in self._views.get(tensor, {}).values()]
            return sum(quantized.nbytes for quantized in held if isinstance(quantized, QuantizedWeight))

    def cached_columns(self, tensor: Tensor) -> ColumnCounts:
        """What became of the outlier columns that calls asked of this tensor's int8 forms."""
        with self._lock:
            held = [cached.quantized for cached in self._views.get(tensor, {}).values()]
            counts = [quantized.cached_columns for quantized in held if isinstance(quantized, QuantizedWeight)]
            return ColumnCounts(*map(sum, zip(ColumnCounts(0, 0, 0, 0), *counts, strict=True)))

    def forget(self, tensor: Tensor) -> None:
        """Quantize this tensor again when it is next used. A freed tensor is kept: its int8 form is all there is."""
        with self._lock:
            for cached in self._views.get(tensor, {}).values():
                cached.expire()


WEIGHTS = WeightCache()


@register_optimizer_step_post_hook
def _forget_fused(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Fused optimizers write to parameters without counting a version."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                WEIGHTS.forget(parameter)


def requantize(model: nn.Module) -> None:
    """Quantize the model's weights again at its next call.

    Changes through in-place operations, `load_state_dict` and replaced tensors are noticed without this. Needed only
    after edits through `.data`, or of tensors made in inference mode, which leave no trace.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        WEIGHTS.forget(tensor)
