"""torch-tensorrt and TensorRT's real Python, on a machine without their libraries and without a GPU.

Only for a process of its own: stand-ins take the place of libraries, of what PyTorch says of a GPU, and of the build.
"""

import ctypes
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

LEFT_OUT = ("lib", "bin", "include", "_C*.so", "__pycache__")


def load(libraries, package, folder):
    """Import both. libraries: a folder of stand-ins; package: torch_tensorrt's; folder: for its copy without any."""
    for library in sorted(Path(libraries).iterdir()):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings
    copy = Path(folder) / "torch_tensorrt"
    if not copy.exists():
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    sys.path.insert(0, str(folder))
    torch.cuda.get_device_capability = lambda *device: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *device: (2**30, 2**30)
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = object
    import torch_tensorrt

    return torch_tensorrt


class EngineDouble(nn.Module):
    """In place of an engine: runs the network double on the CPU."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        names = [tensor.name for tensor in self.network.inputs]
        outputs = self.network.run(**dict(zip(names, inputs, strict=True)))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def set_output_tensors_as_unowned(self, value):
        """torch-tensorrt asks it of an engine."""


class BuilderDouble:
    """In place of trt.Builder: its network is the double."""

    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        from tests.lower.tensorrt.network_double import NetworkDouble

        return NetworkDouble()

    def create_optimization_profile(self):
        return ProfileDouble()


class ProfileDouble:
    """In place of trt.IOptimizationProfile."""

    def set_shape(self, name, smallest, typical, largest):
        assert all(a <= b <= c for a, b, c in zip(smallest, typical, largest, strict=True)), name


def engines_as_doubles():
    """Convert by torch-tensorrt's own interpreter into the network double, and build nothing. Returns the engines."""
    import tensorrt as trt
    from torch_tensorrt.dynamo import _compiler
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    from int8pass.lower.tensorrt import compile as int8pass_compile
    from int8pass.lower.tensorrt import package
    from tests.lower.tensorrt import network_double, plugin_double

    engines = []

    def convert_module(module, inputs, settings, name, engine_cache):
        interpreter = TRTInterpreter(module, inputs, compilation_settings=settings)
        interpreter._construct_trt_network_def()
        engines.append(EngineDouble(interpreter.ctx.net))
        return engines[-1]

    trt.Builder, trt.Weights = BuilderDouble, network_double.Weights
    plugin_double.take_the_place_of_a_gpu()
    _compiler.convert_module = convert_module
    int8pass_compile._require_cuda = lambda inputs: None
    package.require_gpu = lambda: None
    return engines
