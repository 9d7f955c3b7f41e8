"""`FreedParameter`: a float weight whose storage was released once its int8 form was there."""

import torch
from torch import Tensor, nn

from int8pass.errors import FreedWeightError
from int8pass.released_memory import released
from int8pass.torch_private import as_plain_tensors, is_tracing

_METHODS = """size stride dim numel is_floating_point is_complex element_size requires_grad_ is_conj is_neg
storage_offset _is_view __hash__ __len__"""
_ATTRIBUTES = """shape dtype device layout ndim nbytes requires_grad grad grad_fn is_leaf is_meta is_nested is_sparse
is_sparse_csr is_quantized is_mkldnn is_cpu is_cuda _version _base"""
_METADATA = frozenset(
    [getattr(Tensor, name) for name in _METHODS.split()]
    + [getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split()]
)


FREED = (
    "this float weight was released by free_weights=True after it was quantized to int8. To read, save or change "
    "weights, load the model again, or compile without free_weights."
)


class FreedParameter(nn.Parameter):
    """A parameter whose storage was released: its metadata can be read, its values cannot.

    Dynamo still traces through it (shapes are all it needs), so a recompile for a new dynamic shape works.
    """

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        while_tracing = func is Tensor.untyped_storage and is_tracing()  # Dynamo of PyTorch 2.11 asks for its size
        if torch.compiler.is_compiling() or while_tracing or func in _METADATA:
            with as_plain_tensors():
                return func(*args, **(kwargs or {}))
        raise FreedWeightError(FREED)

    def __repr__(self) -> str:
        return f"FreedParameter({tuple(self.shape)}, {self.dtype})"


def free(parameter: nn.Parameter) -> None:
    """Release a parameter's storage. Tensors that share it keep it; reading the parameter raises FreedWeightError."""
    hollow = torch.empty_strided(parameter.size(), parameter.stride(), dtype=parameter.dtype, device=parameter.device)
    hollow.untyped_storage().resize_(0)
    parameter.data = hollow
    released(parameter.nbytes)
    parameter.__class__ = FreedParameter


def is_freed(tensor: Tensor) -> bool:
    return type(tensor) is FreedParameter
