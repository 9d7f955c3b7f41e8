"""`explain`: run a model once in float, and measure at each Linear what int8 would do to it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from int8pass import ops, pipeline, torch_private
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.composition import int8_mixed_linear
from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError, WeightError
from int8pass.exported import program_from_exported
from int8pass.graph import is_canonical_linear
from int8pass.inspection.dump import Dump
from int8pass.inspection.memory import weight_memory
from int8pass.inspection.report import Report, Row
from int8pass.program import Decision, Program
from int8pass.weight_expression import WeightExpression


def explain(
    model_or_program: nn.Module | ExportedProgram,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
) -> Report:
    """Return a Report: one row for each Linear-like node that the model runs on `args` and `kwargs`.

    The model computes in float; each Linear's int8 form is computed beside it on the same input. The model is not
    changed; bytes are those of torch.compile with these options, free_weights among them, without the outlier columns
    that the fused CPU kernel keeps between calls. An ExportedProgram is run on its own example inputs where none are
    given. options: see Int8MixedConfig. Raises CaptureError, ConfigError.
    """
    config = Int8MixedConfig.from_options(options)
    measured: list[Measurement] = []
    if isinstance(model_or_program, ExportedProgram):
        _run_exported(model_or_program, args, kwargs, config, measured)
    elif args is None and kwargs is None:
        raise CaptureError("explain runs the model: pass args=(...), kwargs={...}, or both")
    else:
        _run_module(model_or_program, tuple(args or ()), dict(kwargs or {}), config, measured)
    read_in_float = {name for part in measured for name in part.read_in_float}
    rows = [_row(decision, part, config, read_in_float) for part in measured for decision in part.decisions]
    return Report(tuple(rows), config.threshold, config.outliers, graphs=len(measured))


@dataclass
class Observation:
    """What one Linear met: outlier columns, and energies of its float output and of the int8 form's error."""

    columns: set[int] = field(default_factory=set)
    signal: float = 0.0
    noise: float = 0.0

    @property
    def snr_db(self) -> float | None:
        if self.signal == 0.0:
            return None
        return float("inf") if self.noise == 0.0 else 10.0 * float(torch.tensor(self.signal / self.noise).log10())


class Measurement:
    """One captured graph that runs in float and observes its Linears. Calling it runs it."""

    def __init__(self, program: Program, tap: Dump | None) -> None:
        self.program = program
        self.observed: dict[str, Observation] = {}
        pipeline.run(program, tap, pipeline.FLOAT_PASSES)
        self._linears = {node.name: expression for node, expression in program.linears.items()}
        self.weights = linear_weights(program)
        self._float = fx.GraphModule(program.graph_module, copied(program.graph))
        pipeline.run(program, tap, pipeline.PASSES[len(pipeline.FLOAT_PASSES) :])

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

    def __call__(self, *inputs: Any) -> Any:
        return LinearObserver(self._float, self._observe).run(*inputs)

    def _observe(self, node: fx.Node, arguments: tuple, y: Tensor) -> None:
        expression = self._linears.get(node.name)
        if expression is None:
            return
        x, weight, bias = (*arguments, None)[:3]
        try:
            y_int8 = self._int8(x, weight, bias, expression, y.dtype)
        except WeightError:
            return  # the rewrite records it as skipped, with this reason
        observation = self.observed.setdefault(node.name, Observation())
        observation.columns |= _outlier_columns(x, self.program.config)
        observation.signal += float(y.double().square().sum())
        observation.noise += float((y.double() - y_int8.double()).square().sum())

    def _int8(self, x: Tensor, weight: Tensor, bias: Tensor | None, expression: WeightExpression, dtype) -> Tensor:
        config, quantized = self.program.config, self.program.quantized(expression)
        return int8_mixed_linear(
            lambda op, *arguments: op(*arguments),
            x,
            quantized.codes,
            quantized.scale,
            bias,
            threshold=config.threshold,
            outliers=config.outliers,
            dtype=dtype,
            weight=weight if config.keeps_original_weights else None,
        )


def linear_weights(program: Program) -> dict[str, WeightExpression]:
    """By node name, what each canonical Linear reads its weight through."""
    linears = (node for node in program.graph.nodes if is_canonical_linear(node))
    found = {node.name: program.expression(node.args[1]) for node in linears}
    return {name: expression for name, expression in found.items() if expression is not None}


class LinearObserver(fx.Interpreter):
    """Runs a graph and shows every canonical Linear with its arguments and result to `observe`."""

    def __init__(self, graph_module: fx.GraphModule, observe: Callable[[fx.Node, tuple, Tensor], None]) -> None:
        super().__init__(graph_module)
        self._observe = observe

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.target is torch.ops.aten.linear.default:
            arguments, _ = self.fetch_args_kwargs_from_env(node)
            self._observe(node, tuple(arguments), result)
        return result


def copied(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _outlier_columns(x: Tensor, config: Int8MixedConfig) -> set[int]:
    if not config.threshold:
        return set()
    return set(ops.outlier_mask(x, config.threshold, "column").nonzero().flatten().tolist())


def _run_module(
    model: nn.Module, args: tuple, kwargs: dict, config: Int8MixedConfig, measured: list[Measurement]
) -> None:
    names = ModuleNames(model if isinstance(model, nn.Module) else None)

    def backend(graph_module: fx.GraphModule, example_inputs: list) -> Measurement:
        program = program_from_dynamo(graph_module, example_inputs, _without_free(config), names)
        measurement = Measurement(program, Dump.for_config(config.dump_dir))
        measured.append(measurement)
        return measurement

    with torch.no_grad():
        torch_private.run_apart(model, backend, args, kwargs)


def _run_exported(
    exported: ExportedProgram, args: Any, kwargs: Any, config: Int8MixedConfig, measured: list[Measurement]
) -> None:
    if args is None and kwargs is None:
        if exported.example_inputs is None:
            raise CaptureError("this ExportedProgram carries no example inputs: pass args=(...) or kwargs={...}")
        args, kwargs = exported.example_inputs
    program = program_from_exported(exported, _without_free(config))
    measurement = Measurement(program, Dump.for_config(config.dump_dir))
    measured.append(measurement)
    with torch.no_grad():
        measurement(*flat_inputs(exported, tuple(args or ()), dict(kwargs or {})))


def flat_inputs(exported: ExportedProgram, args: tuple, kwargs: dict) -> list:
    """Weights, constants and user inputs in the order of the graph's placeholders."""
    user = iter(torch_private.tree_leaves((args, kwargs)))
    stored = {**exported.state_dict, **exported.constants}
    return [
        stored[spec.target] if spec.target in stored else next(user) for spec in exported.graph_signature.input_specs
    ]


def _without_free(config: Int8MixedConfig) -> Int8MixedConfig:
    outlier_weights = "original" if config.keeps_original_weights else "dequantized"
    return dataclasses.replace(config, free_weights=False, outlier_weights=outlier_weights)


def _row(decision: Decision, part: Measurement, config: Int8MixedConfig, read_in_float: set[str]) -> Row:
    observation = part.observed.get(decision.node, Observation())
    expression = part.weights.get(decision.node)
    row = Row(
        module=decision.module,
        operation=decision.operation,
        weight_shape=decision.weight_shape,
        dtype=decision.dtype,
        rewritten=decision.rewritten,
        reason=decision.reason,
        outlier_columns=tuple(sorted(observation.columns)),
        snr_db=observation.snr_db,
        bytes_before=decision.weight_bytes,
        bytes_after=decision.weight_bytes,
        bytes_peak=decision.weight_bytes,
    )
    if expression is None:
        return row
    source = part.program.tensors[expression.root]
    row = dataclasses.replace(row, weight=source.name, view=expression.key)
    if not decision.rewritten:
        return row
    freed = config.free_weights and isinstance(source.tensor, nn.Parameter) and source.name not in read_in_float
    memory = weight_memory(source.tensor, expression, kept_float=not freed, fused=config.lowering == "inductor")
    return dataclasses.replace(
        row,
        bytes_before=memory.before,
        bytes_after=memory.after,
        bytes_peak=memory.peak,
        keeps_float=memory.kept_float,
    )
