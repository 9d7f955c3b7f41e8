"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum, made orthogonal, as the step of a matrix.

torch.optim.Muon takes the same steps, but multiplies in bfloat16 on every CPU, also where that is emulated. Here the
caller says in which dtype.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz: takes singular values of (0, 1] to about 0.7 ... 1.2
_ITERATIONS = 5
_LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """For weights [N, K] of Linears, N and K any. product_dtype: of the matrix products, bfloat16 or float32.

    A step moves a weight by lr * max(1, N / K) ** 0.5 along each direction; weight decay is decoupled, as in AdamW.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float, product_dtype: torch.dtype
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self.product_dtype = product_dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(momentum, MOMENTUM)  # Nesterov's
                direction = orthogonalized(ahead, self.product_dtype)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


def orthogonalized(matrix: Tensor, product_dtype: torch.dtype) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, roughly: singular values between about 0.7 and 1.2.

    matrix: floating [N, K]. Result: product_dtype [N, K]. Five iterations of Newton-Schulz.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(product_dtype)
    x = x / x.norm().clamp(min=_LEAST_NORM)
    linear, cubic, quintic = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.T if is_tall else x
