"""The workloads of the GPU benchmark: single Linears of the paper's Table 5, and blocks of the shape of Llama-3-8B."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from int8pass.bench.gpu_contestants import Layers
from int8pass.kernels.cuda.column_words import slot_of, slots

WIDTHS = (768, 1024, 1536, 2048, 2560, 4096, 5140, 12288)  # LLM.int8(), Table 5: the first Linear of each FFN
PREFILL_ROWS = (2048, 16384)
DECODE_ROWS = (1, 4, 16)
_GAIN, _MOST_COPIES = 20.0, 64


@dataclass(frozen=True)
class LinearShape:
    """x [rows, features] times a weight [outputs, features], with bias."""

    rows: int
    features: int
    outputs: int

    @property
    def name(self) -> str:
        return f"{self.features}x{self.outputs} M={self.rows}"

    @property
    def ops(self) -> float:
        return 2.0 * self.rows * self.features * self.outputs

    def bytes_moved(self, weight_bytes: int, element_bytes: int) -> float:
        """The least that a Linear reads and writes: weight, x and y once."""
        return weight_bytes * self.features * self.outputs + element_bytes * self.rows * (self.features + self.outputs)

    def copies(self, cache_bytes: int) -> int:
        """Layers so many that their int8 weights are twice the cache: each is then read from memory."""
        return max(1, min(_MOST_COPIES, -(-2 * cache_bytes // (self.features * self.outputs))))

    def layers(self, copies: int, device: torch.device, dtype: torch.dtype) -> Layers:
        torch.manual_seed(0)
        made = [nn.Linear(self.features, self.outputs, device=device, dtype=dtype) for _ in range(copies)]
        return Layers(made).eval().requires_grad_(False)

    def input(self, outliers: int, device: torch.device, dtype: torch.dtype, turn: int | None = None) -> Tensor:
        """Normal numbers; `outliers` columns are of magnitude 20: spread evenly, or a turn of `moving_columns`."""
        torch.manual_seed(1)
        x = torch.randn(self.rows, self.features, device=device)
        columns = list(range(0, self.features, max(1, self.features // outliers)))[:outliers]
        if turn is not None:
            columns = moving_columns(self.features, outliers, turn)
        x[:, columns] = x[:, columns].sign() * _GAIN
        return x.to(dtype)


def moving_columns(features: int, count: int, turn: int) -> list[int]:
    """Columns, spread over all features, that have the slots of every other turn's in the CUDA kernels' weight caches.

    So no call finds there what the call before it has left. At most `slots(features)` of them.
    """
    rows, blocks = slots(features), max(1, features // slots(features))
    found = []
    for number in range(count):
        block, slot = (number * blocks // count + turn) % blocks, number * rows // count
        found.append(next(k for k in range(block * rows, (block + 1) * rows) if slot_of(k, features) == slot))
    return found


@dataclass(frozen=True)
class BlockShape:
    """Decoder blocks: widths in features, heads of queries and of keys."""

    width: int = 4096
    hidden: int = 14336
    heads: int = 32
    key_heads: int = 8
    blocks: int = 4

    @property
    def weights(self) -> int:
        """Elements of all Linears."""
        head = self.width // self.heads
        attention = 2 * self.width * self.width + 2 * self.width * self.key_heads * head
        return self.blocks * (attention + 3 * self.width * self.hidden)


class Block(nn.Module):
    """RMSNorm, grouped-query attention, RMSNorm, SwiGLU; without rotary embedding. Norms give eight features a gain of
    20, so that the Linears behind them meet outliers, which random weights lack."""

    def __init__(self, shape: BlockShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        keys = shape.key_heads * (shape.width // shape.heads)

        def linear(features: int, outputs: int) -> nn.Linear:
            return nn.Linear(features, outputs, bias=False, device=device, dtype=dtype)

        self.query, self.key, self.value = (
            linear(shape.width, shape.width),
            *(linear(shape.width, keys) for _ in range(2)),
        )
        self.attention_out = linear(shape.width, shape.width)
        self.gate, self.up = linear(shape.width, shape.hidden), linear(shape.width, shape.hidden)
        self.down = linear(shape.hidden, shape.width)
        self.norms = nn.ModuleList(nn.RMSNorm(shape.width, device=device, dtype=dtype) for _ in range(2))
        for norm in self.norms:
            norm.weight.data[:: max(1, shape.width // 8)] = _GAIN

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """x: [B, S, width]; past: [2, B, key heads, L, head], the keys and values before x, or None."""
        normed = self.norms[0](x)
        query = self._heads(self.query(normed), self.shape.heads)
        key, value = (self._heads(linear(normed), self.shape.key_heads) for linear in (self.key, self.value))
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=past is None, enable_gqa=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(x.shape))
        normed = self.norms[1](x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class Blocks(nn.Module):
    """A stack of blocks over one input; all share what `past` holds, which saves memory and changes no time."""

    def __init__(self, shape: BlockShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(shape, device, dtype) for _ in range(shape.blocks))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, past)
        return x


def block_inputs(
    shape: BlockShape, batch: int, tokens: int, past: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """x [batch, tokens, width] and keys and values of `past` tokens before it; None of 0."""
    torch.manual_seed(2)
    x = torch.randn(batch, tokens, shape.width, device=device).to(dtype)
    sizes = (2, batch, shape.key_heads, past, shape.width // shape.heads)
    return x, torch.randn(sizes, device=device).to(dtype) if past else None
