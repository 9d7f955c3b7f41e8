"""`load_engine`: run a TensorRT engine on PyTorch's CUDA tensors."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from int8pass.errors import EngineError
from int8pass.export.tensorrt.layers import EngineReport
from int8pass.export.tensorrt.progress import Messages, trt_logger
from int8pass.export.tensorrt.shapes import DYNAMIC, Shape, ShapeRange
from int8pass.export.tensorrt.versions import create, import_tensorrt

# names of trt.DataType -> PyTorch's
DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class EngineTensor:
    """An input or output. shape: -1 where dynamic. range: the shapes that an input may have."""

    name: str
    dtype: torch.dtype
    shape: Shape
    range: ShapeRange | None = None


def load_engine(path: str | os.PathLike) -> "Engine":
    """Load an engine onto the current CUDA device (not yet run on a GPU: see README.md in this folder).

    Raises MissingDependencyError without TensorRT; EngineError without a GPU, where the file is missing or is no engine
    of this TensorRT version and GPU, or where it has inputs that are no CUDA tensors.
    """
    trt = import_tensorrt()
    if not torch.cuda.is_available():
        raise EngineError(
            "an engine runs on an NVIDIA GPU and torch.cuda.is_available() is False: PyTorch must be a CUDA build "
            "(https://pytorch.org/get-started/locally), on a machine with a GPU and its driver"
        )
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"there is no file {str(path)!r}")
    messages = Messages()
    runtime = create(trt, "Runtime", trt_logger(trt, messages))
    plan = path.read_bytes()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{str(path)!r} is no engine that TensorRT {trt.__version__} runs on this GPU; engines are built for one "
            f"version and one kind of GPU:\n{messages}"
        )
    return Engine(trt, runtime, engine, len(plan))


class Engine:
    """A loaded engine: call it with tensors, by position or by name, and get the outputs by name.

    inputs, outputs: EngineTensor of each, in order. It runs on the current CUDA stream without waiting for it, as
    PyTorch's own operators do. Calls take turns: load the file again for calls at the same time on another stream.
    """

    def __init__(self, trt: ModuleType, runtime: Any, engine: Any, size: int):
        self._trt, self._runtime, self._engine, self._size = trt, runtime, engine, size
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("TensorRT has no memory for running this engine")
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._lock = threading.Lock()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        tensors = [self._describe(name) for name in names]
        self.inputs = tuple(each for each in tensors if self._is_input(each.name))
        self.outputs = tuple(each for each in tensors if not self._is_input(each.name))

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """Run on CUDA tensors of the right dtype and shape. Raises EngineError that names the input which is wrong."""
        given = bind(self.inputs, args, kwargs)
        for each in self.inputs:
            check_tensor(each, given[each.name], self._device)
        contiguous = {name: tensor.contiguous() for name, tensor in given.items()}
        with self._lock, torch.cuda.device(self._device):
            return self._run(contiguous)

    def report(self) -> EngineReport:
        """The layers, and the types that they run in."""
        inspector = self._engine.create_engine_inspector()
        information = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return EngineReport.from_inspector(information, self._trt.__version__, self._size)

    def _is_input(self, name: str) -> bool:
        return self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT

    def _describe(self, name: str) -> EngineTensor:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in DTYPES:
            raise EngineError(f"{name!r} is {dtype}, which is no dtype of PyTorch tensors here")
        if self._engine.is_shape_inference_io(name):
            raise EngineError(f"{name!r} is a shape tensor, which lives in host memory; export the model without it")
        shape = tuple(self._engine.get_tensor_shape(name))
        if not self._is_input(name) or DYNAMIC not in shape:
            return EngineTensor(name, DTYPES[dtype], shape)
        ranges = ShapeRange(*(tuple(each) for each in self._engine.get_tensor_profile_shape(name, 0)))
        return EngineTensor(name, DTYPES[dtype], shape, ranges)

    def _run(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in given.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        results = {}
        for each in self.outputs:
            shape = tuple(self._context.get_tensor_shape(each.name))
            if DYNAMIC in shape:
                raise EngineError(f"the shape of output {each.name!r} depends on the data, which is not supported")
            results[each.name] = torch.empty(shape, dtype=each.dtype, device=self._device)
            self._context.set_tensor_address(each.name, results[each.name].data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError("TensorRT could not start the engine; the log names the reason")
        return results


def bind(inputs: tuple[EngineTensor, ...], args: tuple, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each input's tensor by name. Raises EngineError for inputs that are missing, unknown or given twice."""
    names = [each.name for each in inputs]
    if len(args) > len(names):
        raise EngineError(f"{len(args)} tensors for the inputs {', '.join(names)}")
    given = dict(zip(names, args, strict=False))
    twice, unknown = given.keys() & kwargs.keys(), kwargs.keys() - set(names)
    given.update(kwargs)
    for what, wrong in (("given twice", twice), ("unknown", unknown), ("missing", set(names) - given.keys())):
        if wrong:
            raise EngineError(f"{what}: {', '.join(sorted(wrong))}; the inputs are {', '.join(names)}")
    return given


def check_tensor(expected: EngineTensor, tensor: Tensor, device: torch.device) -> None:
    """Raise EngineError where a tensor is not what an input takes: dtype, device, number of dimensions, sizes."""
    name = expected.name
    if not isinstance(tensor, Tensor):
        raise EngineError(f"input {name!r} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype != expected.dtype:
        raise EngineError(
            f"input {name!r} is {tensor.dtype}; the engine takes {expected.dtype}: x.to({expected.dtype})"
        )
    if tensor.device != device:
        raise EngineError(f"input {name!r} is on {tensor.device}; the engine runs on {device}: x.to({str(device)!r})")
    shape, allowed = tuple(tensor.shape), expected.range or ShapeRange(*(expected.shape,) * 3)
    fits = len(shape) == len(expected.shape) and all(
        small <= size <= large for small, size, large in zip(allowed.smallest, shape, allowed.largest, strict=True)
    )
    if not fits:
        takes = f"{allowed.smallest} to {allowed.largest}" if expected.range else f"{expected.shape}"
        raise EngineError(f"input {name!r} has shape {shape}; the engine takes {takes}")
