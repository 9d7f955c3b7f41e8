"""One form for what a model is called with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from int8pass.errors import ConfigError


def call_arguments(batch: Any) -> tuple[tuple, dict[str, Any]]:
    """args and kwargs of a batch: a mapping (kwargs), a tuple (args), a pair (args, kwargs), or a tensor.

    Raises ConfigError for anything else.
    """
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], tuple) and isinstance(batch[1], Mapping):
        return batch[0], dict(batch[1])
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    raise ConfigError(
        f"a batch is a mapping of keyword arguments, a tuple of arguments or a tensor, not {type(batch).__name__}"
    )
