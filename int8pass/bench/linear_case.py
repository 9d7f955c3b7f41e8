"""One point of the Linear benchmark: a shape and a number of rows, its inputs, and copies of the layer.

Weights come from memory: every contestant goes round so many copies of the layer that their int8 weights are twice the
last-level cache, at least eight. The copies are called in stacks, one compiled function that runs up to 32 of them, and
the time of a stack is divided by their number. So what is measured is what a model sees: the guards and the call of a
compiled function (0.3 ms, with cold caches) are paid once for many layers, not once a layer; eager contestants run the
same loop in Python.
Each layer of a stack gets its own alias of x: with one x, layers could share one quantization of it.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from int8pass.bench.machine import available_memory_bytes, last_level_cache_bytes
from int8pass.bench.measure import relative_error

OUTLIER_COLUMNS = 6
OUTLIER_MAGNITUDE = 20.0
FEWEST_COPIES = 8
STACK = 32  # layers in one compiled function; GPT-2 of 124M parameters has 48
MOVING_INPUTS = 24  # in turn, each with columns of its own: more columns than a weight's cache holds

_BYTES_A_WEIGHT = 24  # of all contestants together: float32, bfloat16, and an int8 form for each of the others
_MEMORY_SHARE = 0.5

Inputs = list[Tensor]


@dataclass(frozen=True)
class Point:
    """A Linear of in_features → out_features on `rows` tokens. copies: how many of it are cycled through.

    layers: how many of them one compiled function runs, at most; warm: whether it is measured with one copy as well.
    """

    in_features: int
    out_features: int
    rows: int
    dtype: torch.dtype
    copies: int
    threads: int = 1
    layers: int = STACK
    warm: bool = True

    @property
    def name(self) -> str:
        return f"{self.in_features}x{self.out_features}, M={self.rows}"

    @property
    def stack(self) -> int:
        return math.ceil(self.copies / math.ceil(self.copies / self.layers))

    @property
    def has_warm(self) -> bool:
        """Whether one copy's int8 weights stay in the cache."""
        return self.warm and self.in_features * self.out_features < last_level_cache_bytes()

    @functools.cached_property
    def stacks(self) -> list[list[nn.Linear]]:
        """The copies of the layer, in groups of equal size; weights normal with standard deviation K ** -0.5."""
        torch.manual_seed(0)
        return [[self._layer() for _ in range(self.stack)] for _ in range(math.ceil(self.copies / self.stack))]

    def _layer(self) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, dtype=self.dtype).requires_grad_(False)
        layer.weight.normal_(std=self.in_features**-0.5)
        layer.bias.normal_()
        return layer

    @functools.cached_property
    def clean(self) -> Tensor:
        """[M, K], standard normal, clipped so that no feature reaches the threshold of 6."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.rows, self.in_features, generator=generator)
        return x.clamp_(-5, 5).to(self.dtype)

    @functools.cached_property
    def moving(self) -> list[Tensor]:
        """The same with six columns of magnitude 20, others in each while there are any; everyone runs on the first."""
        columns = torch.randperm(self.in_features, generator=torch.Generator().manual_seed(100))
        return [self._with_outliers(columns.roll(-OUTLIER_COLUMNS * number)) for number in range(MOVING_INPUTS)]

    def _with_outliers(self, order: Tensor) -> Tensor:
        columns = order[:OUTLIER_COLUMNS]
        x = self.clean.clone()
        x[:, columns] = x[:, columns].sign() * OUTLIER_MAGNITUDE
        return x

    def aliases(self, x: Tensor) -> Inputs:
        return [x.detach() for _ in range(self.stack)]

    def inputs(self, kind: str) -> list[Inputs]:
        """The inputs to go round: kind "outliers", "clean" or "moving"."""
        tensors = {"outliers": self.moving[:1], "clean": [self.clean], "moving": self.moving}[kind]
        return [self.aliases(x) for x in tensors]

    def error(self, output: Tensor, x: Tensor, bias: bool = True) -> float:
        """Relative Frobenius error of the first layer's output against the float64 result of the same weights and x."""
        layer = self.stacks[0][0]
        reference = x.double() @ layer.weight.double().t()
        return relative_error(output, reference + layer.bias.double() if bias else reference)

    def facts(self) -> dict:
        """What the result file says of the point."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "rows": self.rows,
            "dtype": str(self.dtype).removeprefix("torch."),
            "copies": self.stack * len(self.stacks),
            "layers_a_call": self.stack,
            "int8_weight_bytes": self.in_features * self.out_features * self.stack * len(self.stacks),
            "has_warm": self.has_warm,
        }


def copies_needed(in_features: int, out_features: int, largest: int | None = None, fewest: int = FEWEST_COPIES) -> int:
    """Copies whose int8 weights are twice the last-level cache, at least `fewest`, within half of the free memory."""
    weights = in_features * out_features
    wanted = max(fewest, math.ceil(2 * last_level_cache_bytes() / weights))
    affordable = int(available_memory_bytes() * _MEMORY_SHARE / (weights * _BYTES_A_WEIGHT))
    return max(1, min(wanted, affordable, largest or wanted))
