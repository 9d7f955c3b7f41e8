"""`FloatBatches`: runs a model in float on batches, and shows the inputs of the Linears that are to be rewritten."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from int8pass import pipeline, torch_private
from int8pass.call_arguments import call_arguments
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError
from int8pass.exported import program_from_exported
from int8pass.graph import value_of
from int8pass.inspection.float_run import copied, flat_inputs
from int8pass.program import ModuleTensor, Program
from int8pass.weight_expression import WeightExpression

Key = tuple[str, int]  # dotted name of a parameter, K: the Linears that read it through weights [N, K]


class LinearInput(NamedTuple):
    """What is shown at each call of a Linear.

    source: the parameter that it reads; expression: the view of it that is the weight; shape: (N, K) of the weight;
    x: [..., K]; sharers: the keys of all Linears to be rewritten that read this very x.
    """

    source: ModuleTensor
    expression: WeightExpression
    shape: tuple[int, int]
    x: Tensor
    sharers: frozenset[Key]

    @property
    def key(self) -> Key:
        return self.source.name, self.shape[1]


Observe = Callable[[LinearInput], None]


class FloatBatches:
    """Runs over batches, as often as asked, each with a bar on standard error where `progress` is True.

    batches: what the model is called with, see `calibrate`. count: how many the present run has gone through. The model
    computes in float and is not changed.
    """

    def __init__(self, model: nn.Module | ExportedProgram, batches: Iterable[Any], config: Int8MixedConfig) -> None:
        self._model = model
        self._batches = batches
        self._config = config
        self._observe: Observe | None = None
        self.count = 0

    @property
    def can_run_again(self) -> bool:
        """Whether the batches can be iterated more than once: a generator is spent after the first time."""
        return not isinstance(self._batches, Iterator)

    @contextlib.contextmanager
    def captured(self) -> Iterator["FloatBatches"]:
        """Within this context graphs stay captured from one run to the next. Raises CaptureError."""
        with torch.no_grad(), self._callable() as self._call:
            yield self

    def run(self, observe: Observe, doing: str, progress: bool = False) -> int:
        """Run once over the batches, each input of a Linear shown to `observe`. Returns how many batches there were."""
        self._observe = observe
        self.count = 0
        for batch in shown(self._batches, doing, progress):
            self._call(*call_arguments(batch))
            self.count += 1
        return self.count

    def show(self, shown: LinearInput) -> None:
        self._observe(shown)

    @contextlib.contextmanager
    def _callable(self) -> Iterator[Callable[[tuple, dict], Any]]:
        model, config = self._model, self._config
        if isinstance(model, ExportedProgram):
            shower = _Shower(program_from_exported(model, config), self.show)
            yield lambda args, kwargs: shower.run(*flat_inputs(model, args, kwargs))
            return
        if not isinstance(model, nn.Module):
            raise CaptureError(f"expected an nn.Module or an ExportedProgram, not {type(model).__name__}")
        names = ModuleNames(model)

        def backend(graph_module: fx.GraphModule, example_inputs: list) -> Callable:
            return _Shower(program_from_dynamo(graph_module, example_inputs, config, names), self.show).run

        with torch_private.compiled_apart(model, backend) as compiled:
            yield lambda args, kwargs: compiled(*args, **kwargs)


class _Shower(fx.Interpreter):
    """Runs one captured graph in float and shows the inputs of the Linears to be rewritten."""

    def __init__(self, program: Program, show: Observe) -> None:
        pipeline.run(program, passes=pipeline.FLOAT_PASSES)
        super().__init__(fx.GraphModule(program.graph_module, copied(program.graph)))
        self._show = show
        readers: dict[fx.Node, set[Key]] = {}
        self._read: dict[str, tuple[ModuleTensor, WeightExpression, tuple[int, int]]] = {}
        for node, expression in program.linears.items():
            source = program.tensors[expression.root]
            rows, columns = map(int, value_of(node.args[1]).shape)
            readers.setdefault(node.args[0], set()).add((source.name, columns))
            self._read[node.name] = source, expression, (rows, columns)
        self._sharers = {node.name: frozenset(readers[node.args[0]]) for node in program.linears}

    def run_node(self, node: fx.Node) -> Any:
        if node.name in self._read:
            x = self.fetch_args_kwargs_from_env(node)[0][0]
            self._show(LinearInput(*self._read[node.name], x, self._sharers[node.name]))
        return super().run_node(node)


def shown(batches: Iterable[Any], doing: str, progress: bool) -> Iterator[Any]:
    """What is iterated, with a bar on standard error where `progress` is True."""
    if not progress:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track

    total = len(batches) if hasattr(batches, "__len__") else None
    yield from track(batches, doing, total=total, console=Console(file=sys.stderr))
