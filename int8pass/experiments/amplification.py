"""Function-preserving outlier amplification: a small model gets the outlier features of a large one.

LLM.int8() finds that from 6.7 billion parameters on, a few features of the hidden state are up to 20 times larger than
all others (section 4). In a small model they are planted: a feature that a LayerNorm gives is multiplied by `scale`,
through the norm's weight and bias, and the columns of the Linears that read it are divided by `scale`. In float the
model computes what it did before; what an int8 Linear meets has outlier features.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from int8pass.experiments.language_model import LanguageModel


@torch.no_grad()
def amplify(model: LanguageModel, features: Sequence[int], scale: float) -> LanguageModel:
    """A copy of the model in which these features, of every LayerNorm that feeds Linears, are `scale` times larger."""
    amplified = copy.deepcopy(model)
    columns = list(features)
    for layer in amplified.layers:
        for norm, readers in (
            (layer.attention_norm, (layer.q, layer.k, layer.v)),
            (layer.feedforward_norm, (layer.fc1,)),
        ):
            norm.weight[columns] *= scale
            norm.bias[columns] *= scale
            for linear in readers:
                linear.weight[:, columns] /= scale
    return amplified


@torch.no_grad()
def largest_features(model: LanguageModel, tokens: Tensor, count: int) -> list[int]:
    """The `count` features that the norms before Linears make largest, the same for the whole model, ascending.

    tokens: int64[B, S]; by the mean of |x| over them and over the norms. In a 6.7B model all layers agree too.
    """
    magnitudes: list[Tensor] = []
    hooks = [
        norm.register_forward_hook(lambda module, inputs, output: magnitudes.append(output.abs().mean((0, 1))))
        for layer in model.layers
        for norm in (layer.attention_norm, layer.feedforward_norm)
    ]
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(torch.stack(magnitudes).mean(0).topk(count).indices.tolist())
