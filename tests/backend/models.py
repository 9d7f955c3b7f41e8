"""Models that the tests of the backend compile, and how their results are compared."""

import functools

import torch
from torch import nn

from int8pass import int8mixed
from tests import reference
from tests.linear_models import IN, OUT, relative_error


class Counted:
    """A backend that counts the graphs it compiles."""

    def __init__(self, backend):
        self.backend = backend
        self.graphs = 0

    def __call__(self, graph_module, example_inputs):
        self.graphs += 1
        return self.backend(graph_module, example_inputs)


def counted_int8mixed(**options):
    return Counted(functools.partial(int8mixed, options={"lowering": "eager", **options}))


def compiled(model, *, options=None, **keywords):
    """The model compiled by name, on the eager lowering unless options say otherwise."""
    return torch.compile(model, backend="int8mixed", options={"lowering": "eager", **(options or {})}, **keywords)


class Broken(nn.Module):
    """Two graphs, both of which read `shared`; `first` and `second` are read by one each."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(IN, IN)
        self.shared = nn.Linear(IN, IN)
        self.second = nn.Linear(IN, OUT)

    def forward(self, x):
        x = self.shared(self.first(x))
        torch._dynamo.graph_break()
        return self.second(self.shared(x))


class BrokenLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(IN, IN)
        self.second = nn.Linear(IN, IN)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


class Layers(nn.Module):
    """Equal layers, each broken, so that Dynamo lets them share graphs. Returns the input and output of each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(BrokenLayer() for _ in range(3))

    def forward(self, x):
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


class TiedOverBreak(nn.Module):
    """A table that one graph looks up and the next one multiplies with."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, IN), requires_grad=False)

    def forward(self, tokens):
        x = torch.nn.functional.embedding(tokens, self.table)
        torch._dynamo.graph_break()
        return torch.nn.functional.linear(torch.relu(x), self.table)


def linear_reference(linear, x, **options):
    """The reference's result of one Linear and its tolerance, for x of any rank: two float64 tensors."""
    bias = None if linear.bias is None else linear.bias.detach().float().numpy()
    rows = x.detach().reshape(-1, x.shape[-1]).float().numpy()
    weight = linear.weight.detach().float().numpy()
    y, magnitude = reference.linear(rows, weight, bias, **options)
    bound = reference.tolerance(y, magnitude, x.shape[-1], torch.finfo(x.dtype).eps)
    shape = (*x.shape[:-1], y.shape[-1])
    return torch.from_numpy(y).reshape(shape), torch.from_numpy(bound).reshape(shape)


def assert_follows_reference(result, linear, x, **options):
    expected, bound = linear_reference(linear, x, **options)
    assert result.shape == expected.shape and result.dtype == x.dtype
    assert ((result.double() - expected).abs() <= bound).all()


def assert_close_to_float(result, model, *args):
    """Equal to the float model up to int8's rounding, and not equal to it."""
    with torch.no_grad():
        error = relative_error(result.detach(), model(*args).detach())
    assert 0 < error < 0.03
