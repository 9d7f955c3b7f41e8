"""`debug`: which layer takes a model away from its float results in int8, what would repair it, and what to skip."""

import dataclasses
import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError
from int8pass.inspection.compiled_run import run_compiled
from int8pass.inspection.diagnosis import Diagnosis, LayerError, Repair, first_that_helps, known, suspect_of
from int8pass.inspection.explain import missed_columns
from int8pass.inspection.float_run import FloatRuns, LinearCall, float_runs, without_free
from int8pass.inspection.observation import decibels
from int8pass.inspection.weight_facts import WeightFacts, unusual, weight_facts
from int8pass.quantization.scheme import SCHEMES, Scheme
from int8pass.torch_private import tree_leaves

HIDDEN_DB = 5.0  # what the largest columns, taken as outliers, must gain to be called hidden outliers
THRESHOLDS = (6.0, 4.0, 3.0, 2.0, 1.0)
_MISSED_SHOWN = 8

Progress = Callable[[str], None]
Candidates = Callable[[Int8MixedConfig], Iterator[tuple[str, Any]]]


def diagnose(
    model_or_program: nn.Module | ExportedProgram,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    wanted_db: float | None = None,
    compiled: bool = True,
    progress: Progress = lambda text: None,
) -> Diagnosis:
    """Run a model in float, in int8, and with one layer at a time in int8, and compare the results.

    Takes about two runs more than the model has layers, and holds the float output of every Linear of one run. Those
    runs are op by op; with `compiled`, and unless lowering is "eager", the model is also compiled and run once.
    progress is told what is going on. Raises CaptureError, ConfigError, ProfileError, CompilerNotFoundError.
    """
    config = without_free(Int8MixedConfig.from_options(options))
    with float_runs(model_or_program, args, kwargs, config) as runs:
        doctor = Doctor(runs, config, progress)
        found = doctor.diagnosis(wanted_db)
    if not compiled or config.lowering == "eager":
        return found
    progress("compiled")
    return doctor.with_compiled(found, *run_compiled(model_or_program, args, kwargs, config))


class Doctor:
    """Runs of one model that are compared with its first, in float. candidates: the options that are tried."""

    def __init__(
        self, runs: FloatRuns, config: Int8MixedConfig, progress: Progress, candidates: Candidates | None = None
    ) -> None:
        self._candidates = candidates or option_candidates
        self._runs, self._config, self._progress = runs, config, progress
        self._float: list[tuple[str, Tensor]] = []  # every Linear's module and output, in the order of the run
        self._own: dict[str, list[float | None]] = {}
        self._facts: dict[str, WeightFacts] = {}
        self._hidden: dict[str, str] = {}
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
            sentence = strange[module].sentence if module in strange else self._hidden.get(module, "")
            layers.append(LayerError(module, _worst(own), _worst(running[module]), alone, sentence))
        suspect, why = suspect_of(layers, strange)
        repairs = tuple(self._repairs(suspect)) if suspect else ()
        found = Diagnosis(
            tuple(layers), total, suspect, why, repairs, first_that_helps(layers, suspect, repairs, total)
        )
        ranked = [layer.module for layer in sorted(layers, key=lambda layer: known(layer.alone_db))]
        return found if wanted_db is None else self._with_proposal(found, ranked, wanted_db)

    def with_compiled(self, found: Diagnosis, output: Any, linears: list[tuple[str, Tensor]]) -> Diagnosis:
        """The diagnosis with the errors of a compiled run: of its output, and of its Linears."""
        expected = _by_module(self._float)
        ratios = {
            module: _worst([_ratio(*pair) for pair in zip(expected[module], found_there, strict=True)])
            for module, found_there in _by_module(linears).items()
        }
        layers = tuple(dataclasses.replace(each, compiled_db=ratios.get(each.module)) for each in found.layers)
        return dataclasses.replace(found, layers=layers, compiled_db=self._against_float(output))

    @property
    def modules(self) -> list[str]:
        """The module of each Linear that has an int8 form, one a call, in the order of the run."""
        return [module for module, _ in self._float]

    def returns_like(self, output: Any) -> bool:
        """Whether tensors of the same shapes are returned by the float model."""
        return [each.shape for each in _floating(output)] == [each.shape for each in self._output]

    def _record(self, call: LinearCall) -> Tensor:
        y = call.int8()
        if y is not None:
            module = _module(call)
            self._float.append((module, call.y.clone()))
            self._own.setdefault(module, []).append(_ratio(call.y, y))
            if sentence := _hidden_outliers(call, self._config, y):
                self._hidden[module] = sentence
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
            y = call.y if module in in_float else call.int8(config)
            self._running.setdefault(module, []).append(_ratio(self._float[place][1], y))
            place += 1
            return y

        return self._against_float(self._runs.run(at_linear))

    def _against_float(self, output: Any) -> float | None:
        """What the model returned, in dB: of several tensors, the mean of their relative errors."""
        shares = [_share(expected, found) for expected, found in zip(self._output, _floating(output), strict=True)]
        known = [share for share in shares if share is not None]
        return decibels(1.0, sum(known) / len(known)) if known else None

    def _repairs(self, suspect: LayerError) -> Iterator[Repair]:
        """What might help the suspect, mildest first; last, to leave it in float."""
        candidates = list(self._candidates(self._config))
        configs = [_changed(self._config, option, value) for option, value in candidates]
        own = self._own_under(suspect.module, configs)
        for (option, value), config, ratio in zip(candidates, configs, own, strict=True):
            self._progress(f"with {option}={value!r}")
            yield Repair(option, value, ratio, self._total((), config))
        yield Repair("skip_modules", (suspect.module,), math.inf, self._total((suspect.module,)))

    def _own_under(self, module: str, configs: list[Int8MixedConfig]) -> list[float | None]:
        """The own error of a module's Linears under other options."""
        found: list[list[float | None]] = [[] for _ in configs]

        def at_linear(call: LinearCall) -> Tensor:
            if _module(call) == module and call.int8() is not None:
                for ratios, config in zip(found, configs, strict=True):
                    ratios.append(_ratio(call.y, call.int8(config)))
            return call.y

        self._runs.run(at_linear)
        return [_worst(ratios) for ratios in found]

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
            low, high = (low, middle) if known(total(middle)) >= wanted else (middle + 1, high)
        skipped = tuple(ranked[:low])
        return dataclasses.replace(found, wanted_db=wanted, skip_modules=skipped, reached_db=total(low))


def option_candidates(config: Int8MixedConfig) -> Iterator[tuple[str, Any]]:
    """Options that might repair a layer, with their values, mildest first."""
    if not config.keeps_original_weights and config.threshold:
        yield "outlier_weights", "original"
    if config.profile is not None:
        if config.activations == "static" and config.scheme.decomposition:
            yield "activations", "dynamic"
        yield "profile", None
        return
    if config.outliers == "token" and config.threshold:
        yield "outliers", "column"
    if not config.scheme.decomposition:
        yield "scheme", _with_decomposition(config.scheme)
        return
    for threshold in THRESHOLDS:
        if config.threshold == 0.0 or threshold < config.threshold:
            yield "threshold", threshold


def _with_decomposition(scheme: Scheme) -> str:
    symmetric = scheme.activations.symmetric
    return next(
        each.name for each in SCHEMES.values() if each.decomposition and each.activations.symmetric == symmetric
    )


def _changed(config: Int8MixedConfig, option: str, value: Any) -> Int8MixedConfig:
    if option == "scheme":
        return config.with_scheme(value)
    return _without_profile(config) if option == "profile" else dataclasses.replace(config, **{option: value})


def _without_profile(config: Int8MixedConfig) -> Int8MixedConfig:
    return dataclasses.replace(config, profile=None, activations="dynamic")


def _hidden_outliers(call: LinearCall, config: Int8MixedConfig, y: Tensor) -> str:
    """In a sentence, what it would gain if the largest hundredth of its input columns were outliers; "" if little.

    y: its output under `config`.
    """
    if not config.scheme.decomposition:
        return ""
    if config.profile is not None:
        return _missed_outliers(call, config, y)
    peaks = call.x.reshape(-1, call.x.shape[-1]).abs().amax(0).float().sort(descending=True).values
    threshold = float(peaks[max(len(peaks) // 100, 1) - 1])
    if not 0.0 < threshold < (config.threshold or math.inf):
        return ""
    better = call.int8(dataclasses.replace(config, threshold=threshold))
    gain = known(_ratio(call.y, better)) - known(_ratio(call.y, y))
    if not gain >= HIDDEN_DB:
        return ""
    return (
        f"its outliers are under the threshold: with columns from |x| >= {threshold:.2g} on as outliers its own error "
        f"would be {gain:.1f} dB smaller"
    )


def _missed_outliers(call: LinearCall, config: Int8MixedConfig, y: Tensor) -> str:
    """In a sentence, what it would gain if the columns that the profile misses were outliers; "" if little."""
    missed = missed_columns(call, config)
    if not missed:
        return ""
    gain = known(_ratio(call.y, call.int8(_without_profile(config)))) - known(_ratio(call.y, y))
    if not gain >= HIDDEN_DB:
        return ""
    return (
        f"the profile misses outlier columns of it, {', '.join(map(str, missed[:_MISSED_SHOWN]))}: with them its own "
        f"error would be {gain:.1f} dB smaller; calibrate on inputs like these too"
    )


def _by_module(linears: list[tuple[str, Tensor]]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for module, y in linears:
        found.setdefault(module, []).append(y)
    return found


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


def _worst(values: list[float | None]) -> float | None:
    return min(values, key=known)
