"""The torch.compile backend: capture, passes, lowering, and the call that feeds the int8 weights in."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from int8pass import pipeline
from int8pass.capture import program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.errors import FreedWeightError
from int8pass.inspection.dump import Dump
from int8pass.notices import warn_where_nothing_happened
from int8pass.program import Program
from int8pass.torch_private import mark_added_input
from int8pass.weight_expression import WeightExpression
from int8pass.weights import WEIGHTS, CachedWeight, QuantizedWeight, is_freed


def int8mixed(
    graph_module: fx.GraphModule,
    example_inputs: list,
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    mode: str | None = None,
) -> Callable:
    """The backend behind `torch.compile(model, backend="int8mixed", options={...})`.

    graph_module: a Dynamo graph; example_inputs: its real inputs. options: see Int8MixedConfig; mode: Inductor's.
    Returns a callable over the same inputs. Raises ConfigError, FreedWeightError, CompilerNotFoundError.
    """
    config = Int8MixedConfig.from_options(options, mode=mode)
    tap = Dump.for_config(config.dump_dir)
    program = pipeline.run(program_from_dynamo(graph_module, example_inputs, config), tap)
    warn_where_nothing_happened(program)
    inputs = InputBinding(program, example_inputs)
    lowering = importlib.import_module(f"int8pass.lower.{config.lowering}")
    run = lowering.lower(program, inputs.example_inputs, tap)
    return lambda *args: run(*inputs(args))


class InputBinding:
    """Turns the flat inputs of Dynamo's graph into those of the rewritten one, whose weights are int8.

    Weights are looked up at every call by the identity of the tensor that was passed, so that a changed weight, or
    another layer that shares this compiled graph, gets its own int8 form.
    """

    def __init__(self, program: Program, example_inputs: list) -> None:
        graph = program.graph
        positions = {name: position for position, name in enumerate(program.input_names)}
        added = {name: node for name, node in _placeholders(graph).items() if name in program.weight_inputs}
        _drop_unread_weights(program)
        for node in added.values():
            mark_added_input(node)
        program.graph_module.recompile()
        self._kept = [positions[name] for name in _placeholders(graph) if name not in added]
        self._weights = _unique_weights(program, added, positions)
        self.example_inputs = [example_inputs[position] for position in self._kept]
        self.example_inputs += [node.meta["val"] for node in added.values()]

    def __call__(self, args: tuple) -> list:
        inputs = [args[position] for position in self._kept]
        for weight in self._weights:
            quantized = weight.quantized(args)
            inputs.extend(getattr(quantized, field) for field in weight.fields)
        return inputs


class _Weight:
    """One int8 weight that a compiled graph needs: where its float tensor stands, and which fields are wanted."""

    def __init__(self, source: int | Tensor, expression: WeightExpression) -> None:
        self._source = source
        self._expression = expression
        self._last: CachedWeight | None = None
        self.fields: list[str] = []

    def quantized(self, args: tuple) -> QuantizedWeight:
        tensor = args[self._source] if isinstance(self._source, int) else self._source
        if self._last is None or not self._last.serves(tensor):
            self._last = WEIGHTS.get(tensor, self._expression.key, self._expression.evaluate)
        return self._last.quantized


def _drop_unread_weights(program: Program) -> None:
    """Remove the inputs and attributes of float weights that nothing reads any more.

    Raises FreedWeightError where something still reads a freed one: a skipped Linear, or the original outlier columns.
    """
    for node in list(program.graph.nodes):
        source = program.tensors.get(node.name)
        if source is not None and node.users and is_freed(source.tensor):
            reader = next(iter(node.users)).name
            raise FreedWeightError(f"{source.name} was released by free_weights=True, and {reader} still reads it")
        if source is not None and not node.users:
            program.graph.erase_node(node)
            if node.op == "get_attr":  # Inductor would keep it, and fail on a freed one
                delattr(program.graph_module, node.target)


def _unique_weights(program: Program, added: dict[str, fx.Node], positions: dict[str, int]) -> list[_Weight]:
    weights: dict[tuple[str, str], _Weight] = {}
    for name in added:
        wanted = program.weight_inputs[name]
        root = wanted.expression.root
        source = positions.get(root, program.tensors[root].tensor)
        weight = weights.setdefault((root, wanted.expression.key), _Weight(source, wanted.expression))
        weight.fields.append(wanted.field)
    return list(weights.values())


def _placeholders(graph: fx.Graph) -> dict[str, fx.Node]:
    return {node.name: node for node in graph.find_nodes(op="placeholder")}
