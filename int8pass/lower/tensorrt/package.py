"""The installed torch-tensorrt, with the converters of int8pass in it, and its settings."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from int8pass.errors import ConfigError, EngineError, MissingDependencyError
from int8pass.export.tensorrt.versions import import_tensorrt
from int8pass.lower.tensorrt.linear_form import SETTING, lower_linears

# What torch-tensorrt is told unless the option `tensorrt` says otherwise. Its own defaults leave blocks of fewer than
# five operations to PyTorch, and let float32 products run in TF32.
DEFAULTS: Mapping[str, Any] = {"min_block_size": 1, "disable_tf32": True}
# Not for options to change: its own default returns the graph unconverted where a build fails.
FIXED: Mapping[str, Any] = {"pass_through_build_failures": True, "dryrun": False}
_CACHE_OPTIONS = ("custom_engine_cache", "engine_cache_dir", "engine_cache_size")


def import_torch_tensorrt() -> ModuleType:
    """The module, ready for int8pass's ops. Raises MissingDependencyError without it, EngineError without a GPU."""
    import_tensorrt()
    try:
        import torch_tensorrt
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"lowering='tensorrt' needs torch-tensorrt, which cannot be imported ({error}): pip install "
            "'int8pass[tensorrt]' on a machine with an NVIDIA GPU and its driver; its version is that of PyTorch"
        ) from error
    require_gpu()
    register()
    return torch_tensorrt


def require_gpu() -> None:
    """Raise EngineError where PyTorch has no GPU."""
    if not torch.cuda.is_available():
        raise EngineError(
            "lowering='tensorrt' builds engines on an NVIDIA GPU, and torch.cuda.is_available() is False: PyTorch must "
            "be a CUDA build (https://pytorch.org/get-started/locally), on a machine with a GPU and its driver"
        )


@functools.cache
def register() -> None:
    """Tell TensorRT of the plugin, torch-tensorrt of the converters and of the pass before them, once a process."""
    from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter
    from torch_tensorrt.dynamo.lowering.passes._aten_lowering_pass import _aten_lowering_pass

    from int8pass.lower.tensorrt import plugin
    from int8pass.lower.tensorrt.converters import CONVERTERS

    plugin.register()

    for op, converter in CONVERTERS.items():
        dynamo_tensorrt_converter(op, supports_dynamic_shapes=True)(converter)
    _aten_lowering_pass(lower_linears)


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """torch-tensorrt's settings: the defaults, the option `tensorrt` on top, less what is int8pass's own in it.

    Raises ConfigError for an unknown one: torch-tensorrt itself passes over names that it does not know.
    """
    from torch_tensorrt.dynamo import CompilationSettings

    known = [*(item.name for item in dataclasses.fields(CompilationSettings)), *_CACHE_OPTIONS, SETTING]
    for name, value in given.items():
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"option 'tensorrt': torch-tensorrt has no setting {name!r}; did you mean {nearest!r}?")
        if name in FIXED and value != FIXED[name]:
            raise ConfigError(f"option 'tensorrt': {name} is always {FIXED[name]}, so that a failed build is an error")
    return {name: value for name, value in {**DEFAULTS, **given, **FIXED}.items() if name != SETTING}
