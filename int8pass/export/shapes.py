"""Which dimensions of an example's inputs may change: batch size and length."""

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from int8pass.models import LoadedModel

_DYNAMIC_DIMENSIONS = 2


def dynamic_example(loaded: LoadedModel) -> tuple[LoadedModel, Any]:
    """A loaded model and `dynamic_shapes` of torch.export: the first two dimensions of each input, where they can vary.

    An example with a batch of one is repeated, since torch.export takes a size of 1 as fixed. A program that is
    captured already has its shapes, and stays as it is (None).
    """
    if isinstance(loaded.model, ExportedProgram):
        return loaded, None
    tensors = [value for value in (*loaded.args, *loaded.kwargs.values()) if isinstance(value, Tensor)]
    if all(tensor.dim() and tensor.shape[0] == 1 for tensor in tensors):
        args = tuple(_repeated(value) for value in loaded.args)
        kwargs = {name: _repeated(value) for name, value in loaded.kwargs.items()}
        loaded = dataclasses.replace(loaded, args=args, kwargs=kwargs)
    bound = inspect.signature(loaded.model.forward).bind(*loaded.args, **loaded.kwargs)
    return loaded, {name: _shapes(value) for name, value in bound.arguments.items()}


def _repeated(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) else value


def _shapes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shapes(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shapes(item) for item in value)
    if isinstance(value, Tensor):
        return {dimension: Dim.AUTO for dimension in range(min(_DYNAMIC_DIMENSIONS, value.dim()))}
    return None
