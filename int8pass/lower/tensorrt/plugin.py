"""The quick deployable plugin `int8pass::cuda_int8_linear`: the op of that name inside TensorRT's engines.

The inputs are the op's tensors, the attributes its other arguments, each a NumPy array of the schema's type. TensorRT
knows no optional inputs: without a bias there is one of zeros, and dequantized outlier columns read int8 weights, the
codes, in the place of the float weight; no cache of weight columns is kept. Attribute dtype: a trt.DataType; columns:
-1 alone for none beforehand.

Ahead of time, a plugin is one kernel without memory of its own: that does for at most 16 rows, if that is known when
the engine is built (linear_kernel.py). Other Linears are several kernels with results in between, and run just in time:
the op itself, called by TensorRT through Python. Not yet run on a GPU. Source: TensorRT's Python API, tensorrt.plugin.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorrt as trt
import tensorrt.plugin as trtp
import torch
from torch import Tensor
from torch_tensorrt import dtype as trt_dtype

from int8pass.errors import EngineError
from int8pass.kernels.cuda import fused
from int8pass.torch_private import qualified_name

NAME = qualified_name(fused.cuda_int8_linear)
_NONE_BEFOREHAND = (-1,)


def _array_of(number: type[np.generic]) -> type:
    """An annotation that TensorRT reads as numpy.typing.NDArray[number]: a class, since it asks issubclass of it.

    (From Python 3.13 on issubclass takes nothing else. Attributes that are plain numbers do not work: TensorRT would
    make numbers again of arrays of one element, which NumPy 2.4 refuses.)
    """
    return type(f"ArrayOf{number.__name__}", (), {"__origin__": np.ndarray, "__args__": (Any, np.dtype[number])})


Floats, Integers, Booleans = _array_of(np.float64), _array_of(np.int64), _array_of(np.bool_)


def register() -> None:
    """Tell TensorRT of the plugin. An engine that holds it is loaded only by a process that has done this."""
    trtp.register(NAME)(describe)
    trtp.impl(NAME)(run)
    trtp.aot_impl(NAME)(ahead_of_time)
    trtp.autotune(NAME)(tactics)


def describe(
    x: trtp.TensorDesc, w_codes: trtp.TensorDesc, w_scale: trtp.TensorDesc, bias: trtp.TensorDesc,
    weight: trtp.TensorDesc, threshold: Floats, per_token: Booleans, dtype: Integers, columns: Integers,
) -> trtp.TensorDesc:  # fmt: skip
    """y: [..., N] for x [..., K] and w_codes [N, K], of whatever sizes."""
    return trtp.from_shape_expr((*x.shape_expr[:-1], w_codes.shape_expr[0]), trt.DataType(int(dtype.item())))


def run(x, w_codes, w_scale, bias, weight, threshold, per_token, dtype, columns, outputs, stream) -> None:
    """Just in time: x, ...: trtp.Tensors; outputs: a list of one."""
    with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
        y = as_torch(outputs[0])
        rows, codes, scale, added, kept = map(as_torch, (x, w_codes, w_scale, bias, weight))
        known = None if tuple(columns) == _NONE_BEFOREHAND else columns.tolist()
        floating = kept if kept.is_floating_point() else None
        rule = (threshold.item(), bool(per_token.item()), torch_dtype(trt.DataType(int(dtype.item()))))
        y.copy_(fused.cuda_int8_linear(rows, codes, scale, added, floating, None, *rule, known))


def ahead_of_time(
    x, w_codes, w_scale, bias, weight, threshold, per_token, dtype, columns, outputs, tactic
) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
    """Name and PTX of the kernel, its launch, and its integers: the number of rows."""
    from int8pass.lower.tensorrt.linear_kernel import compile_linear

    problem = _problem(x, w_codes, w_scale, bias, weight, threshold, per_token, outputs[0])
    tile = problem.tiles[max(tactic, 1) - 1]  # tactics count from 1; 0 is TensorRT's word for no choice
    kernel = compile_linear(problem, tile)
    launch = trtp.KernelLaunchParams()
    launch.grid_x = -(-problem.outputs // tile.outputs)
    launch.block_x, launch.shared_mem = kernel.threads, kernel.shared_memory
    rows = functools.reduce(operator.mul, x.shape_expr[:-1], trtp.ShapeExpr(1))
    return kernel.name, kernel.ptx, launch, trtp.SymIntExprs.from_tuple((trtp.SymInt32(rows),))


def tactics(
    x, w_codes, w_scale, bias, weight, threshold, per_token, columns, outputs
) -> list[trtp.AutoTuneCombination]:
    """The types that the network has, in linear layouts. Tactics: the tiles of the one kernel, timed by TensorRT."""
    types = ",".join(tensor.dtype.name for tensor in (x, w_codes, w_scale, bias, weight, outputs[0]))
    choices = None
    if is_one_kernel(_largest(x.shape), columns):
        problem = _problem(x, w_codes, w_scale, bias, weight, threshold, per_token, outputs[0])
        choices = range(1, len(problem.tiles) + 1)
    return [trtp.AutoTuneCombination(types, "LINEAR", choices)]


def add_layer(
    network: trt.INetworkDefinition, tensors: Sequence[trt.ITensor], sizes: Sequence[int | None], threshold: float,
    per_token: bool, dtype: torch.dtype, columns: Sequence[int] | None,
) -> trt.IPluginV3Layer:  # fmt: skip
    """Add the plugin over x, w_codes, w_scale, bias and weight. Raises EngineError where TensorRT does not take it.

    sizes: the largest sizes of x, None for one without a bound.
    """
    namespace, name = NAME.split("::")
    known = np.array(_NONE_BEFOREHAND if columns is None else columns, dtype=np.int64)
    _require_right_arrays(known)
    attributes = {
        "threshold": np.array([threshold], dtype=np.float64),
        "per_token": np.array([per_token], dtype=np.bool_),
        "dtype": np.array([int(trt_dtype._from(dtype).to(trt.DataType))], dtype=np.int64),
        "columns": known,
    }
    plugin = getattr(getattr(trtp.op, namespace), name)(*tensors, **attributes)
    layer = network.add_plugin(plugin, aot=is_one_kernel(sizes, known))
    if layer is None:
        raise EngineError(f"TensorRT took no plugin {NAME}: its log says why")
    return layer


def _require_right_arrays(columns: np.ndarray) -> None:
    """Raise EngineError where TensorRT would read other columns: 10.15 repeats the first one, with NumPy 2.4."""
    if not np.array_equal(trt.PluginField("columns", columns, trt.PluginFieldType.INT64).data, columns):
        raise EngineError(
            f"TensorRT {trt.__version__} reads the columns of a profile wrongly with NumPy {np.__version__}: take "
            "torch-tensorrt 2.12 or newer, or leave out tensorrt={'linear_form': 'plugin'}"
        )


def is_one_kernel(sizes: Sequence[int | None], columns: np.ndarray) -> bool:
    """Whether one kernel computes the Linear of an x of at most these sizes: 16 rows, columns found in the call."""
    known = None not in sizes and tuple(columns) == _NONE_BEFOREHAND
    return known and 0 < math.prod(sizes[:-1]) <= fused.FEW_ROWS


def _largest(shape: trtp.Shape) -> tuple[int, ...]:
    return tuple(shape.max) if shape.is_dynamic else tuple(shape)


def as_torch(tensor: trtp.Tensor) -> Tensor:
    """The memory of a plugin's tensor. bfloat16, which the interface that they share lacks, goes as int16."""
    return torch.as_tensor(_CudaArray(tensor), device="cuda").view(torch_dtype(tensor.dtype))


class _CudaArray:
    """https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html"""

    def __init__(self, tensor: trtp.Tensor) -> None:
        size = torch_dtype(tensor.dtype).itemsize
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape), "strides": tuple(size * stride for stride in tensor.strides),
            "typestr": f"<i{size}" if size > 1 else "|i1", "data": (tensor.data_ptr, False), "version": 3,
        }  # fmt: skip


def torch_dtype(dtype: trt.DataType) -> torch.dtype:
    return trt_dtype._from(dtype).to(torch.dtype)


def _problem(x, w_codes, w_scale, bias, weight, threshold, per_token, y):
    from int8pass.lower.tensorrt.linear_kernel import Problem

    outputs, features = tuple(w_codes.shape)
    bound = float(threshold.item())
    outliers = fused.outlier_kind(bound, bool(per_token.item()), None)
    dtypes = tuple(torch_dtype(tensor.dtype) for tensor in (x, w_codes, w_scale, bias, weight, y))
    rows, capability = math.prod(_largest(x.shape)[:-1]), torch.cuda.get_device_capability()
    return Problem(rows, features, outputs, outliers, bound, dtypes, capability)
