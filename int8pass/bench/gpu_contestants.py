"""Who takes part on a GPU. Each builds one call over a list of Linears, or a stack of blocks, and its inputs."""

import copy
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import int8pass
from int8pass.bench import quantizers
from int8pass.bench.measure import Unavailable
from int8pass.torch_private import int8_product
from int8pass.weights import quantize_weight

Call = Callable[..., Any]
FLOAT_EAGER = "float-eager"
_SHORTEST_INT_MM = 32  # rows: torch._int_mm on CUDA takes no fewer than 17


class Layers(nn.Module):
    """Independent Linears, each with its own input: a list of [M, K] to a list of [M, N]."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, xs, strict=True)]


@dataclass(frozen=True)
class Contestant:
    """name and about: for tables; build: model -> call; weight_bytes: of an element as it is read; outliers: how many
    outlier columns x has; moving: whether they are others at each call; int8: whose peak it is measured by; captured:
    whether it is replayed as a CUDA graph, or called from Python, where it waits for the host."""

    name: str
    about: str
    build: Callable[[nn.Module], Call]
    weight_bytes: int = 1
    outliers: int = 8
    moving: bool = False
    int8: bool = True
    captured: bool = True


def compiled(**options: Any) -> Callable[[nn.Module], Call]:
    """torch.compile, of a code object of its own: Dynamo tries the graphs of one code object in turn."""

    def build(model: nn.Module) -> Call:
        plain = type(model).forward
        forward = types.FunctionType(
            plain.__code__.replace(co_name="forward"), plain.__globals__, closure=plain.__closure__
        )
        model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
        return torch.compile(model, dynamic=False, **options)

    return build


def int8mixed(**options: Any) -> Callable[[nn.Module], Call]:
    """By the function itself: the backend's name is an entry point, which a checkout that is not installed lacks."""
    return compiled(backend=int8pass.int8mixed, options=options)


def _quantized(quantize: Callable[[nn.Module], nn.Module], finish: Callable[[nn.Module], Call] = lambda model: model):
    return lambda model: finish(quantize(copy.deepcopy(model)))


def _int_mm(model: nn.Module) -> Call:
    """The int8 product alone, int32 results, on inputs that were quantized before."""
    if not isinstance(model, Layers):
        raise Unavailable("the product alone is no model")
    weights = [quantize_weight(layer.weight).codes.t() for layer in model.layers]
    codes: dict[int, Tensor] = {}

    def call(xs: list[Tensor]) -> list[Tensor]:
        for x in xs:
            if id(x) not in codes:
                rows = torch.zeros(max(_SHORTEST_INT_MM, x.shape[0]), x.shape[1], dtype=torch.int8, device=x.device)
                rows[: x.shape[0]] = quantize_weight(x).codes
                codes[id(x)] = rows
        return [int8_product(codes[id(x)], weight) for x, weight in zip(xs, weights, strict=True)]

    return call


CONTESTANTS = (
    Contestant("int8mixed", "this package: LLM.int8(), threshold 6, eight outlier columns in x", int8mixed()),
    Contestant("int8mixed-64", "the same, 64 outlier columns", int8mixed(), outliers=64),
    Contestant(
        "int8mixed-moving",
        "the same as int8mixed, other columns at each call: none is in the cache",
        int8mixed(),
        moving=True,
    ),
    Contestant("int8mixed-token", 'the same as int8mixed, outliers="token"', int8mixed(outliers="token")),
    Contestant(
        "int8mixed-dequantized", "the same, outlier weights from int8", int8mixed(outlier_weights="dequantized")
    ),
    Contestant("int8mixed-t0", "threshold 0: no outlier branch", int8mixed(threshold=0.0)),
    Contestant("bare-int_mm", "torch._int_mm: the int8 product alone, int32 out, x quantized before", _int_mm),
    Contestant(FLOAT_EAGER, "nn.Linear by cuBLAS", lambda model: model, weight_bytes=2, int8=False),
    Contestant("float-inductor", "the same under torch.compile", compiled(), weight_bytes=2, int8=False),
    Contestant(
        "bitsandbytes", "Linear8bitLt(threshold=6.0), from Python", _quantized(quantizers.bitsandbytes), captured=False
    ),
    Contestant(
        "torchao", "Int8DynamicActivationInt8WeightConfig, torch.compile", _quantized(quantizers.torchao, compiled())
    ),
)
