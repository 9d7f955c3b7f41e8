"""How the peers quantize a torch model, in place: one function each, used for single Linears and for whole models."""

import logging

import torch
from torch import nn

from int8pass.bench.measure import quiet


def bitsandbytes(model: nn.Module, threshold: float = 6.0) -> nn.Module:
    """Replace every nn.Linear by Linear8bitLt: LLM.int8() as an eager module."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of every cast to float16
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:  # names alone, so that each float weight goes when it is replaced
        linear = model.get_submodule(name)
        shape = (linear.in_features, linear.out_features)
        replacement = Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=threshold, device="meta")
        replacement.weight = Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        replacement.bias = linear.bias
        replacement.train(linear.training)  # in training mode it multiplies dequantized weights in float
        model.set_submodule(name, replacement.to(linear.weight.device))  # .to() is what quantizes
    return model


def torchao(model: nn.Module) -> nn.Module:
    """Int8DynamicActivationInt8WeightConfig: its weights become tensor subclasses; to be compiled by Inductor."""
    with quiet():  # it tells of each CUDA extension that it cannot load
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def quantize_dynamic(model: nn.Module) -> nn.Module:
    """torch.ao's dynamic quantization of every nn.Linear: one scale for the whole activation; float32 only."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
