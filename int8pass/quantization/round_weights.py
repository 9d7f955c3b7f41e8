"""`round_weights`: better int8 weights from what the inputs look like, made one group of Linears after the other."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from int8pass.quantization.absmax import absmax_codes, absmax_scale
from int8pass.quantization.float_batches import FloatBatches, Key, LinearInput, shown
from int8pass.quantization.input_moments import InputMoments, moments_bytes
from int8pass.quantization.input_statistics import InputStatistics, columns_outside
from int8pass.quantization.migration import input_factor
from int8pass.quantization.rounded_weights import RoundedWeight, RoundedWeights, content_digest
from int8pass.quantization.rounding import compensated_codes

ROUNDINGS = ("nearest", "gptq")
SAMPLE_ROWS = 512  # of each input, to search its migration on
_COMPENSATED_SHARE = 0.25  # of the output error of rounding to nearest remains; MiniLM's measured share
_LARGEST_OUTLIER = 256  # times the largest weight of a row outside the outlier columns
LARGEST_MOMENTS = 2**30  # bytes held at a time; a single input may need more

Group = tuple[InputStatistics, ...]  # the Linears that read one and the same input


def round_weights(
    float_batches: FloatBatches,
    found: Mapping[Key, InputStatistics],
    columns: Mapping[Key, tuple[int, ...]],
    *,
    rounding: str,
    migration: bool,
    keeps_original: bool,
    progress: bool,
) -> RoundedWeights:
    """The int8 weights of the Linears that were found, whose outlier columns are `columns`.

    Runs over the batches once for as many inputs as have their moments within 1 GiB. rounding: of ROUNDINGS;
    migration: whether inputs get a factor; keeps_original: outliers are multiplied with float columns, so that scales
    need not cover these.
    """
    rows_a_batch = -(-SAMPLE_ROWS // float_batches.count)
    make = _Rounding(rounding, migration, keeps_original)
    rounded: dict[str, RoundedWeight] = {}
    parts = list(_parts(_groups(found)))
    for number, part in enumerate(parts, 1):
        moments = {
            group[0].key: InputMoments(columns_outside(group[0].shape[1], columns[group[0].key]), rows_a_batch)
            for group in part
        }
        _measure(float_batches, moments, f"calibrating: moments of the inputs, {number} of {len(parts)}", progress)
        for group in shown(part, f"rounding weights, {number} of {len(parts)}", progress):
            rounded |= make.weights(group, moments.pop(group[0].key), rounded.keys())
    return RoundedWeights(rounded)


def _groups(found: Mapping[Key, InputStatistics]) -> list[Group]:
    """Linears with a common input, in the order of their keys; one that shares it not always with the same, alone."""
    groups: dict[frozenset[Key], list[InputStatistics]] = {}
    for key, statistics in sorted(found.items()):
        sharers = statistics.sharers if _shares_alike(found, key) else {frozenset({key})}
        groups.setdefault(next(iter(sharers)), []).append(statistics)
    return [tuple(group) for group in groups.values()]


def _shares_alike(found: Mapping[Key, InputStatistics], key: Key) -> bool:
    """Whether a Linear's input is always that of the same Linears, and theirs is too."""
    (sharers, *others) = found[key].sharers
    return not others and all(found[each].sharers == {sharers} for each in sharers)


def _parts(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups in order, as many at a time as have their moments within the bound."""
    part: list[Group] = []
    held = 0
    for group in groups:
        needed = moments_bytes(group[0].shape[1])
        if part and held + needed > LARGEST_MOMENTS:
            yield part
            part, held = [], 0
        part.append(group)
        held += needed
    if part:
        yield part


def _measure(float_batches: FloatBatches, moments: Mapping[Key, InputMoments], doing: str, progress: bool) -> None:
    def observe(linear_input: LinearInput) -> None:
        if linear_input.key in moments:  # the first of its group; the others' inputs are the same
            moments[linear_input.key].add(linear_input.x)

    float_batches.run(observe, doing, progress)


@dataclass(frozen=True)
class _Rounding:
    """What is made of weights; see `round_weights`."""

    rounding: str
    migration: bool
    keeps_original: bool

    def weights(self, group: Group, moments: InputMoments, taken: Collection[str]) -> dict[str, RoundedWeight]:
        """By content digest, the weights of Linears with a common input. Weights that are not finite are left out.

        taken: digests of other inputs' weights. One that is equal to these is found by the same content, so it is
        rounded to nearest, with a scale over all columns, which holds for any input.
        """
        weights = [(statistics.source.name, weight) for statistics in group for weight in _weights(statistics)]
        factor = self._input_factor(group, [weight for _, weight in weights], moments)
        made = {content_digest(weight): self._rounded(name, weight, factor, moments) for name, weight in weights}
        for name, weight in weights:
            if (digest := content_digest(weight)) in taken:
                scale = absmax_scale(weight)
                made[digest] = RoundedWeight(name, absmax_codes(weight, scale), scale)
        return made

    def _input_factor(self, group: Group, weights: list[Tensor], moments: InputMoments) -> Tensor | None:
        """None too where one input would have several factors, and so be quantized several times."""
        all_readers = group[0].sharers == {frozenset(statistics.key for statistics in group)}
        if not self.migration or not weights or not all_readers:
            return None
        together = torch.cat([weight.float() for weight in weights])
        share = _COMPENSATED_SHARE if self.rounding == "gptq" else 1.0
        return input_factor(moments.sample, together, group[0].magnitudes, moments.kept, share)

    def _rounded(self, name: str, weight: Tensor, factor: Tensor | None, moments: InputMoments) -> RoundedWeight:
        gram = moments.gram
        if factor is not None:
            weight, gram = weight.float() / factor, gram * factor * factor.unsqueeze(1)
        scale = absmax_scale(weight)
        if self.keeps_original:
            # float16 columns in units of the scale (`kept_columns`) must not overflow
            scale = torch.maximum(absmax_scale(weight, ~moments.kept), scale / _LARGEST_OUTLIER)
        if self.rounding == "gptq":
            codes = compensated_codes(weight, scale, gram, moments.kept)
        else:
            codes = absmax_codes(weight, scale)
        return RoundedWeight(name, codes, scale, factor)


def _weights(statistics: InputStatistics) -> Iterator[Tensor]:
    """Each weight that Linears read of a parameter."""
    for expression in statistics.expressions.values():
        weight = expression.evaluate(statistics.source.tensor).detach().cpu()
        if bool(weight.isfinite().all()):
            yield weight
