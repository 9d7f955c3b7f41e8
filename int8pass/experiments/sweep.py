"""Schemes x thresholds on a model and data of one's own: how far each takes the outputs from float, and its time.

Every candidate is compiled and runs as a user would run it; the times are taken interleaved with those of the float
model under the same lowering.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from int8pass.bench import machine
from int8pass.bench.measure import compiling, evicting
from int8pass.bench.timing import interleave, median, ratio
from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError, ConfigError
from int8pass.quantization.calibrate import calibrate
from int8pass.quantization.profile import Profile
from int8pass.quantization.scheme import SCHEMES, scheme_named
from int8pass.torch_private import tree_leaves

SCHEMA = "int8pass-sweep/2"
THRESHOLDS = (3.0, 6.0, 12.0)
ROUNDS = 5
FLOAT = "float"

Inputs = tuple[tuple, dict[str, Any]]  # args and kwargs of one call


@dataclass(frozen=True)
class Candidate:
    """threshold: None for a scheme without outlier branch. activations: "dynamic" or "static"."""

    scheme: str
    threshold: float | None = None
    activations: str = "dynamic"

    def __str__(self) -> str:
        threshold = "" if self.threshold is None else f", {self.threshold:g}"
        return f"{self.scheme}{threshold}{', static' if self.activations == 'static' else ''}"


@dataclass(frozen=True)
class SweepRow:
    """What a candidate did on all batches.

    relative_error: Frobenius norm of the outputs' difference over that of the float outputs; cosine_error: mean of
    1 - cosine over the vectors along the outputs' last dimension. time: over the float model's, median over rounds of
    the ratio; seconds: a pass over all batches, one a round.
    """

    scheme: str
    threshold: float | None
    activations: str
    relative_error: float
    cosine_error: float
    time: float
    seconds: tuple[float | None, ...]


@dataclass(frozen=True)
class Sweep:
    """rows: in the order of the candidates; float_seconds: of a pass of the float model, one a round."""

    rows: tuple[SweepRow, ...]
    float_seconds: tuple[float | None, ...]
    lowering: str
    machine: dict[str, Any]

    @property
    def float_time(self) -> float:
        """Median seconds of the float model for a pass over all batches."""
        return median(self.float_seconds)

    @property
    def best(self) -> tuple[SweepRow, ...]:
        """The rows that no other row beats in both time and cosine_error, fastest first."""
        ordered = sorted(self.rows, key=lambda row: (row.time, row.cosine_error))
        return tuple(
            row for place, row in enumerate(ordered)
            if all(row.cosine_error < faster.cosine_error for faster in ordered[:place])
        )  # fmt: skip

    def to_json(self) -> str:
        """JSON with a schema name; an error or time that is not finite is null."""
        document = {"schema": SCHEMA, **dataclasses.asdict(self)}
        for row in document["rows"]:
            for name in ("relative_error", "cosine_error", "time"):
                row[name] = row[name] if math.isfinite(row[name]) else None
        return json.dumps(document, indent=1, allow_nan=False)


def candidates(
    schemes: Sequence[str] | None = None, thresholds: Sequence[float] = THRESHOLDS, static: bool = False
) -> tuple[Candidate, ...]:
    """Each scheme (default: all named ones), those with an outlier branch at every threshold. Raises ConfigError.

    static: each with static activations too, after all with dynamic ones.
    """
    if not thresholds or not all(threshold > 0 for threshold in thresholds):
        raise ConfigError("thresholds must be above 0: without an outlier branch, 'llm.int8' is 'absmax-vectorwise'")
    chosen = [scheme_named(scheme) for scheme in schemes or SCHEMES]
    return tuple(
        Candidate(scheme.name, threshold, activations)
        for activations in (("dynamic", "static") if static else ("dynamic",))
        for scheme in chosen
        for threshold in (thresholds if scheme.decomposition else (None,))
    )


def run_sweep(
    model: nn.Module,
    batches: Iterable[Inputs],
    tried: Sequence[Candidate],
    config: Int8MixedConfig,
    rounds: int = ROUNDS,
    progress: Callable[[str], None] = lambda text: None,
    calibration: Iterable[Inputs] = (),
) -> Sweep:
    """Run every candidate on the batches. config: the options beside scheme and threshold, `lowering` among them.

    progress is told what was done: once a candidate, then once a round. calibration: other batches, whose ranges and
    outlier columns the candidates with static activations take. Raises CaptureError, ConfigError.
    """
    inputs = list(batches)
    if not inputs:
        raise ConfigError("there was no batch to run the model on")
    configs = _configs(model, config, tried, list(calibration))
    errors: dict[Candidate, dict[str, float]] = {}
    with compiling():
        reference = [_outputs(model(*args, **kwargs)) for args, kwargs in inputs]
        if not any(tensor.any() for tensor in itertools.chain(*reference)):
            raise CaptureError(
                "a sweep compares floating-point tensors that the model returns; here are none, or zeros"
            )
        compiled = {FLOAT: torch.compile(model) if config.lowering == "inductor" else model}
        _run(compiled[FLOAT], inputs)
        for candidate in tried:
            call = torch.compile(model, backend="int8mixed", options=_options(configs[candidate]))
            errors[candidate] = output_errors(reference, [_outputs(call(*args, **kwargs)) for args, kwargs in inputs])
            compiled[str(candidate)] = call
            progress(str(candidate))
        calls = {name: partial(_run, call, inputs) for name, call in compiled.items()}
        seconds = interleave(
            calls, rounds, before=evicting(), progress=lambda number: progress(f"timing, round {number}")
        )
    rows = tuple(
        SweepRow(**dataclasses.asdict(candidate), **errors[candidate], **_times(seconds, str(candidate)))
        for candidate in tried
    )
    return Sweep(rows, tuple(seconds[FLOAT]), config.lowering, machine.describe())


def _configs(
    model: nn.Module, config: Int8MixedConfig, tried: Sequence[Candidate], calibration: Sequence[Inputs]
) -> dict[Candidate, Int8MixedConfig]:
    """The options of each candidate; a profile serves all static ones of a threshold."""
    profiles: dict[float, Profile] = {}
    found = {}
    for candidate in tried:
        chosen = config.with_scheme(candidate.scheme, candidate.threshold)
        if candidate.activations == "static":
            if chosen.threshold not in profiles:
                profiles[chosen.threshold] = calibrate(model, calibration, options=chosen, progress=False)
            chosen = dataclasses.replace(chosen, activations="static", profile=profiles[chosen.threshold])
        found[candidate] = chosen
    return found


def _options(config: Int8MixedConfig) -> dict[str, Any]:
    return {option.name: getattr(config, option.name) for option in dataclasses.fields(config)}


def _times(seconds: dict[str, list[float | None]], name: str) -> dict[str, Any]:
    return {"time": ratio(seconds[name], seconds[FLOAT]), "seconds": tuple(seconds[name])}


def _run(call: Callable, inputs: Sequence[Inputs]) -> None:
    for args, kwargs in inputs:
        call(*args, **kwargs)


def _outputs(result: Any) -> list[Tensor]:
    """The floating-point tensors that a model returned."""
    leaves = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return [leaf.detach().clone() for leaf in leaves]


def output_errors(expected: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    """The relative error of all tensors together, and mean 1 - cosine of their rows, in float64."""
    signal = noise = distance = 0.0
    vectors = 0
    for reference, y in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
        reference, y = (torch.atleast_1d(tensor.double()) for tensor in (reference, y))
        signal += float(reference.square().sum())
        noise += float((y - reference).square().sum())
        directed = reference.norm(dim=-1) > 0  # a row of zeros has no direction
        cosine = nn.functional.cosine_similarity(y[directed], reference[directed], dim=-1)
        distance += float((1 - cosine).sum())
        vectors += cosine.numel()
    return {"relative_error": (noise / signal) ** 0.5, "cosine_error": distance / vectors}
