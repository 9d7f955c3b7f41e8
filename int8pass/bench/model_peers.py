"""The contestants of the model benchmark: what each does to a copy of a float32 model, and what runs the result."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from int8pass.bench import exported_models, llama_cpp_q8, quantizers
from int8pass.bench.decoders import LENGTH, NEW_TOKENS, Decoder, TorchDecoder, without_head
from int8pass.bench.measure import Unavailable

INT8MIXED = {"backend": "int8mixed"}


def _unchanged(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class ModelContestant:
    """name, about: as in linear_peers.Contestant.

    change: quantizes or casts a copy of the float32 model in place and returns it; copy_weights: whether it has to be a
    copy of the weights too. compile: arguments of torch.compile; None: eager. runtime: an engine of its own, instead.
    """

    name: str
    about: str
    change: Callable[[nn.Module], nn.Module] = _unchanged
    compile: Mapping[str, Any] | None = None
    copy_weights: bool = False
    runtime: "Runtime | None" = None

    def decoder(self, model: nn.Module, threads: int, batch: int) -> Decoder:
        """`model` prepared for batches of up to `batch` prompts."""
        if self.runtime is not None:
            return self.runtime.decoder(model, threads, batch)
        own = self.change(_copy(model, self.copy_weights))
        if self.compile is not None:
            own.forward = torch.compile(own.forward, dynamic=False, **self.compile)
        return TorchDecoder(own)

    def encoder(self, model: nn.Module, threads: int, tokens: Mapping) -> Callable:
        """`model` prepared to be called as model(**tokens).last_hidden_state, for any batch and length."""
        if self.runtime is not None:
            return self.runtime.encoder(model, threads, tokens)
        own = self.change(_copy(model, self.copy_weights))
        return own if self.compile is None else torch.compile(own, dynamic=True, **self.compile)


@dataclass(frozen=True)
class Runtime:
    """An engine outside PyTorch. Each function raises Unavailable where it cannot do what is asked."""

    decoder: Callable[[nn.Module, int, int], Decoder]
    encoder: Callable[[nn.Module, int, Mapping], Callable]


def _copy(model: nn.Module, copy_weights: bool) -> nn.Module:
    """A copy of the modules, which shares the weights where that is enough."""
    tensors = () if copy_weights else (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _exported(kind: str) -> Runtime:
    return Runtime(
        lambda model, threads, batch: exported_models.Decoder(kind, model, threads),
        lambda model, threads, tokens: exported_models.encoder(kind, model, threads, tokens),
    )


def _llama_cpp_encoder(model: nn.Module, threads: int, tokens: Mapping) -> Callable:
    raise Unavailable("not available: only the decoders are written to GGUF here")


_LLAMA_CPP = Runtime(
    lambda model, threads, batch: llama_cpp_q8.LlamaDecoder(model, threads, batch, LENGTH + NEW_TOKENS),
    _llama_cpp_encoder,
)
_HEAD = {**INT8MIXED, "options": {"skip_modules_default": False}}
_FREE = {**INT8MIXED, "options": {"free_weights": True}}
_BF16 = {"change": nn.Module.bfloat16, "copy_weights": True}


def _quantized(quantize: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    return {"change": without_head(quantize), "copy_weights": True}


CONTESTANTS = (
    ModelContestant("float32-eager", "the model as it is"),
    ModelContestant("float32-inductor", "torch.compile", compile={}),
    ModelContestant("bfloat16-eager", "the model in bfloat16", **_BF16),
    ModelContestant("bfloat16-inductor", "the model in bfloat16, torch.compile", compile={}, **_BF16),
    ModelContestant("int8mixed", "this package on the float32 model", compile=INT8MIXED),
    ModelContestant("int8mixed-free", "this package, free_weights=True", compile=_FREE, copy_weights=True),
    ModelContestant("int8mixed-head", "this package, a decoder's head in int8 too", compile=_HEAD),
    ModelContestant("int8mixed-bfloat16", "this package on the bfloat16 model", compile=INT8MIXED, **_BF16),
    ModelContestant("bitsandbytes", "Linear8bitLt(threshold=6.0), eager", **_quantized(quantizers.bitsandbytes)),
    ModelContestant(
        "torchao",
        "Int8DynamicActivationInt8WeightConfig, torch.compile",
        compile={},
        **_quantized(quantizers.torchao),
    ),
    ModelContestant(
        "quantize_dynamic",
        "torch.ao.quantization.quantize_dynamic, eager",
        **_quantized(quantizers.quantize_dynamic),
    ),
    ModelContestant("onnxruntime", "ONNX Runtime, its quantize_dynamic, per channel", runtime=_exported("onnxruntime")),
    ModelContestant("openvino-weights", "OpenVINO, nncf.compress_weights, int8", runtime=_exported("openvino-weights")),
    ModelContestant("openvino-static", "OpenVINO, nncf.quantize on the prompt", runtime=_exported("openvino-static")),
    ModelContestant("llama.cpp", "llama.cpp Q8_0, from a GGUF with the same weights", runtime=_LLAMA_CPP),
)
