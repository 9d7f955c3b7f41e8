"""`debug`: which layer takes a model away from its float results in int8, what would repair it, and what to skip."""

import dataclasses
import json
import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError
from int8pass.inspection.float_run import FloatRuns, LinearCall, float_runs
from int8pass.inspection.observation import decibels
from int8pass.inspection.weight_facts import Unusual, WeightFacts, unusual, weight_facts
from int8pass.torch_private import tree_leaves

SCHEMA_VERSION = 1
STANDS_OUT_DB = 10.0  # worse by this much than the middle layer
REPAIRED_DB = 1.0  # an option repairs a layer if the output comes this near to that with the layer in float
THRESHOLDS = (6.0, 4.0, 3.0, 2.0, 1.0)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerError:
    """Signal-to-noise ratios in dB, against float; inf where there is no error, None where there is no signal.

    module: whose Linears these are. own_db: of their outputs on float inputs (teacher-forced), the worst of several;
    running_db: on the inputs that the int8 model gives them (free-running); alone_db: of the model's output with these
    Linears in int8 and all others in float. unusual: what is wrong with the weight itself, "" for nothing.
    """

    module: str
    own_db: float | None
    running_db: float | None
    alone_db: float | None
    unusual: str = ""


@dataclass(frozen=True)
class Repair:
    """An option of Int8MixedConfig for the whole model, and what the model's output is with it, in dB."""

    option: str
    value: Any
    total_db: float | None

    def __str__(self) -> str:
        return f"{self.option}={list(self.value) if isinstance(self.value, tuple) else self.value!r}"


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. layers: in the order in which they run; total_db: of the model's output, all in int8.

    suspect: the layer to look at, and why: its weight is unusual, or its own error is far above the others', or it is
    what takes most from the output. repairs: what was tried; repair: the first that is about as good as leaving the
    suspect in float, None where even that gives less than 1 dB.
    wanted_db: the output asked for; skip_modules: the fewest layers, worst first, that reach it; reached_db: what they
    give.
    """

    layers: tuple[LayerError, ...]
    total_db: float | None
    suspect: LayerError | None
    why: str
    repairs: tuple[Repair, ...]
    repair: Repair | None
    wanted_db: float | None = None
    skip_modules: tuple[str, ...] = ()
    reached_db: float | None = None

    def to_json(self) -> str:
        """JSON with a schema version. An infinite ratio (no error at all) is null."""
        return json.dumps({"schema": SCHEMA_VERSION, **_without_infinity(dataclasses.asdict(self))}, indent=2)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def diagnose(
    model_or_program: nn.Module | ExportedProgram,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    wanted_db: float | None = None,
    progress: Progress = lambda text: None,
) -> Diagnosis:
    """Run a model in float, in int8, and with one layer at a time in int8, and compare the results.

    Takes about two runs more than the model has layers, and holds the float output of every Linear of one run.
    progress is told what is going on. Raises CaptureError, ConfigError.
    """
    config = Int8MixedConfig.from_options(options)
    with float_runs(model_or_program, args, kwargs, config) as runs:
        return _Doctor(runs, config, progress).diagnosis(wanted_db)


class _Doctor:
    """Runs of one model that are compared with its first, in float."""

    def __init__(self, runs: FloatRuns, config: Int8MixedConfig, progress: Progress) -> None:
        self._runs, self._config, self._progress = runs, config, progress
        self._float: list[tuple[str, Tensor]] = []  # every Linear's module and output, in the order of the run
        self._own: dict[str, list[float | None]] = {}
        self._facts: dict[str, WeightFacts] = {}
        progress("in float")
        self._output = _floating(runs.run(self._record))
        if not self._output:
            raise CaptureError("debug compares what the model returns, and it returns no floating-point tensors")

    def diagnosis(self, wanted_db: float | None) -> Diagnosis:
        total, running = self._total(()), self._running
        strange = unusual(self._facts)
        layers = []
        for number, (module, own) in enumerate(self._own.items()):
            self._progress(f"layer {number + 1} of {len(self._own)} alone")
            alone = self._total(self._own.keys() - {module})
            sentence = strange[module].sentence if module in strange else ""
            layers.append(LayerError(module, _worst(own), _worst(running[module]), alone, sentence))
        suspect, why = _suspect(layers, strange)
        repairs = tuple(self._repairs(suspect)) if suspect else ()
        found = Diagnosis(tuple(layers), total, suspect, why, repairs, _first_that_helps(repairs, total))
        ranked = [layer.module for layer in sorted(layers, key=lambda layer: _known(layer.alone_db))]
        return found if wanted_db is None else self._with_proposal(found, ranked, wanted_db)

    def _record(self, call: LinearCall) -> Tensor:
        y = call.int8()
        if y is not None:
            module = _module(call)
            self._float.append((module, call.y.clone()))
            self._own.setdefault(module, []).append(_ratio(call.y, y))
            if module not in self._facts:
                self._facts[module] = weight_facts(call.weight, call.graph.program.quantized(call.expression))
        return call.y

    def _total(self, in_float: Container[str], config: Int8MixedConfig | None = None) -> float | None:
        """The output in int8 against float, in dB, with some modules left in float."""
        place = 0
        self._running: dict[str, list[float | None]] = {}

        def at_linear(call: LinearCall) -> Tensor:
            nonlocal place
            module = _module(call)
            if module not in self._own:
                return call.y
            y = call.y if module in in_float else call.int8(config or self._config)
            self._running.setdefault(module, []).append(_ratio(self._float[place][1], y))
            place += 1
            return y

        output = _floating(self._runs.run(at_linear))
        shares = [_share(expected, found) for expected, found in zip(self._output, output, strict=True)]
        known = [share for share in shares if share is not None]
        return decibels(1.0, sum(known) / len(known)) if known else None

    def _repairs(self, suspect: LayerError) -> Iterator[Repair]:
        """What might help the suspect, mildest first; last, to leave it in float."""
        for option, value in _candidates(self._config):
            self._progress(f"with {option}={value!r}")
            config = dataclasses.replace(self._config, **{option: value})
            yield Repair(option, value, self._total((), config))
        yield Repair("skip_modules", (suspect.module,), self._total((suspect.module,)))

    def _with_proposal(self, found: Diagnosis, ranked: list[str], wanted: float) -> Diagnosis:
        """The shortest head of the ranked layers whose being left in float reaches the wanted output."""
        low, high = 0, len(ranked)
        totals = {0: found.total_db}

        def total(count: int) -> float | None:
            if count not in totals:
                self._progress(f"with {count} layers in float")
                totals[count] = self._total(ranked[:count])
            return totals[count]

        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _known(total(middle)) >= wanted else (middle + 1, high)
        skipped = tuple(ranked[:low])
        return dataclasses.replace(found, wanted_db=wanted, skip_modules=skipped, reached_db=total(low))


def _candidates(config: Int8MixedConfig) -> Iterator[tuple[str, Any]]:
    if not config.keeps_original_weights and config.threshold:
        yield "outlier_weights", "original"
    if config.outliers == "token" and config.threshold:
        yield "outliers", "column"
    for threshold in THRESHOLDS:
        if config.threshold == 0.0 or threshold < config.threshold:
            yield "threshold", threshold


def _module(call: LinearCall) -> str:
    return call.graph.program.tensors[call.expression.root].module


def _floating(output: Any) -> list[Tensor]:
    leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return [leaf.detach().clone() for leaf in leaves]


def _energies(expected: Tensor, found: Tensor) -> tuple[float, float]:
    difference = expected.double() - found.double()
    return float(expected.double().square().sum()), float(difference.square().sum())


def _ratio(expected: Tensor, found: Tensor) -> float | None:
    return decibels(*_energies(expected, found))


def _share(expected: Tensor, found: Tensor) -> float | None:
    """Error energy over signal energy; None without signal."""
    signal, noise = _energies(expected, found)
    return noise / signal if signal else None


def _known(value: float | None) -> float:
    """A ratio to compare with: NaN (an output that is NaN) is the worst, None (no signal to lose) the best."""
    return math.inf if value is None else -math.inf if math.isnan(value) else value


def _worst(values: list[float | None]) -> float | None:
    return min(values, key=_known)


def _suspect(layers: list[LayerError], strange: Mapping[str, Unusual]) -> tuple[LayerError | None, str]:
    """The layer to look at first, and why."""
    if not layers:
        return None, ""
    strangest = max(layers, key=lambda layer: strange[layer.module].factor if layer.unusual else 0.0)
    if strangest.unusual and math.isinf(strange[strangest.module].factor):
        return strangest, strangest.unusual
    worst = min(layers, key=lambda layer: _known(layer.own_db))
    if _stands_out([layer.own_db for layer in layers]):
        return worst, f"its own error stands out: {_text(worst.own_db)} dB, on the inputs that it has in float"
    if strangest.unusual:
        return strangest, strangest.unusual
    found = min(layers, key=lambda layer: _known(layer.alone_db))
    how = "far more than others" if _stands_out([layer.alone_db for layer in layers]) else "if not far more than others"
    return found, f"in int8 alone it takes most from the output, {how}: {_text(found.alone_db)} dB"


def _stands_out(ratios: list[float | None]) -> bool:
    known = sorted(map(_known, ratios))
    return len(known) > 2 and known[0] <= known[len(known) // 2] - STANDS_OUT_DB


def _first_that_helps(repairs: tuple[Repair, ...], total: float | None) -> Repair | None:
    """The first that comes near to the last, which leaves the suspect in float; None where that does not help."""
    if not repairs or _known(repairs[-1].total_db) < _known(total) + REPAIRED_DB:
        return None
    enough = _known(repairs[-1].total_db) - REPAIRED_DB
    return next(repair for repair in repairs if _known(repair.total_db) >= enough)


def _without_infinity(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _without_infinity(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_without_infinity(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def _lines(found: Diagnosis) -> Iterator[str]:
    width = max([len("layer"), *(len(layer.module) for layer in found.layers)])
    yield f"{'layer':{width}}  {'own dB':>8}  {'running dB':>10}  {'output dB, alone':>16}"
    for layer in found.layers:
        own, running, alone = map(_text, (layer.own_db, layer.running_db, layer.alone_db))
        yield f"{layer.module or '(root)':{width}}  {own:>8}  {running:>10}  {alone:>16}"
    yield ""
    yield f"the model's output in int8: {_text(found.total_db)} dB"
    if found.suspect is None:
        yield "no layer was rewritten"
        return
    yield f"look at {found.suspect.module or '(root)'}: {found.why}"
    yield from (f"    {_text(repair.total_db):>6} dB with {repair}" for repair in found.repairs)
    if found.repair is None:
        yield "no option repairs it: in float too it leaves the output as it is, so the error comes in elsewhere"
    else:
        yield f"would repair it: {found.repair}"
    if found.wanted_db is not None:
        yield from _proposal(found)


def _proposal(found: Diagnosis) -> Iterator[str]:
    if not found.skip_modules:
        yield f"for {found.wanted_db:g} dB nothing needs to be skipped"
        return
    names = list(found.skip_modules)
    yield f"for {found.wanted_db:g} dB: skip_modules={names}, which gives {_text(found.reached_db)} dB"


def _text(value: float | None) -> str:
    return "-" if value is None else "exact" if value == math.inf else f"{value:.1f}"
