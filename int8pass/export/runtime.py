"""ONNX Runtime, as the files are run by it here."""

import importlib.metadata
import os
from typing import Any

from int8pass.errors import MissingDependencyError

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


def require_one_onnxruntime() -> None:
    """Raise MissingDependencyError where both packages are installed: each overwrites files of the other."""
    if all(_is_installed(name) for name in _PACKAGES):
        raise MissingDependencyError(
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other; keep one: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime (or onnxruntime-gpu)"
        )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _onnxruntime() -> Any:
    require_one_onnxruntime()
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("running an ONNX file needs onnxruntime: pip install 'int8pass[onnx]'") from error
    return onnxruntime


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises where it cannot load or run a file. Raises MissingDependencyError."""
    _onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    return (
        ort.Fail,
        ort.InvalidArgument,
        ort.InvalidGraph,
        ort.InvalidProtobuf,
        ort.NotImplemented,
        ort.RuntimeException,
    )


def session(
    path: str | os.PathLike, *, optimize: bool = True, threads: int = 0, optimized: Any = None, profile: Any = None
) -> Any:
    """An onnxruntime.InferenceSession on the CPU. optimize: ORT_ENABLE_ALL, else ORT_DISABLE_ALL; threads: 0 for all.

    optimized: where to write the graph that ONNX Runtime made of it; profile: how the names of profiles begin that its
    `end_profiling` writes. Raises MissingDependencyError.
    """
    onnxruntime = _onnxruntime()
    levels = onnxruntime.GraphOptimizationLevel
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    if optimized is not None:
        settings.optimized_model_filepath = os.fspath(optimized)
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, os.fspath(profile)
    return onnxruntime.InferenceSession(os.fspath(path), settings, providers=["CPUExecutionProvider"])
