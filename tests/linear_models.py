"""Small Linear models for tests, their inputs, and how far results are apart."""

import io
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from int8pass.graph import operation

IN, HIDDEN, OUT = 32, 48, 24


class Mlp(nn.Module):
    """Two Linears of 32, 48 and 24 features."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(IN, HIDDEN)
        self.down = nn.Linear(HIDDEN, OUT, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def frozen(model: nn.Module) -> nn.Module:
    """The model for inference: eval mode, no gradients."""
    return model.eval().requires_grad_(False)


def activation(*leading: int, columns: int = IN) -> Tensor:
    """Standard normal values with two outlier features, 3 and 7, drawn anew for each shape."""
    x = torch.randn(*leading, columns)
    if x.numel():
        x[..., 3] *= 20
        x[..., 7] -= 15
    return x


def bounded(*shape: int) -> Tensor:
    """Values within (-4, 4): no outliers at the threshold of 6."""
    return torch.randn(*shape).clamp(-4, 4)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """|result - expected| / |expected|, in float64."""
    result, expected = result.detach().double(), expected.detach().double()
    return float((result - expected).norm() / expected.norm())


def exported(model: nn.Module, *args: Tensor, **keywords) -> ExportedProgram:
    """torch.export under no_grad."""
    with torch.no_grad():
        return torch.export.export(model, args, **keywords)


def saved(program: ExportedProgram) -> bytes:
    """The file that torch.export.save writes."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def reloaded(program: ExportedProgram) -> ExportedProgram:
    """The program after torch.export.save and torch.export.load."""
    return torch.export.load(io.BytesIO(saved(program)))


def op_counts(program: ExportedProgram | fx.GraphModule) -> Counter:
    """How often each operation occurs in a graph."""
    return Counter(operation(node) for node in program.graph.nodes if operation(node))
