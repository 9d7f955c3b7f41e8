"""Function-preserving outlier amplification: a small model gets the outlier features of a large one.

LLM.int8() finds that from 6.7 billion parameters on, a few features of the hidden state are up to 20 times larger than
all others (section 4). In a small model they are planted: a feature that a LayerNorm gives is multiplied by `scale`,
through the norm's weight and bias, and the columns of the Linears that read it are divided by `scale`. In float the
model computes what it did before; what an int8 Linear meets has outlier features.
"""

import copy
from collections.abc import Sequence

import torch

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


def planted_features(width: int, count: int, seed: int = 0) -> list[int]:
    """`count` of the features 0 ... width - 1, drawn once for the whole model: in a 6.7B model all layers agree."""
    return sorted(torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:count].tolist())
