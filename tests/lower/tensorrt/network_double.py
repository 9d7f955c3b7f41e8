"""A double of TensorRT's network: it records layers, holds them to TensorRT's documented rules, and computes them.

What it takes is what the real INetworkDefinition takes: every method exists there, and every argument is of the kind
that the bindings declare. Its tensors are instances of the real ITensor, with nothing behind them. It says nothing of
what an engine does.
"""

import ctypes
import inspect
import re
from collections.abc import Callable

import tensorrt as trt
import torch

from tests.lower.tensorrt.plugin_double import add_plugin  # noqa: F401 - one of the methods below

DTYPES = {
    trt.float32: torch.float32,
    trt.float16: torch.float16,
    trt.bfloat16: torch.bfloat16,
    trt.int8: torch.int8,
    trt.int32: torch.int32,
    trt.int64: torch.int64,
    trt.bool: torch.bool,
}
BINARY = {
    trt.ElementWiseOperation.SUM: torch.add,
    trt.ElementWiseOperation.PROD: torch.mul,
    trt.ElementWiseOperation.DIV: torch.div,
    trt.ElementWiseOperation.LESS: torch.lt,
}
KINDS = {
    "typing.SupportsInt": int,
    "typing.SupportsFloat": float,
    "bool": bool,
    "str": str,
    "Dims": (trt.Dims, tuple, list),
    "Callable": Callable,
    "function": Callable,  # what TensorRT 10.15 writes
}


class Weights(trt.Weights):
    """The real ones, which do not tell their address: arguments: type, address, count."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.arguments = arguments


class TensorDouble(trt.ITensor):
    """name, shape (-1: dynamic), dtype; layer: what makes it, None for an input of the network."""

    name = shape = dtype = layer = None


def tensor_double(shape, dtype, layer=None, name=""):
    tensor = trt.ITensor.__new__(TensorDouble)
    tensor.shape, tensor.dtype, tensor.layer, tensor.name = tuple(shape), dtype, layer, name
    return tensor


class LayerDouble:
    """kind: the method that added it; inputs: tensors; axis, name: as set afterwards."""

    def __init__(self, kind, inputs, compute, output):
        self.kind, self.inputs, self.compute = kind, inputs, compute
        self.axis, self.name = None, ""
        self.output = tensor_double(*output, layer=self)

    def get_output(self, index):
        assert index == 0
        return self.output


class NetworkDouble:
    """layers: in order of their addition; values: of the last run, by name of the layer."""

    def __init__(self):
        self.layers, self.inputs, self.outputs = [], [], []

    def __getattr__(self, name):
        if not name.startswith("add_"):
            raise AttributeError(f"the double has no {name}")
        rule = globals()[name]
        declared = declaration(getattr(trt.INetworkDefinition, name), list(inspect.signature(rule).parameters))

        def add(*args, **kwargs):
            bound = inspect.signature(rule).bind(*args, **kwargs)
            for argument, kind in declared:
                value = bound.arguments[argument]
                assert isinstance(value, kind), f"{name}: {argument} is {type(value).__name__}, not {kind}"
            compute, output, *given = rule(*bound.args)
            inputs = given or [value for value in bound.arguments.values() if isinstance(value, trt.ITensor)]
            layer = LayerDouble(name, inputs, compute, output)
            self.layers.append(layer)
            return layer

        return add

    def add_input(self, name, dtype, shape):
        self.inputs.append(tensor_double(shape, dtype, name=name))
        return self.inputs[-1]

    def mark_output(self, tensor):
        self.outputs.append(tensor)

    def run(self, **values):
        """The outputs for torch tensors as inputs, by name. Checks what layers may only show once all is added."""
        for layer in self.layers:
            check_quantization(layer)
            assert layer.name, f"{layer.kind} has no name"
        names = [layer.name for layer in self.layers]
        assert len(set(names)) == len(names), "layers share a name"
        known = {id(tensor): values[tensor.name] for tensor in self.inputs}
        for layer in self.layers:
            result = layer.compute(layer, *(known[id(tensor)] for tensor in layer.inputs))
            assert result.dtype == DTYPES[layer.output.dtype], layer.kind
            declared = zip(layer.output.shape, result.shape, strict=True)
            assert all(size in (-1, found) for size, found in declared), (layer.kind, layer.output.shape, result.shape)
            known[id(layer.output)] = result
        self.values = {layer.name: known[id(layer.output)] for layer in self.layers}
        return [known[id(tensor)] for tensor in self.outputs]


def declaration(method, names):
    """The arguments that the bindings declare, in the overload that has these names: pairs of name and class."""
    overloads = re.findall(r"^(?:\d+\. )?\w+\(self: [\w.]+, (.*)\) -> ", method.__doc__.strip(), re.MULTILINE)
    declared = [[part.split(": ") for part in text.split(", ")] for text in overloads]
    (pairs,) = [pairs for pairs in declared if [name for name, _ in pairs] == names]
    return [(name, KINDS.get(kind.rpartition(".")[2] if kind not in KINDS else kind) or binding(kind))
            for name, kind in pairs]  # fmt: skip


def binding(kind):
    return getattr(trt, kind.rpartition(".")[2])


def broadcast(*shapes):
    """Equal ranks, and in each dimension equal sizes or 1."""
    assert len({len(shape) for shape in shapes}) == 1, f"ranks differ: {shapes}"
    result = []
    for sizes in zip(*shapes, strict=True):
        wide = {size for size in sizes if size != 1}
        assert len(wide - {-1}) <= 1, f"sizes differ: {shapes}"
        result.append(max(wide - {-1}, default=-1 if wide else 1))
    return result


# --- one function a method: (compute, (shape, dtype))


def add_constant(shape, weights):
    if weights.dtype == trt.bfloat16:  # which NumPy has not
        _, address, count = weights.arguments
        memory = bytearray((ctypes.c_char * (2 * count)).from_address(address))
        value = torch.frombuffer(memory, dtype=torch.bfloat16).reshape(tuple(shape))
    else:
        value = torch.from_numpy(weights.numpy().copy()).reshape(tuple(shape))
    return lambda layer: value, (shape, weights.dtype)


def add_cast(input, to_type):
    return lambda layer, x: x.to(DTYPES[to_type]), (input.shape, to_type)


def add_unary(input, op):
    assert op is trt.UnaryOperation.ABS or op == trt.UnaryOperation.ABS
    return lambda layer, x: x.abs(), (input.shape, input.dtype)


def add_elementwise(input1, input2, op):
    assert input1.dtype == input2.dtype, "a strongly typed network takes equal types"
    dtype = trt.bool if op == trt.ElementWiseOperation.LESS else input1.dtype
    return lambda layer, a, b: BINARY[op](a, b), (broadcast(input1.shape, input2.shape), dtype)


def add_select(condition, then_input, else_input):
    assert condition.dtype == trt.bool and then_input.dtype == else_input.dtype
    shape = broadcast(condition.shape, then_input.shape, else_input.shape)
    return lambda layer, c, a, b: torch.where(c, a, b), (shape, then_input.dtype)


def add_reduce(input, op, axes, keep_dims):
    """A maximum hides NaN, as TensorRT may."""
    (axis,) = [axis for axis in range(len(input.shape)) if axes >> axis & 1]
    assert axes == 1 << axis

    def compute(layer, x):
        if op == trt.ReduceOperation.MAX:
            return x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(axis, keepdim=keep_dims)
        assert op == trt.ReduceOperation.SUM
        return x.sum(axis, keepdim=keep_dims)

    shape = [1 if at == axis else size for at, size in enumerate(input.shape) if keep_dims or at != axis]
    return compute, (shape, input.dtype)


def add_unsqueeze(input, axes):
    (axis,) = constant_of(axes).tolist()
    shape = list(input.shape)
    shape.insert(axis, 1)
    return lambda layer, x, _: x.unsqueeze(axis), (shape, input.dtype)


def add_gather(input, indices, axis):
    shape = (*input.shape[:axis], *indices.shape, *input.shape[axis + 1 :])
    assert len(indices.shape) == 1 and indices.dtype in (trt.int32, trt.int64)
    return lambda layer, x, at: x.index_select(axis, at), (shape, input.dtype)


def add_matrix_multiply(input0, op0, input1, op1):
    assert input0.dtype == input1.dtype and op1 == trt.MatrixOperation.NONE
    if op0 == trt.MatrixOperation.VECTOR:
        assert (len(input0.shape), len(input1.shape)) == (1, 2)
        shape = input1.shape[1:]
    else:
        assert op0 == trt.MatrixOperation.NONE and len(input0.shape) >= 2
        shape = (*broadcast(input0.shape[:-2], input1.shape[:-2]), input0.shape[-2], input1.shape[-1])
    quantized = [tensor.layer is not None and tensor.layer.kind == "add_dequantize" for tensor in (input0, input1)]
    assert quantized[0] == quantized[1], "where one input is dequantized, so is the other"
    return lambda layer, a, b: a @ b, (shape, input0.dtype)


def add_quantize(input, scale, output_type):
    assert input.dtype == scale.dtype == trt.float32 and output_type == trt.int8

    def compute(layer, x, s):
        return (x / s).round().clamp(-128, 127).nan_to_num(0.0).to(torch.int8)

    return compute, (input.shape, output_type)


def add_dequantize(input, scale, output_type):
    assert input.dtype == trt.int8 and scale.dtype == output_type == trt.float32

    def compute(layer, codes, s):
        shape = [1] * codes.dim()
        if layer.axis is not None:
            shape[layer.axis] = -1
        return codes.float() * s.reshape(shape)

    return compute, (input.shape, output_type)


def check_quantization(layer):
    """Scales are constants above zero: one for activations, one a column for weights, which are constants too."""
    if layer.kind not in ("add_quantize", "add_dequantize"):
        return
    data, scale = layer.inputs
    values = constant_of(scale)
    assert (values > 0).all() and values.isfinite().all()
    assert data.dtype != trt.int8 or data.layer.kind in ("add_quantize", "add_constant")
    if data.layer is not None and data.layer.kind == "add_constant":
        assert layer.axis == len(data.shape) - 1 and values.numel() == data.shape[layer.axis]
    else:
        assert layer.axis is None and values.numel() == 1


def constant_of(tensor):
    assert tensor.layer.kind == "add_constant"
    return tensor.layer.compute(tensor.layer)
