"""The inputs of a compiled graph at each call: int8 weights in place of the float ones that Dynamo passes."""

import weakref
from collections.abc import Callable

from torch import Tensor, fx, nn

from int8pass.errors import FreedWeightError, ProfileError
from int8pass.freed_parameter import free, is_freed
from int8pass.graph import value_of
from int8pass.program import Program
from int8pass.torch_private import mark_added_input
from int8pass.weight_cache import WEIGHTS
from int8pass.weight_expression import WeightExpression


class InputBinding:
    """Turns the flat inputs of Dynamo's graph into those of the rewritten one, whose weights are int8.

    Weights are looked up at every call by the identity of the tensor that was passed, so that a changed weight, or
    another layer that shares this compiled graph, gets its own int8 form. Nothing of the first call is kept.
    """

    def __init__(self, program: Program) -> None:
        graph = program.graph
        positions = {name: position for position, name in enumerate(program.input_names)}
        unread = _drop_unread_weights(program)
        self._freed = [positions[name] for name in unread] if program.frees_at_calls else []
        self._added = {name: node for name, node in _placeholders(graph).items() if name in program.weight_inputs}
        for node in self._added.values():
            mark_added_input(node)
        for node in _placeholders(graph).values():
            node.meta.setdefault("val", value_of(node))  # Inductor reads it of all inputs or of none
        program.graph_module.recompile()
        self._kept = [positions[name] for name in _placeholders(graph) if name not in self._added]
        wanted = [program.weight_inputs[name] for name in self._added]
        fields: dict[WeightExpression, tuple[str, ...]] = {}
        for item in wanted:
            fields[item.expression] = (*fields.get(item.expression, ()), item.field)
        self._weights = [_Weight(program, expression, names, positions) for expression, names in fields.items()]
        pairs = [(expression, name) for expression, names in fields.items() for name in names]
        places = {pair: place for place, pair in enumerate(pairs)}
        self._order = [places[item.expression, item.field] for item in wanted]

    def example_inputs(self, original: list) -> list:
        """The inputs to compile with: of those that Dynamo gave the ones that are kept, and fake int8 weights."""
        return [original[position] for position in self._kept] + [node.meta["val"] for node in self._added.values()]

    def __call__(self, args: tuple) -> list:
        fields = [field for weight in self._weights for field in weight.fields(args)]
        for position in self._freed:
            if not is_freed(args[position]):
                free(args[position])
        return [args[position] for position in self._kept] + [fields[index] for index in self._order]


class _Weight:
    """Fields of one int8 weight that a compiled graph needs, made from a float tensor among the graph's arguments."""

    def __init__(
        self, program: Program, expression: WeightExpression, fields: tuple[str, ...], positions: dict[str, int]
    ) -> None:
        self._expression = expression
        self._form = program.config.weight_form
        self._has_factor = program.quantized(expression).input_factor is not None
        self._fields = fields
        self._position = positions.get(expression.root)
        self._attribute = program.tensors[expression.root].tensor if self._position is None else None
        self._last: Callable = _nothing  # a weak reference: the int8 form dies with its float tensor

    def fields(self, args: tuple) -> tuple[Tensor, ...]:
        tensor = self._attribute if self._position is None else args[self._position]
        last = self._last()  # read once: other threads run the same graph
        if last is None or not last.serves(tensor):
            last = WEIGHTS.get(tensor, self._expression.key, self._expression.evaluate, self._form)
            self._last = weakref.ref(last)
            if (last.quantized.input_factor is not None) != self._has_factor:
                raise ProfileError(
                    "layers share a compiled graph, and the profile scales the input of one and not of the other: "
                    "compile them apart, or calibrate without migration"
                )
        return last.quantized.fields(self._fields)


def _nothing() -> None:
    return None


def _drop_unread_weights(program: Program) -> list[str]:
    """Remove the inputs and attributes of weights, float or int8, that nothing reads any more.

    Returns the names of the graph inputs among them that hold parameters whose Linears were rewritten.
    Raises FreedWeightError where something still reads a freed one: a skipped Linear, or the original outlier columns.
    """
    for node in program.graph.nodes:
        source = program.tensors.get(node.name)
        if source is not None and node.users and is_freed(source.tensor):
            reader = next(iter(node.users)).name
            raise FreedWeightError(f"{source.name} was released by free_weights=True, and {reader} still reads it")
    rewritten, unread = program.rewritten_tensors, program.unread_weights()
    tensors = {node.name: program.tensors[node.name].tensor for node in unread if node.op == "placeholder"}
    freeable = [
        name for name, tensor in tensors.items() if id(tensor) in rewritten and isinstance(tensor, nn.Parameter)
    ]
    added = (node for name, node in _placeholders(program.graph).items() if name in program.weight_inputs)
    for node in (*unread, *(node for node in added if not node.users)):
        program.remove_input(node)
    return freeable


def _placeholders(graph: fx.Graph) -> dict[str, fx.Node]:
    return {node.name: node for node in graph.find_nodes(op="placeholder")}
