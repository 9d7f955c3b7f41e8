"""`calibrate`: run a model in float on batches, and record which features of each Linear's input are outliers."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from int8pass.config import Int8MixedConfig
from int8pass.errors import ConfigError
from int8pass.quantization import observers
from int8pass.quantization.float_batches import FloatBatches, Key, LinearInput
from int8pass.quantization.input_statistics import InputStatistics, KeptHistogram, columns_outside
from int8pass.quantization.observers import OBSERVERS, Histogram
from int8pass.quantization.profile import Profile, ProfiledLayer, weight_fingerprint
from int8pass.quantization.round_weights import ROUNDINGS, round_weights


def calibrate(
    model_or_program: nn.Module | ExportedProgram,
    batches: Iterable[Any],
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    min_batches: int = 1,
    observer: str = "absmax",
    percentile: float = 99.99,
    rounding: str = "nearest",
    migration: bool = False,
    progress: bool = True,
) -> Profile:
    """Return a Profile of the model: for each Linear its outlier columns, and the range of its input outside of them.

    batches: what the model is called with: mappings of keyword arguments, tuples of arguments, pairs (arguments,
    keyword arguments), or single tensors.
    options: `threshold`, `outlier_weights` and what is skipped, as in Int8MixedConfig. A feature is an outlier column
    if |x| reaches the threshold in at least `min_batches` batches.
    observer: how far the range goes: "absmax", to the largest |x|; "percentile", to the magnitude that `percentile`
    percent of the values stay within; "mse" or "entropy", as far as costs the least squared error or information.
    rounding: "nearest", or "gptq", int8 weights whose rounding errors make up for each other on these inputs: the
    profile holds them.
    migration: let features of the inputs give some of their scale to the weights, where int8 gains by it.
    All but "absmax", "nearest" and False run more than once over the batches, so these cannot be a generator.
    progress: a bar on standard error. The model computes in float and is not changed.
    Raises CaptureError, ConfigError.
    """
    config = Int8MixedConfig.from_options(options, break_even="off")  # a profile is for any machine
    _check(config, min_batches, observer, percentile, rounding, migration)
    float_batches = FloatBatches(model_or_program, batches, config)
    _check_runs(float_batches, observer, rounding, migration)
    with float_batches.captured():
        found, count = _statistics(float_batches, config.threshold, progress)
        columns = {key: statistics.outlier_columns(min_batches) for key, statistics in found.items()}
        ranges = {key: statistics.range(columns[key]) for key, statistics in found.items()}
        if observer != "absmax":
            find_limit = functools.partial(observers.limit, observer, percent=percentile)
            ranges = _clipped(float_batches, columns, ranges, find_limit, progress)
        rounded = None
        if rounding != "nearest" or migration:
            rounded = round_weights(
                float_batches,
                found,
                columns,
                rounding=rounding,
                migration=migration,
                keeps_original=config.keeps_original_weights,
                progress=progress,
            )
    layers = tuple(
        ProfiledLayer(
            weight=statistics.source.name,
            shape=statistics.shape,
            absmax=statistics.absmax,
            outlier_columns=columns[key],
            fingerprint=weight_fingerprint(statistics.source.tensor),
            minimum=ranges[key][0],
            maximum=ranges[key][1],
        )
        for key, statistics in found.items()
    )
    outlier_weights = "original" if config.keeps_original_weights else "dequantized"
    return Profile(layers, config.threshold, count, observer, rounded, outlier_weights)


def _check(
    config: Int8MixedConfig, min_batches: int, observer: str, percentile: float, rounding: str, migration: bool
) -> None:
    if config.profile is not None:
        raise ConfigError("calibrate makes a profile; leave 'profile' out of its options")
    if not isinstance(min_batches, int) or min_batches < 1:
        raise ConfigError(f"min_batches must be a positive int, not {min_batches!r}")
    if observer not in OBSERVERS:
        raise ConfigError(f"observer must be one of {OBSERVERS}, not {observer!r}")
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 0 < percentile <= 100:
        raise ConfigError(f"percentile must be a number above 0 and at most 100, not {percentile!r}")
    if rounding not in ROUNDINGS:
        raise ConfigError(f"rounding must be one of {ROUNDINGS}, not {rounding!r}")
    if not isinstance(migration, bool):
        raise ConfigError(f"migration must be True or False, not {migration!r}")


def _check_runs(float_batches: FloatBatches, observer: str, rounding: str, migration: bool) -> None:
    again = [f"observer={observer!r}"] if observer != "absmax" else []
    again += [f"rounding={rounding!r}"] if rounding != "nearest" else []
    again += ["migration=True"] if migration else []
    if again and not float_batches.can_run_again:
        raise ConfigError(
            f"{' and '.join(again)} read the batches more than once: pass a list, or anything but an iterator"
        )


def _statistics(
    float_batches: FloatBatches, threshold: float, progress: bool
) -> tuple[dict[Key, InputStatistics], int]:
    """By weight and K what was met, and how many batches there were. Raises ConfigError for none."""
    found: dict[Key, InputStatistics] = {}

    def observe(shown: LinearInput) -> None:
        if shown.key not in found:
            found[shown.key] = InputStatistics.empty(shown)
        found[shown.key].add(shown, threshold, float_batches.count)

    count = float_batches.run(observe, "calibrating: outlier columns and ranges", progress)
    if not count:
        raise ConfigError("there was no batch to calibrate on")
    return found, count


def _clipped(
    float_batches: FloatBatches,
    columns: Mapping[Key, tuple[int, ...]],
    ranges: Mapping[Key, tuple[float, float]],
    find_limit: Callable[[Histogram], float],
    progress: bool,
) -> dict[Key, tuple[float, float]]:
    """The ranges, cut off where the observer puts the limit."""
    histograms = {
        key: KeptHistogram(columns_outside(key[1], columns[key]), Histogram(max(map(abs, ranges[key]))))
        for key in ranges
    }

    def observe(shown: LinearInput) -> None:
        if shown.key in histograms:  # control flow may differ from run to run
            histograms[shown.key].add(shown.x)

    float_batches.run(observe, "calibrating: histograms", progress)
    limits = {key: find_limit(kept.histogram) for key, kept in histograms.items()}
    return {key: (max(low, -limits[key]), min(high, limits[key])) for key, (low, high) in ranges.items()}
