"""The contestants of the Linear benchmark. Each turns a list of layers into one function over a list of inputs."""

import copy
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from int8pass.bench import bare_int8, onnx_runtime, openvino_int8, quantizers
from int8pass.bench.linear_case import Inputs, Point
from int8pass.bench.measure import Unavailable

Run = Callable[[Inputs], list]


class Stack(nn.Module):
    """Independent layers, each with its own input: a list of [M, K] to a list of [M, N]."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, xs):
        return [layer(x) for layer, x in zip(self.layers, xs, strict=True)]


def loop(layers: list[Callable[[Tensor], object]]) -> Run:
    """The same in Python."""
    return lambda xs: [layer(x) for layer, x in zip(layers, xs, strict=False)]


@dataclass(frozen=True)
class Contestant:
    """name: its name in tables, charts and --peers; about: one line for the legend.

    builder: called once a point, gives `build(layers) -> run`, which is called once a stack. inputs: see Point.inputs.
    dtype: of x and of the layers, where it is not the point's own. loops: a loop over layers in Python, which can
    run on fewer inputs. bare: the product alone, without bias.
    """

    name: str
    about: str
    builder: Callable[[Point], Callable[[list[nn.Linear]], Run]]
    inputs: str = "outliers"
    dtype: torch.dtype | None = None
    loops: bool = False
    bare: bool = False


def _compiled(prepare: Callable[[list[nn.Linear]], list[nn.Module]] = list, **compile_options) -> Callable:
    def builder(point: Point) -> Callable[[list[nn.Linear]], Run]:
        # a code object of its own: Dynamo keeps compiled code by code object and tries one entry after the other
        forward = types.FunctionType(Stack.forward.__code__.replace(co_name="forward"), Stack.forward.__globals__)
        own = type("Stack", (Stack,), {"forward": forward})
        return lambda layers: torch.compile(own(prepare(layers)), dynamic=False, **compile_options)

    return builder


def int8mixed(prepare: Callable[[list[nn.Linear]], list[nn.Module]] = list, **options) -> Callable:
    """Stacks compiled by this package's backend."""
    return _compiled(prepare, backend="int8mixed", options=options)


def _looped(prepare: Callable[[list[nn.Linear]], list] = list) -> Callable:
    return lambda point: lambda layers: loop(prepare(layers))


def _copies(quantize: Callable[[nn.Module], nn.Module]) -> Callable[[list[nn.Linear]], list[nn.Module]]:
    """Layers quantized by one of `quantizers`; the same layer several times stays one."""

    def prepare(layers: list[nn.Linear]) -> list[nn.Module]:
        distinct = {id(layer): quantize(nn.Sequential(copy.deepcopy(layer)))[0] for layer in layers}
        return [distinct[id(layer)] for layer in layers]

    return prepare


def _converted(dtype: torch.dtype) -> Callable[[list[nn.Linear]], list[nn.Module]]:
    return _copies(lambda model: model.to(dtype))


def _llama_cpp(point: Point) -> Callable:
    raise Unavailable("not available: its Python package runs whole models and has no call for one matrix")


_F32, _BF16 = torch.float32, torch.bfloat16

CONTESTANTS = (
    Contestant("int8mixed", "this package: LLM.int8(), threshold 6, six outlier columns in x", int8mixed()),
    Contestant("int8mixed-t0", "this package at threshold 0: no outlier branch", int8mixed(threshold=0.0)),
    Contestant("int8mixed-clean", "this package at threshold 6, x without outliers", int8mixed(), inputs="clean"),
    Contestant(  # on weights of its own: its columns would push those of the others from the weights' caches
        "int8mixed-moving",
        "this package, other outlier columns at each call",
        int8mixed(copy.deepcopy),
        inputs="moving",
    ),
    Contestant("bare-onednn", "int8 product alone: oneDNN, prepacked", bare_int8.onednn, loops=True, bare=True),
    Contestant("bare-fbgemm", "int8 product alone: FBGEMM, prepacked", bare_int8.fbgemm, loops=True, bare=True),
    Contestant("bare-int_mm", "int8 product alone: torch._int_mm", bare_int8.int_mm, loops=True, bare=True),
    Contestant("float32-eager", "nn.Linear in float32", _looped(_converted(_F32)), dtype=_F32, loops=True),
    Contestant("float32-inductor", "the same under torch.compile", _compiled(_converted(_F32)), dtype=_F32),
    Contestant("bfloat16-eager", "nn.Linear in bfloat16", _looped(_converted(_BF16)), dtype=_BF16, loops=True),
    Contestant("bfloat16-inductor", "the same under torch.compile", _compiled(_converted(_BF16)), dtype=_BF16),
    Contestant(
        "bitsandbytes", "Linear8bitLt(threshold=6.0), eager", _looped(_copies(quantizers.bitsandbytes)), loops=True
    ),
    Contestant(
        "torchao", "Int8DynamicActivationInt8WeightConfig, torch.compile", _compiled(_copies(quantizers.torchao))
    ),
    Contestant(
        "quantize_dynamic",
        "torch.ao.quantization.quantize_dynamic, eager",
        _looped(_copies(quantizers.quantize_dynamic)),
        loops=True,
    ),
    Contestant("onnxruntime", "ONNX Runtime, its quantize_dynamic, per channel", onnx_runtime.linear_builder),
    Contestant(
        "openvino-weights",
        "OpenVINO, int8 weights (as nncf.compress_weights writes them), its own activation rule",
        openvino_int8.weights_builder,
    ),
    Contestant(
        "openvino-static",
        "OpenVINO, int8 activations too, one calibrated scale (as nncf.quantize writes them)",
        openvino_int8.static_builder,
    ),
    Contestant("llama.cpp", "llama.cpp Q8_0", _llama_cpp),
)
