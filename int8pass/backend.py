"""The torch.compile backend: capture, passes, lowering, and the call that feeds the int8 weights in."""

import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from int8pass import pipeline
from int8pass.binding import InputBinding
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.inspection.dump import Dump
from int8pass.notices import warn_where_nothing_happened
from int8pass.passes.select_linear import name_refusal
from int8pass.program import ModuleTensor, Program
from int8pass.torch_private import compiled_module, is_recompilation

logger = logging.getLogger(__name__)


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
    names = ModuleNames(compiled_module())
    program = program_from_dynamo(graph_module, example_inputs, config, names)
    # Blocks of a model, each compiled on its own, share code but not weights. Guards must hold for fresh and for freed
    # ones: the first compilation frees at once and guards on freed weights, a later one on fresh ones, freed at calls.
    program.frees_at_calls = is_recompilation()
    run = _compile(program, example_inputs, config.lowering)
    weights = {program.input_names.index(root): program.tensors[root].tensor for root in program.linear_inputs}
    return DecisionGuard(graph_module, config, names, run, weights)


def _compile(program: Program, example_inputs: list, lowering_name: str) -> Callable:
    tap = Dump.for_config(program.config.dump_dir)
    pipeline.run(program, tap)
    warn_where_nothing_happened(program)
    lowering = importlib.import_module(f"int8pass.lower.{lowering_name}")
    lowering.rewrite(program, tap)
    inputs = InputBinding(program, example_inputs)
    run = lowering.lower(program, inputs.example_inputs)
    return lambda *args: run(*inputs(args))


class DecisionGuard:
    """Runs a compiled graph, and keeps to each layer's own decision where layers share the graph.

    Dynamo may call one graph with the weights of several layers, while `skip_modules` and tied embeddings decide by
    layer. Weights with other decisions than those the graph was compiled for get a variant of it, run op by op.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        config: Int8MixedConfig,
        names: ModuleNames,
        run: Callable,
        weights: dict[int, Tensor],
    ) -> None:
        self._graph_module = graph_module
        self._config = config
        self._names = names
        self._positions = tuple(weights)
        self._lock = threading.Lock()
        self._runs = {self._refusals(tuple(weights.values())): run}
        self._last = tuple(map(id, weights.values())), run

    def __call__(self, *args: Any) -> Any:
        ids, run = self._last  # read once: other threads run the same graph
        if ids != tuple(id(args[position]) for position in self._positions):
            run = self._switch(args)
        return run(*args)

    def _switch(self, args: tuple) -> Callable:
        weights = tuple(args[position] for position in self._positions)
        refusals = self._refusals(weights)
        with self._lock:
            if refusals not in self._runs:
                logger.warning("layers that share a compiled graph differ in what is skipped: one runs op by op")
                program = program_from_dynamo(self._graph_module, list(args), self._config, self._names)
                self._runs[refusals] = _compile(program, list(args), "eager")
            run = self._runs[refusals]
        self._last = tuple(map(id, weights)), run
        return run

    def _refusals(self, weights: tuple[Tensor, ...]) -> tuple[str, ...]:
        sources = (ModuleTensor(self._names.of(weight), weight) for weight in weights)
        return tuple(name_refusal(self._config, source, self._names.embeddings) for source in sources)
