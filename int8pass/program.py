"""`Program`: a graph on its way through the passes, with the real tensors behind its inputs."""

import logging
import re
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from int8pass.config import Int8MixedConfig
from int8pass.graph import dtype_name, is_canonical_linear, module_path, operation, value_of
from int8pass.quantization.profile import ProfiledLayer
from int8pass.quantization.rounded_weights import WeightForm
from int8pass.quantization.static import StaticScale, static_scale
from int8pass.weight_cache import WEIGHTS
from int8pass.weight_expression import WeightExpression, weight_expression
from int8pass.weights import QuantizedWeight

logger = logging.getLogger(__name__)
_WORDS = {
    "column_cache": "outlier columns",
    "profiled_cache": "outlier columns",
    "column_words": "outlier columns",
    "wide_column_words": "outlier columns",
    "input_factor": "input factor",
}


@dataclass(frozen=True)
class ModuleTensor:
    """A parameter or buffer behind a graph input. name: its dotted name in the module ("encoder.fc.weight")."""

    name: str
    tensor: Tensor

    @property
    def module(self) -> str:
        """The dotted name of the module that holds it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Skip:
    """A Linear-like node that is left as it is, and why."""

    node: fx.Node
    reason: str


@dataclass(frozen=True)
class Decision:
    """What became of one Linear-like node.

    node: its name in the graph; module: dotted name of the module whose weight it reads, "" where it reads none;
    weight_shape: (N, K) or None; reason: "" where it was rewritten. weight, view: the parameter or buffer, and the
    views that it is read through.
    """

    node: str
    module: str
    operation: str
    weight_shape: tuple[int, ...] | None
    dtype: str
    reason: str = ""
    weight_bytes: int = 0
    int8_bytes: int = 0
    weight: str = ""
    view: str = ""

    @property
    def rewritten(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class WeightInput:
    """A new graph input: one field ("codes", "scale", ...) of the quantized form of a view of a parameter."""

    expression: WeightExpression
    field: str


@dataclass
class Program:
    """A graph between two passes.

    graph_module: rewritten in place.
    tensors: graph input name -> parameter or buffer behind it.
    grad_enabled: grad mode where the graph starts.
    frees_at_calls: free_weights takes effect at calls instead of at compilation.
    embeddings: data pointers of embedding tables known from outside the graph.
    linears: canonical Linears still to be rewritten, with the view that each reads its weight through.
    decisions: what became of each Linear-like node so far.
    weight_inputs: graph inputs that the pass added.
    linear_roots: the inputs that decisions were about.
    input_names: the graph's inputs as they were captured.
    constants: graph inputs that a pass added with tensors of their own.
    """

    graph_module: fx.GraphModule
    tensors: dict[str, ModuleTensor]
    config: Int8MixedConfig
    grad_enabled: bool = False
    frees_at_calls: bool = False
    embeddings: frozenset[int] = frozenset()
    linears: dict[fx.Node, WeightExpression] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    weight_inputs: dict[str, WeightInput] = field(default_factory=dict)
    linear_roots: set[str] = field(default_factory=set)
    input_names: tuple[str, ...] = ()
    constants: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inputs = {node.name: node for node in self.graph.find_nodes(op="placeholder")}
        self._attributes = {node.name: node for node in self.graph.find_nodes(op="get_attr")}
        self._added: dict[WeightInput, fx.Node] = {}
        self.input_names = tuple(self._inputs)

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    @property
    def linear_inputs(self) -> list[str]:
        """The graph inputs, as captured, that Linear-like nodes read their weights from."""
        return [name for name in self.input_names if name in self.linear_roots]

    @property
    def labels(self) -> dict[str, str]:
        """What stands behind each input, in words, for dumps."""
        labels = {name: f"weight '{bound.name}'" for name, bound in self.tensors.items()}
        for name, wanted in self.weight_inputs.items():
            source = self.tensors[wanted.expression.root].name
            what = _WORDS.get(wanted.field, f"int8 {wanted.field}")
            labels[name] = f"{what} of '{source}'{wanted.expression.key}"
        labels.update(dict.fromkeys(self.constants, "constant"))
        return labels

    @property
    def rewritten(self) -> int:
        return sum(decision.rewritten for decision in self.decisions)

    def expression(self, node: Any) -> WeightExpression | None:
        """The view of a parameter or buffer that a node is; None where it depends on anything else."""
        return weight_expression(node, self.tensors.keys())

    def source(self, expression: WeightExpression) -> fx.Node:
        """The graph input or attribute that a weight is a view of."""
        return self._inputs.get(expression.root) or self._attributes[expression.root]

    def quantized(self, expression: WeightExpression, form: WeightForm | None = None) -> QuantizedWeight:
        """The int8 form of a weight, made as `form` says, or as the config does, on first use.

        Raises WeightError, FreedWeightError, ProfileError.
        """
        tensor = self.tensors[expression.root].tensor
        return WEIGHTS.get(tensor, expression.key, expression.evaluate, form or self.config.weight_form).quantized

    def profiled_columns(self, expression: WeightExpression, node: fx.Node) -> tuple[int, ...] | None:
        """The outlier columns that the profile names for a Linear; None without a profile. Raises ProfileError."""
        return None if self.config.profile is None else self._profiled(expression, node).outlier_columns

    def _profiled(self, expression: WeightExpression, node: fx.Node) -> ProfiledLayer:
        source = self.tensors[expression.root]
        shape = tuple(int(size) for size in value_of(node.args[1]).shape)
        return self.config.profile.layer(source.name, shape, source.tensor)

    def static_scale(self, expression: WeightExpression, node: fx.Node) -> StaticScale | None:
        """The scale and zero point of a Linear's input; None where each call finds its own. Raises ProfileError."""
        found = self.profiled_range(expression, node)
        return None if found is None else static_scale(*found, self.config.scheme.activations.symmetric)

    def profiled_range(self, expression: WeightExpression, node: fx.Node) -> tuple[float, float] | None:
        """The profile's range of a Linear's input; None where each call finds its own. Raises ProfileError."""
        return None if self.config.activations == "dynamic" else self._profiled(expression, node).range

    def add_constant(self, name: str, tensor: Tensor) -> fx.Node:
        """A graph input that holds a tensor of its own, for programs that become files."""
        node = self._new_input(name)
        with self._fake_mode:
            node.meta["val"] = torch.empty_like(tensor, device=tensor.device)
        self.constants[node.name] = tensor
        return node

    def weight_input(self, expression: WeightExpression, part: str) -> fx.Node:
        """The graph input that holds one field of a quantized weight, added at first need."""
        wanted = WeightInput(expression, part)
        if wanted not in self._added:
            node = self._new_input(f"{_input_stem(expression.root)}_{part}")
            with self._fake_mode:
                node.meta["val"] = self.quantized(expression).empty(part)
            self.weight_inputs[node.name] = wanted
            self._added[wanted] = node
        return self._added[wanted]

    def unread_weights(self) -> list[fx.Node]:
        """The inputs and attributes of parameters and buffers that nothing reads any more."""
        sources = (*self._inputs.values(), *self._attributes.values())
        return [node for node in sources if node.name in self.tensors and not node.users]

    @property
    def rewritten_tensors(self) -> set[int]:
        """The ids of the tensors that are int8 now: a tied weight may be an input under each of its names."""
        return {id(self.tensors[wanted.expression.root].tensor) for wanted in self.weight_inputs.values()}

    def remove_input(self, node: fx.Node) -> None:
        """Remove an input or attribute that nothing reads."""
        self.graph.erase_node(node)
        if node.name in self.weight_inputs:
            del self._added[self.weight_inputs.pop(node.name)]
        if self._attributes.pop(node.name, None):
            delattr(self.graph_module, node.target)  # Inductor would keep it, and fail on a freed one
        else:
            del self._inputs[node.name]

    def _new_input(self, name: str) -> fx.Node:
        """A placeholder after all others."""
        anchor = next(reversed(self._inputs.values())).next if self._inputs else next(iter(self.graph.nodes))
        with self.graph.inserting_before(anchor):
            node = self.graph.placeholder(name)
        node.target = node.name  # fx made the name unique
        self._inputs[node.name] = node
        return node

    @cached_property
    def _fake_mode(self) -> AbstractContextManager:
        modes = (getattr(value_of(node), "fake_mode", None) for node in self.graph.nodes)
        return next(mode for mode in modes if mode is not None)

    def skip(self, node: fx.Node, reason: str, expression: WeightExpression | None = None) -> Skip:
        """Record that a Linear-like node is left as it is."""
        self._decide(node, expression, reason)
        return Skip(node, reason)

    def rewrote(self, node: fx.Node, expression: WeightExpression) -> None:
        """Record that a canonical Linear was rewritten."""
        self._decide(node, expression, "", int8_bytes=self.quantized(expression).nbytes)

    def _decide(self, node: fx.Node, expression: WeightExpression | None, reason: str, int8_bytes: int = 0) -> None:
        source = self.tensors.get(expression.root) if expression else None
        self.linear_roots |= {expression.root} if expression else set()
        weight = value_of(node.args[1]) if source and is_canonical_linear(node) else source and source.tensor
        decision = Decision(
            node=node.name,
            module=source.module if source else module_path(node),
            operation=operation(node),
            weight_shape=None if weight is None else tuple(int(size) for size in weight.shape),
            dtype=dtype_name(weight if weight is not None else value_of(node)),
            reason=reason,
            weight_bytes=0 if weight is None else int(weight.numel()) * weight.dtype.itemsize,
            int8_bytes=int8_bytes,
            weight=source.name if source else "",
            view=expression.key if source else "",
        )
        self.decisions.append(decision)
        logger.debug("%s (%s %s): %s", decision.module, decision.node, decision.weight_shape, reason or "rewritten")

    def counts(self) -> Counter:
        """How often each reason (or "rewritten") occurs."""
        return Counter(decision.reason or "rewritten" for decision in self.decisions)


def _input_stem(root: str) -> str:
    """The stem of an added input's name: Dynamo's `l_self_modules_fc_parameters_weight_` becomes `fc_weight`."""
    stem = re.sub(r"^[lL]_(self|fn|s|model)_|_?(modules|parameters|buffers)_", "_", root)
    return re.sub(r"_+", "_", stem).strip("_") or "weight"
