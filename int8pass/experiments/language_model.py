"""A byte-level language model of OPT's kind (Zhang et al. 2022, arXiv 2205.01068), in plain torch.

Decoder only, LayerNorm before each block, learned positions, ReLU, biases everywhere, and an output layer tied to the
embedding: the family on which LLM.int8() found the outlier features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256  # a token is a byte
_INITIAL_DEVIATION = 0.02


@dataclass(frozen=True)
class ModelSize:
    """width: features of the hidden state; context: the longest sequence, in bytes."""

    width: int = 384
    depth: int = 4
    heads: int = 6
    context: int = 256


class DecoderLayer(nn.Module):
    """hidden [B, S, width] -> the same shape. attention_norm feeds q, k and v; feedforward_norm feeds fc1."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.attention_norm = nn.LayerNorm(size.width)
        self.q = nn.Linear(size.width, size.width)
        self.k = nn.Linear(size.width, size.width)
        self.v = nn.Linear(size.width, size.width)
        self.out = nn.Linear(size.width, size.width)
        self.feedforward_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, 4 * size.width)
        self.fc2 = nn.Linear(4 * size.width, size.width)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.attention_norm(hidden)
        q, k, v = (self._by_head(linear(normed)) for linear in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2))
        return hidden + self.fc2(functional.relu(self.fc1(self.feedforward_norm(hidden))))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LanguageModel(nn.Module):
    """tokens int64[B, S] -> logits float32[B, S, 256] of the byte that follows each."""

    def __init__(self, size: ModelSize, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.depth))
        self.final_norm = nn.LayerNorm(size.width)
        self._initialize(size, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.embedding(tokens) + self.positions(places)
        for layer in self.layers:
            hidden = layer(hidden)
        return functional.linear(self.final_norm(hidden), self.embedding.weight)

    @torch.no_grad()
    def _initialize(self, size: ModelSize, generator: torch.Generator) -> None:
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=_INITIAL_DEVIATION, generator=generator)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.zeros_(linear.bias)
        for layer in self.layers:
            # scores of order 1 from the start, and what adds to the hidden state smaller, the deeper the model (GPT-2)
            for linear in (layer.q, layer.k):
                linear.weight.mul_(size.width**-0.5 / _INITIAL_DEVIATION)
            for linear in (layer.out, layer.fc2):
                linear.weight.div_((2 * size.depth) ** 0.5)
        # learned from here on: sinusoids make neighbours easy to find, which takes a small model long to learn
        self.positions.weight.copy_(sinusoids(size.context, size.width) * _INITIAL_DEVIATION * 2**0.5)


def sinusoids(length: int, width: int) -> Tensor:
    """float32[length, width]: sines and cosines of falling frequencies (Vaswani et al. 2017, section 3.5)."""
    angles = torch.arange(length).unsqueeze(1) * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
