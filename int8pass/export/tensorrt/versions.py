"""The installed TensorRT, and everything in which 10 and 11 differ."""

from types import ModuleType
from typing import Any

from int8pass.errors import ConfigError, EngineError, MissingDependencyError

SUPPORTED = (10, 11)
PRECISIONS = ("file", "float16", "bfloat16")
_INSTALL = (
    "pip install 'int8pass[tensorrt]' on a machine with an NVIDIA GPU and its driver (Linux or Windows); "
    "TensorRT 10 and 11 are supported"
)


def import_tensorrt() -> ModuleType:
    """The module `tensorrt`. Raises MissingDependencyError where it or its libraries are missing or too old."""
    try:
        import tensorrt
    except ImportError as error:
        raise MissingDependencyError(
            f"engines need TensorRT, which cannot be imported ({error}): {_INSTALL}"
        ) from error
    if major(tensorrt) not in SUPPORTED:
        raise MissingDependencyError(f"TensorRT {tensorrt.__version__} is installed: {_INSTALL}")
    return tensorrt


def major(trt: ModuleType) -> int:
    """The major version."""
    return int(trt.__version__.partition(".")[0])


def create(trt: ModuleType, what: str, logger: Any) -> Any:
    """A trt.Builder or trt.Runtime. Raises EngineError where TensorRT makes none, which means no usable GPU."""
    try:
        return getattr(trt, what)(logger)
    except TypeError as error:  # what pybind11 raises for a null pointer
        raise EngineError(
            f"TensorRT {trt.__version__} is installed and finds no GPU that it can use: engines are built and run on "
            "an NVIDIA GPU, whose driver must suit TensorRT's CUDA version (nvidia-smi shows both)"
        ) from error


def create_network(trt: ModuleType, builder: Any, config: Any, precision: str) -> Any:
    """An empty network.

    precision: "file", every type as the ONNX file says (a strongly typed network: all that TensorRT 11 has); or, with
    TensorRT 10, "float16" or "bfloat16", which lets it run float32 layers in that type where that is faster.

    Raises ConfigError for what the version does not have.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {PRECISIONS}, not {precision!r}")
    if precision == "file":
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if major(trt) > 10:
        raise ConfigError(
            f"TensorRT {trt.__version__} takes every type from the file and has no precision={precision!r}: "
            f"export the model in {precision}"
        )
    config.set_flag(trt.BuilderFlag.INT8)  # which Q/DQ needs in a network that is not strongly typed
    config.set_flag(trt.BuilderFlag.FP16 if precision == "float16" else trt.BuilderFlag.BF16)
    return builder.create_network()


def inspected_type(tensor: dict[str, Any]) -> str:
    """The data type of an entry in the inspector's JSON: a field of its own in 11, a phrase with the format in 10."""
    return str(tensor.get("DataType") or tensor.get("Format/Datatype") or "")
