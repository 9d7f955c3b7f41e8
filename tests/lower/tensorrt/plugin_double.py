"""TensorRT's side of a quick deployable plugin: what the library asks of the real Python template, asked here.

The plugin registry, expressions of sizes, and memory are doubles; `tensorrt.plugin` and the classes of its bindings are
real. Just-in-time plugins run on CPU tensors (in Triton's interpreter), ahead-of-time ones are given by their kernel.
"""

import contextlib
import ctypes
import math

import numpy as np
import tensorrt as trt
import torch

MOST = 16  # what the builder is told that a size which is not known may be


class RegistryDouble:
    """In place of trt.get_plugin_registry()."""

    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        assert isinstance(creator, trt.IPluginCreatorV3Quick)
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name, version, namespace):
        return self.creators[name, version, namespace]


def take_the_place_of_a_gpu():
    """A plugin registry, CUDA arrays in the CPU's memory, streams that are none."""
    from tensorrt.plugin import _tensor

    registry, as_tensor = RegistryDouble(), torch.as_tensor
    trt.get_plugin_registry = lambda: registry
    # The real ones hold what is behind a size, which is nothing here.
    trt.DimsExprs, _tensor.SymExprImpl = lambda length: [None] * length, Integer
    torch.cuda.stream = torch.cuda.ExternalStream = lambda stream: contextlib.nullcontext()
    torch.as_tensor = lambda data, **rest: (
        on_the_cpu(data.__cuda_array_interface__)
        if hasattr(data, "__cuda_array_interface__") and rest == {"device": "cuda"}
        else as_tensor(data, **rest)
    )


def on_the_cpu(array):
    """The tensor that a CUDA array interface describes."""
    kind = np.dtype(array["typestr"])
    pointer, read_only = array["data"]
    assert not read_only and array["version"] == 3
    assert array["strides"] == contiguous(array["shape"], kind.itemsize)
    memory = (ctypes.c_char * (math.prod(array["shape"]) * kind.itemsize)).from_address(pointer)
    return torch.from_numpy(np.frombuffer(memory, kind).reshape(array["shape"]))


def contiguous(shape, unit=1):
    return tuple(unit * math.prod(shape[place + 1 :]) for place in range(len(shape)))


class Size(trt.IDimensionExpr):
    """A size: a number, or text."""

    value = None

    def is_constant(self):
        return isinstance(self.value, int)

    def get_constant_value(self):
        return self.value


def size(value):
    expression = trt.IDimensionExpr.__new__(Size)
    expression.value = value
    return expression


class Integer:
    """In place of trt.ISymExpr."""

    def __init__(self, expression):
        assert isinstance(expression._expr, trt.IDimensionExpr)
        self.value = expression._expr.value


class SizesDouble:
    """In place of trt.IExprBuilder."""

    def constant(self, value):
        return size(value)

    def operation(self, operation, first, second):
        if operation == trt.DimensionOperation.SUM:
            assert second.value == 0  # how the template copies a size
            return first
        assert operation == trt.DimensionOperation.PROD
        numbers = isinstance(first.value, int) and isinstance(second.value, int)
        return size(first.value * second.value if numbers else f"{first.value}*{second.value}")


def description(shape, dtype, most=None):
    """Of a tensor, for the builder: a trt.DynamicPluginTensorDesc. most: what a size that is not known may be."""
    tensor = trt.PluginTensorDesc()
    tensor.dims, tensor.type, tensor.format = trt.Dims(shape), dtype, trt.TensorFormat.LINEAR
    dynamic = trt.DynamicPluginTensorDesc()
    dynamic.desc = tensor
    dynamic.max = trt.Dims([most if length == -1 else length for length in shape])
    return dynamic


def add_plugin(func, aot):
    """The method of the network double: builds the plugin as TensorRT does. `layer.compute.__self__` is the result."""
    requests = trt.QuickPluginCreationRequest
    tensors, shape_inputs, plugin = func(requests.STRICT_AOT if aot else requests.STRICT_JIT)
    assert not shape_inputs and isinstance(plugin, trt.IPluginV3)
    built = BuiltPlugin(plugin, tensors, aot)
    return built.compute, built.output, *tensors


class BuiltPlugin:
    """A plugin after the steps of a build. tactics: what it offers; aot: ahead of time."""

    def __init__(self, plugin, tensors, aot):
        self.plugin, self.aot = plugin, aot
        types = [tensor.dtype for tensor in tensors]
        (dtype,) = plugin.get_output_data_types(types, [len(tensor.shape) for tensor in tensors])
        names = iter("abcdefgh")
        shapes = [[size(next(names) if length == -1 else length) for length in tensor.shape] for tensor in tensors]
        (found,) = plugin.get_output_shapes(shapes, [], SizesDouble())
        self.sizes = [each.value for each in found]
        self.output = ([each if isinstance(each, int) else -1 for each in self.sizes], dtype)
        described = [*((tuple(tensor.shape), tensor.dtype) for tensor in tensors), self.output]
        self.described = [description(tuple(shape), dtype, MOST) for shape, dtype in described]
        offered = plugin.get_supported_format_combinations(self.described, len(tensors))
        assert [each.type for each in offered] == [dtype for _, dtype in described]
        assert {each.format for each in offered} == {trt.TensorFormat.LINEAR}
        plugin.configure_plugin(self.described[:-1], self.described[-1:])
        self.tactics = plugin.get_valid_tactics()

    def loaded(self):
        """The just-in-time plugin as it is in an engine that was saved and loaded: made anew of what it serialized."""
        name, namespace = self.plugin.plugin_name, self.plugin.plugin_namespace
        creator = trt.get_plugin_registry().get_creator(name, self.plugin.plugin_version, namespace)
        fields = self.plugin.get_fields_to_serialize()
        return creator.create_plugin(name, namespace, fields, trt.TensorRTPhase.RUNTIME)

    def compute(self, layer, *tensors):
        """What TensorRT does with a just-in-time plugin when an engine runs."""
        assert not self.aot, "a kernel compiled ahead of time needs a GPU"
        shape = (*tensors[0].shape[:-1], tensors[1].shape[0])
        y = torch.empty(shape, dtype=torch_dtype(self.output[1]))
        inputs = [tensor.contiguous() for tensor in tensors]
        descriptions = [description(tuple(each.shape), trt_dtype(each)).desc for each in (*inputs, y)]
        self.loaded().enqueue(
            descriptions[:-1], descriptions[-1:], [each.data_ptr() for each in inputs], [y.data_ptr()],
            [contiguous(each.shape) for each in inputs], [contiguous(y.shape)], 0,
        )  # fmt: skip
        return y

    def launch(self, tactic):
        """What TensorRT is told of an ahead-of-time plugin: name, PTX, launch parameters and integers, as numbers."""
        self.plugin.set_tactic(tactic)
        parameters, integers = Launch(), Integers()
        self.plugin.get_launch_params(
            None, self.described, len(self.described) - 1, parameters, integers, SizesDouble()
        )
        assert len(integers) == integers.nbSymExprs
        plain = [desc.desc for desc in self.described]
        name, ptx = self.plugin.get_kernel(plain[:-1], plain[-1:])
        launch = {key: integer.value for key, integer in vars(parameters).items()}
        return name, ptx.decode(), launch, [integers[place].value for place in range(len(integers))]


class Launch:
    """In place of TensorRT's launch parameters."""


class Integers(dict):
    """In place of trt.ISymExprs."""

    nbSymExprs = 0


def torch_dtype(dtype):
    from tests.lower.tensorrt.network_double import DTYPES

    return DTYPES[dtype]


def trt_dtype(tensor):
    from tests.lower.tensorrt.network_double import DTYPES

    return next(key for key, value in DTYPES.items() if value == tensor.dtype)
