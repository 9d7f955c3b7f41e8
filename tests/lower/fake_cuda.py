"""Graphs lowered for Inductor as if their tensors were on a GPU."""

import torch
from torch.utils._pytree import tree_map

from int8pass import pipeline
from int8pass.graph import operation, value_of
from int8pass.lower import inductor
from int8pass.passes.verify_ops import verify_ops
from int8pass.quantization.profile import Profile, ProfiledLayer, weight_fingerprint
from tests.graphs import program_of


def lowered(call, *inputs, dynamic=False, **options):
    """The program after all passes, lowered for Inductor as if its tensors were on a GPU."""
    return lower(program_of(call, *inputs, dynamic=dynamic, **options))


def lower(program):
    pipeline.run(program)
    for node in program.graph.nodes:
        node.meta["val"] = tree_map(_on_cuda, value_of(node))
        node.meta.pop("example_value", None)
    pipeline.run(program, passes=inductor.PASSES)
    verify_ops(program)
    return program


def _on_cuda(value):
    if not isinstance(value, torch.Tensor):
        return value
    with value.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def argument(node, name):
    """An argument of an op's node, by its name in the schema."""
    return node.args[[each.name for each in node.target._schema.arguments].index(name)]


def profile_of(module, columns):
    """A profile that names these outlier columns for each weight of a module."""
    layers = [
        ProfiledLayer(name, tuple(weight.shape), 1.0, columns, weight_fingerprint(weight))
        for name, weight in module.named_parameters()
        if weight.dim() == 2
    ]
    return Profile(tuple(layers), threshold=6.0, batches=1)


def operations(program):
    return [operation(node) for node in program.graph.nodes if operation(node)]
