"""`explain`: run a model once in float, and measure at each Linear what int8 would do to it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from int8pass import ops
from int8pass.config import Int8MixedConfig
from int8pass.inspection.float_run import FloatGraph, LinearCall, float_runs
from int8pass.inspection.memory import weight_memory
from int8pass.inspection.observation import Details, Observation, decibels
from int8pass.inspection.report import Report, Row
from int8pass.inspection.scheme_errors import SchemeError, scheme_noise
from int8pass.inspection.timing import time_linear
from int8pass.program import Decision

Observed = dict[tuple[int, str], Observation]  # by number of the graph and name of the Linear


def explain(
    model_or_program: nn.Module | ExportedProgram,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    timings: bool = False,
    schemes: Sequence[str] = (),
) -> Report:
    """Return a Report: one row for each Linear-like node that the model runs on `args` and `kwargs`.

    The model computes in float; each Linear's int8 form is computed beside it on the same input. The model is not
    changed; bytes are those of torch.compile with these options, free_weights among them, without the outlier columns
    that the fused CPU kernel keeps between calls. With a profile, outlier columns are those that it names, and each row
    says which others reached the threshold. An ExportedProgram is run on its own example inputs where none are given.
    options: see Int8MixedConfig. timings: also time each Linear, in int8 and in float, a fraction of a second each.
    schemes: names of schemes whose error is measured too, at each Linear. Raises CaptureError, ConfigError,
    ProfileError.
    """
    config = Int8MixedConfig.from_options(options)
    observed: Observed = {}
    with float_runs(model_or_program, args, kwargs, config) as runs:
        runs.run(lambda call: _observe(call, observed, config if timings else None, schemes))
    read_in_float = {name for graph in runs.graphs for name in graph.read_in_float}
    places = [(graph, decision) for graph in runs.graphs for decision in graph.decisions]
    return Report(
        tuple(_row(decision, graph, observed, config, read_in_float) for graph, decision in places),
        config.threshold,
        config.outliers,
        scheme=config.scheme.name,
        graphs=len(runs.graphs),
        profile="" if config.profile is None else config.profile.fingerprint,
        stages=tuple(tuple(graph.dump.graphs) for graph in runs.graphs),
        details=tuple(_details(graph, decision.node, observed) for graph, decision in places),
    )


def _observe(call: LinearCall, observed: Observed, timed: Int8MixedConfig | None, schemes: Sequence[str]) -> Tensor:
    y_int8 = call.int8()
    if y_int8 is not None:
        observation = observed.setdefault((call.graph.number, call.node), Observation())
        observation.add(call, y_int8)
        observation.missed |= set(missed_columns(call, call.graph.program.config))
        observation.scheme_noise.update(scheme_noise(call, schemes))
        if timed is not None and observation.timing is None:
            observation.timing = time_linear(call, timed)
    return call.y


def missed_columns(call: LinearCall, config: Int8MixedConfig) -> list[int]:
    """Features of the input that reach the threshold and that the profile does not name."""
    if config.profile is None or not config.threshold:
        return []
    reached = ops.outlier_mask(call.x, config.threshold, "column").nonzero().flatten().tolist()
    return sorted(set(reached) - set(call.columns(config)))


def _details(graph: FloatGraph, node: str, observed: Observed) -> Details:
    observation = observed.get((graph.number, node))
    if observation is None:
        return Details(graph.number, node)
    quantized = graph.program.quantized(graph.linears[node])
    return observation.details(graph.number, node, quantized.codes, quantized.scale)


def _row(
    decision: Decision, graph: FloatGraph, observed: Observed, config: Int8MixedConfig, read_in_float: set[str]
) -> Row:
    observation = observed.get((graph.number, decision.node), Observation())
    expression = graph.weights.get(decision.node)
    row = Row(
        module=decision.module,
        operation=decision.operation,
        weight_shape=decision.weight_shape,
        dtype=decision.dtype,
        rewritten=decision.rewritten,
        reason=decision.reason,
        outlier_columns=tuple(sorted(observation.columns)),
        snr_db=observation.snr_db,
        clamped=observation.clamped,
        bytes_before=decision.weight_bytes,
        bytes_after=decision.weight_bytes,
        bytes_peak=decision.weight_bytes,
        timing=observation.timing,
        missed_columns=tuple(sorted(observation.missed)),
        schemes=tuple(
            SchemeError(name, decibels(observation.signal, noise)) for name, noise in observation.scheme_noise.items()
        ),
    )
    if expression is None:
        return row
    source = graph.program.tensors[expression.root]
    row = dataclasses.replace(row, weight=source.name, view=expression.key)
    if not decision.rewritten:
        return row
    freed = config.free_weights and isinstance(source.tensor, nn.Parameter) and source.name not in read_in_float
    memory = weight_memory(
        source.tensor, expression, kept_float=not freed, fused=config.lowering == "inductor", scheme=config.scheme,
        outliers=bool(config.threshold) and config.keeps_original_weights, profiled=config.profile is not None,
    )  # fmt: skip
    return dataclasses.replace(
        row,
        bytes_before=memory.before,
        bytes_after=memory.after,
        bytes_peak=memory.peak,
        keeps_float=memory.kept_float,
    )
