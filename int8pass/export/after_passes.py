"""After torch.onnx: equal nodes stand once, nodes are named after modules, int8 weights are made while written."""

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import BinaryIO

import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential, common

from int8pass.export.metadata import MODULE, OPERATION
from int8pass.export.streamed_program import StreamedWeight
from int8pass.torch_private import onnx_module_path, onnx_operation

_PASSES = (
    common.ClearMetadataAndDocStringPass(),  # stack traces, with the folders of the machine that wrote the file
    common.LiftConstantsToInitializersPass(lift_all_constants=True),
    common.DeduplicateInitializersPass(size_limit=1024),
    common.CommonSubexpressionEliminationPass(),
    common.IdentityEliminationPass(),
    common.RemoveUnusedNodesPass(),
)


def run(model: ir.Model, weights: Mapping[str, StreamedWeight]) -> None:
    """Simplify the model in place, and bind its int8 weights, by the names of their initializers."""
    for name, weight in weights.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = _StreamedTensor(name, weight)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = value.shape and ir.Shape(map(_known_size, value.shape))
    modules = {node: onnx_module_path(node.metadata_props) for node in model.graph.all_nodes()}
    operations = {node: onnx_operation(node.metadata_props, "int8pass") for node in modules}
    Sequential(*_PASSES)(model)
    _type_codes(model.graph)
    if _drop_squeezed_and_unsqueezed(model.graph):
        common.RemoveUnusedNodesPass()(model)
    _name_after_modules(model.graph, modules)
    for node in model.graph.all_nodes():
        if operations.get(node):
            node.metadata_props[OPERATION] = operations[node]


def _known_size(size: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    """A symbol that torch.export found to be a number is that number."""
    return int(size.value) if isinstance(size, ir.SymbolicDim) and (size.value or "").isdigit() else size


def _type_codes(graph: ir.Graph) -> None:
    """Codes have the type of their zero point, which may be uint8; torch.onnx notes that of the graph, int8."""
    for node in graph.all_nodes():
        zero_point = node.inputs[2] if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
        if zero_point is not None and zero_point.const_value is not None:
            node.outputs[0].dtype = zero_point.const_value.dtype


def _drop_squeezed_and_unsqueezed(graph: ir.Graph) -> int:
    """Unsqueeze(Squeeze(x, axes), axes) is x. Returns how many there were."""
    found = 0
    for node in graph:
        squeeze = node.inputs[0].producer() if node.op_type == "Unsqueeze" else None
        if squeeze is not None and squeeze.op_type == "Squeeze" and squeeze.inputs[1:] == node.inputs[1:]:
            node.outputs[0].replace_all_uses_with(squeeze.inputs[0])
            found += 1
    return found


def _name_after_modules(graph: ir.Graph, modules: Mapping[ir.Node, str | None]) -> None:
    """encoder.up/MatMul, encoder.up/MatMul_1, ...; the module stands in the node's metadata too."""
    taken: Counter = Counter()
    for node in graph.all_nodes():
        module = modules.get(node)
        module = _module_around(node, modules) if module is None else module
        name = f"{module}/{node.op_type}" if module else node.op_type
        node.name = f"{name}_{taken[name]}" if taken[name] else name
        taken[name] += 1
        if module:
            node.metadata_props[MODULE] = module


def _module_around(node: ir.Node, modules: Mapping[ir.Node, str | None]) -> str:
    """The innermost module that holds what a node reads and what reads it: for nodes that an optimizer made."""
    beside = {*node.predecessors(), *node.successors()}
    paths = [module.split(".") for each in beside if (module := modules.get(each)) is not None]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in same)


class _StreamedTensor(ir.LazyTensor):
    """int8 codes, inputs first, computed each time that they are read and not kept; written piece by piece."""

    def __init__(self, name: str, weight: StreamedWeight) -> None:
        super().__init__(
            lambda: ir.tensor(torch.cat(list(weight.pieces())).numpy(), name=name),
            dtype=ir.DataType.INT8,
            shape=ir.Shape(weight.stored_shape),
            name=name,
        )
        self._weight = weight

    def tofile(self, file: BinaryIO) -> None:
        for piece in self._weight.pieces():
            file.write(piece.numpy())
