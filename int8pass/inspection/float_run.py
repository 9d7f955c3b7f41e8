"""A model that runs in float as often as needed, and shows each of its Linears to whoever looks at it or changes it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from int8pass import ops, pipeline, torch_private
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.composition import (
    QuantizedActivation,
    call_op,
    int8_mixed_linear,
    outlier_mask,
    quantize_activation,
)
from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError, Int8PassError, WeightError
from int8pass.exported import program_from_exported
from int8pass.graph import is_canonical_linear
from int8pass.inspection.dump import Dump
from int8pass.program import Decision, Program
from int8pass.quantization.static import StaticScale, count_clamped, static_scale
from int8pass.weight_expression import WeightExpression


class FloatGraph:
    """One captured graph, with its Linears found and chosen, that computes in float. number: which of the model's.

    linears: by node name, the weight that a Linear to be rewritten reads; weights: the same of all canonical Linears;
    profiled: the outlier columns that the profile names for the former, None without a profile; ranges: those that
    activations="static" takes from it; int8: what computes a Linear in int8 in place of the rewrite's ops, or None.
    """

    def __init__(self, program: Program, number: int, int8: "Int8Form | None" = None) -> None:
        self.program = program
        self.number = number
        self.int8 = int8
        self.dump = Dump.for_config(program.config.dump_dir) or Dump(None)
        pipeline.run(program, self.dump, pipeline.FLOAT_PASSES)
        self.linears = {node.name: expression for node, expression in program.linears.items()}
        self.weights = _weights(program)
        self.profiled = {
            node.name: program.profiled_columns(expression, node) for node, expression in program.linears.items()
        }
        self.ranges = {
            node.name: program.profiled_range(expression, node) for node, expression in program.linears.items()
        }
        self._float = fx.GraphModule(program.graph_module, copied(program.graph))
        pipeline.run(program, self.dump, pipeline.PASSES[len(pipeline.FLOAT_PASSES) :])

    @property
    def decisions(self) -> list[Decision]:
        """The decisions in graph order; nodes inside higher-order regions come last."""
        order = {node.name: position for position, node in enumerate(self._float.graph.nodes)}
        return sorted(self.program.decisions, key=lambda decision: order.get(decision.node, len(order)))

    @property
    def read_in_float(self) -> set[str]:
        """Names of the parameters and buffers that something in the rewritten graph still reads."""
        read = (node for node in self.program.graph.nodes if node.name in self.program.tensors and node.users)
        return {self.program.tensors[node.name].name for node in read}

    def run(self, at_linear: "AtLinear", inputs: tuple) -> Any:
        """Run on the graph's flat inputs; the result of each Linear that is to be rewritten is what at_linear gives."""
        return _Interpreter(self, at_linear).run(*inputs)


@dataclass(frozen=True)
class LinearCall:
    """A Linear in the course of a run. x: [..., K]; weight: [N, K]; bias: [N] or None; y: [..., N], in float."""

    graph: FloatGraph
    node: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor

    @property
    def expression(self) -> WeightExpression:
        return self.graph.linears[self.node]

    def columns(self, config: Int8MixedConfig) -> tuple[int, ...] | None:
        """The outlier columns that the run's profile names, where these options have a profile; else None."""
        return None if config.profile is None else self.graph.profiled[self.node]

    def static(self, config: Int8MixedConfig) -> StaticScale | None:
        """The scale and zero point of x, where these options take them from the run's profile; else None."""
        if config.activations == "dynamic":
            return None
        return static_scale(*self.graph.ranges[self.node], config.scheme.activations.symmetric)

    def outlier_mask(self, config: Int8MixedConfig) -> Tensor | None:
        """What the outlier branch takes of x under options: bool[K], or bool[..., K] by token; None for nothing."""
        return outlier_mask(call_op, self.x, config.threshold, config.outliers, self.columns(config))

    def quantized(self, config: Int8MixedConfig) -> tuple[Tensor | None, QuantizedActivation]:
        """The outlier mask of x, and x in int8, under options."""
        mask = self.outlier_mask(config)
        has_factors = config.profile is not None and config.profile.rounded is not None
        form = self.graph.program.quantized(self.expression, config.weight_form) if has_factors else None
        x = self.x if form is None else self._scaled(form.input_factor)
        return mask, quantize_activation(call_op, config.scheme.activations, x, mask, self.static(config))

    def clamped(self, config: Int8MixedConfig) -> int:
        """How many values of x outside of the outlier columns lie past a static range."""
        static = self.static(config)
        return 0 if static is None else count_clamped(self.x, static, self.outlier_mask(config))

    def int8(self, config: Int8MixedConfig | None = None) -> Tensor | None:
        """What the rewrite makes of y under options; None where the weight cannot be int8.

        config: default the run's own, and the run's own int8 form; one with a profile has the run's.
        """
        if config is None and self.graph.int8 is not None:
            return self.graph.int8(self)
        program = self.graph.program
        config = config or program.config
        try:
            quantized = program.quantized(self.expression, config.weight_form)
        except WeightError:
            return None  # the rewrite records it as skipped, with this reason
        return int8_mixed_linear(
            call_op,
            self._scaled(quantized.input_factor),
            functools.partial(getattr, quantized),
            self.bias,
            scheme=config.scheme,
            threshold=config.threshold,
            outliers=config.outliers,
            dtype=self.y.dtype,
            weight=self.weight if config.keeps_original_weights else None,
            columns=self.columns(config),
            static=self.static(config),
        )

    def _scaled(self, factor: Tensor | None) -> Tensor:
        return self.x if factor is None else ops.scale_features(self.x, factor)


AtLinear = Callable[[LinearCall], Tensor]
Int8Form = Callable[[LinearCall], Tensor | None]


class _Interpreter(fx.Interpreter):
    def __init__(self, graph: FloatGraph, at_linear: AtLinear) -> None:
        super().__init__(graph._float)
        self._graph, self._at_linear = graph, at_linear

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.name not in self._graph.linears:
            return result
        x, weight, bias = (*self.fetch_args_kwargs_from_env(node)[0], None)[:3]
        return self._at_linear(LinearCall(self._graph, node.name, x, weight, bias, result))


@dataclass
class FloatRuns:
    """A model that is ready to run. graphs: what it was captured as, known once it has run."""

    graphs: list[FloatGraph] = field(default_factory=list)
    _start: Callable[[], Any] = lambda: None
    _at_linear: AtLinear = lambda call: call.y
    _int8: Int8Form | None = None

    def run(self, at_linear: AtLinear) -> Any:
        """Run the model once on its inputs, and return what it returns. Raises ProfileError at the first run."""
        self._at_linear = at_linear
        with torch.no_grad(), torch_private.unwrapped(Int8PassError):
            return self._start()

    def _add(self, program: Program) -> Callable:
        graph = FloatGraph(program, len(self.graphs), self._int8)
        self.graphs.append(graph)
        return lambda *inputs: graph.run(self._at_linear, inputs)


@contextlib.contextmanager
def float_runs(
    model_or_program: nn.Module | ExportedProgram,
    args: tuple | None,
    kwargs: Mapping[str, Any] | None,
    config: Int8MixedConfig,
    int8: Int8Form | None = None,
) -> Iterator[FloatRuns]:
    """Capture a model as torch.compile does, or take an ExportedProgram, to be run on these inputs.

    int8: what computes a Linear in int8 in place of the rewrite's ops, such as a file's nodes. Raises CaptureError
    where there are no inputs.
    """
    runs, config = FloatRuns(_int8=int8), without_free(config)
    if isinstance(model_or_program, ExportedProgram):
        inputs = flat_inputs(model_or_program, *_example_inputs(model_or_program, args, kwargs))
        run = runs._add(program_from_exported(model_or_program, config))
        runs._start = lambda: run(*inputs)
        yield runs
        return
    if args is None and kwargs is None:
        raise CaptureError("explain runs the model: pass args=(...), kwargs={...}, or both")
    names = ModuleNames(model_or_program if isinstance(model_or_program, nn.Module) else None)

    def backend(graph_module: fx.GraphModule, example_inputs: list) -> Callable:
        return runs._add(program_from_dynamo(graph_module, example_inputs, config, names))

    with torch_private.compiled_apart(model_or_program, backend, dynamic=False) as compiled:
        runs._start = functools.partial(compiled, *(args or ()), **(kwargs or {}))
        yield runs


def _weights(program: Program) -> dict[str, WeightExpression]:
    """By node name, what each canonical Linear reads its weight through."""
    linears = (node for node in program.graph.nodes if is_canonical_linear(node))
    found = {node.name: program.expression(node.args[1]) for node in linears}
    return {name: expression for name, expression in found.items() if expression is not None}


def copied(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _example_inputs(exported: ExportedProgram, args: Any, kwargs: Any) -> tuple[tuple, dict]:
    if args is None and kwargs is None:
        if exported.example_inputs is None:
            raise CaptureError("this ExportedProgram carries no example inputs: pass args=(...) or kwargs={...}")
        args, kwargs = exported.example_inputs
    return tuple(args or ()), dict(kwargs or {})


def flat_inputs(exported: ExportedProgram, args: tuple, kwargs: dict) -> list:
    """Weights, constants and user inputs in the order of the graph's placeholders."""
    user = iter(torch_private.tree_leaves((args, kwargs)))
    stored = {**exported.state_dict, **exported.constants}
    return [
        stored[spec.target] if spec.target in stored else next(user) for spec in exported.graph_signature.input_specs
    ]


def without_free(config: Int8MixedConfig) -> Int8MixedConfig:
    """The same options for a model that is to stay as it is: its weights are not released."""
    if not config.scheme.decomposition:
        return dataclasses.replace(config, free_weights=False)
    outlier_weights = "original" if config.keeps_original_weights else "dequantized"
    return dataclasses.replace(config, free_weights=False, outlier_weights=outlier_weights)
