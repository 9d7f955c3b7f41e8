"""What an exported file is run on: the example inputs of the model that it was made from, or inputs made up."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from int8pass.errors import OnnxFileError
from int8pass.export.example import with_past_if_decoder
from int8pass.inspection.onnx_run import Feed, numpy_of
from int8pass.models import LoadedModel
from int8pass.torch_private import tree_leaves

BATCH, LENGTH = 1, 16  # of made-up inputs, where the file leaves the sizes open
_NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


def example_for(loaded: LoadedModel, session: Any) -> tuple[LoadedModel, Feed]:
    """The model and inputs of a float MODEL that a file has counterparts of: a decoder's with its past, if need be.

    Raises OnnxFileError where the file takes other inputs.
    """
    wanted = session.get_inputs()
    for candidate in _candidates(loaded):
        tensors = _tensors(candidate)
        named = [name for name in candidate.kwargs if name in {each.name for each in wanted}]
        if len(tensors) == len(wanted):
            feed = {name: candidate.kwargs[name] for name in named if isinstance(candidate.kwargs[name], Tensor)}
            rest = iter([each for each in tensors if not any(each is taken for taken in feed.values())])
            feed = {each.name: feed[each.name] if each.name in feed else next(rest) for each in wanted}
            return candidate, {name: numpy_of(tensor) for name, tensor in feed.items()}
    names = ", ".join(each.name for each in wanted)
    raise OnnxFileError(
        f"the file takes {len(wanted)} inputs ({names}) and the model's example has {len(_tensors(loaded))}: "
        "name the model that the file was made from"
    )


def _candidates(loaded: LoadedModel) -> Iterator[LoadedModel]:
    yield loaded
    decoder = with_past_if_decoder(loaded)
    if decoder is not None:
        yield decoder


def _tensors(loaded: LoadedModel) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((loaded.args, loaded.kwargs)) if isinstance(leaf, Tensor)]


def made_up(session: Any) -> Feed:
    """Integers that are 1, as ids and masks may be, and normal numbers; open sizes are 1 first, then 16."""
    generator = torch.Generator().manual_seed(0)
    return {each.name: _made_up(each, generator) for each in session.get_inputs()}


def _made_up(wanted: Any, generator: torch.Generator) -> Any:
    sizes = [size if isinstance(size, int) else LENGTH if place else BATCH for place, size in enumerate(wanted.shape)]
    if wanted.type in _NUMPY:
        return torch.randn(sizes, generator=generator).numpy().astype(_NUMPY[wanted.type])
    if wanted.type in ("tensor(int64)", "tensor(int32)", "tensor(bool)"):
        return torch.ones(sizes).numpy().astype(wanted.type[len("tensor(") : -1])
    raise OnnxFileError(f"there are no made-up inputs of type {wanted.type} ({wanted.name}): give the model instead")
