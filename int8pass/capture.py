"""From what a compiler front end hands over to a `Program`."""

import torch
from torch import Tensor, fx, nn

from int8pass import torch_private
from int8pass.config import Int8MixedConfig
from int8pass.program import ModuleTensor, Program


class ModuleNames:
    """Dotted names of a module's parameters and buffers, by identity, and the addresses of its embedding tables."""

    def __init__(self, root: nn.Module | None) -> None:
        named = () if root is None else (*root.named_buffers(), *root.named_parameters())
        self._names = {id(tensor): name for name, tensor in named}
        self.embeddings = frozenset() if root is None else embedding_addresses(root)

    def of(self, tensor: Tensor, default: str = "") -> str:
        """The name of a tensor, of a tied one the first; `default` for one that is not the module's."""
        return self._names.get(id(tensor), default)


def program_from_dynamo(
    graph_module: fx.GraphModule, example_inputs: list, config: Int8MixedConfig, names: ModuleNames
) -> Program:
    """Wrap a copy of a Dynamo graph. example_inputs: the real inputs, parameters among them, in placeholder order."""
    copied = copy_graph(graph_module)
    tensors = _module_tensors(copied, example_inputs, names)
    return Program(copied, tensors, config, grad_enabled=torch.is_grad_enabled(), embeddings=names.embeddings)


def copy_graph(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph that can lose and gain inputs while the captured one stays as it is."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(graph_module.graph, copies)
    graph.output(output)
    for node, copy in copies.items():
        copy.name = node.name  # fx would rename what is called like a builtin, as torch.export's `input`
        if hasattr(node, "_dynamo_source"):
            copy._dynamo_source = node._dynamo_source
    copied = torch_private.lazy_graph_module(graph_module, graph)
    copied.meta = dict(graph_module.meta)
    if hasattr(graph_module, "_param_name_to_source"):
        copied._param_name_to_source = graph_module._param_name_to_source
    return copied


def _module_tensors(graph_module: fx.GraphModule, inputs: list, names: ModuleNames) -> dict[str, ModuleTensor]:
    found = {}
    for node, value in zip(graph_module.graph.find_nodes(op="placeholder"), inputs, strict=True):
        name = torch_private.module_attribute(torch_private.source_name(node))
        if isinstance(value, Tensor) and (name or isinstance(value, nn.Parameter)):
            found[node.name] = ModuleTensor(names.of(value, name or node.name), value)
    for node in graph_module.graph.find_nodes(op="get_attr"):  # Inductor's freezing, prepared before tracing
        value = _attribute(graph_module, node.target)
        if isinstance(value, Tensor):
            found[node.name] = ModuleTensor(names.of(value, node.target), value)
    return found


def _attribute(module: nn.Module, target: str) -> object:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def embedding_addresses(root: nn.Module) -> frozenset[int]:
    """Data pointers of the embedding tables of a module."""
    tables = (module.weight for module in root.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag))
    return frozenset(table.data_ptr() for table in tables if not table.is_meta) - {0}
