"""What is unusual about a Linear's weight, apart from any input: its size, single huge values, a stale int8 form."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from int8pass.inspection.observation import decibels
from int8pass.quantization.groups import scale_of_each
from int8pass.weights import QuantizedWeight

STALE_DB = 15.0  # int8 rounding alone leaves 30 dB and more
LARGER = 30.0  # times the middle layer's root mean square
LONELIER = 100.0  # times the middle layer's ratio of a row's largest value to the rest of the row


@dataclass(frozen=True)
class WeightFacts:
    """rms: root mean square of W [N, K]; int8_db: signal-to-noise ratio of the int8 form against it.

    peak: the largest ratio, over the rows, of the largest |w| to the root mean square of the rest of its row; row,
    column: where that is.
    """

    rms: float
    int8_db: float | None
    peak: float
    row: int
    column: int


def weight_facts(weight: Tensor, quantized: QuantizedWeight) -> WeightFacts:
    """weight: floating [N, K]; quantized: the int8 form that a compiled model would use."""
    rows = weight.detach().to(torch.float64)
    restored = quantized.codes.to(torch.float64) * scale_of_each(quantized.scale, weight.shape[1]).double()
    if quantized.input_factor is not None:
        restored *= quantized.input_factor  # the codes are those of the weight divided by it
    squares = rows.square()
    largest, columns = squares.max(dim=1)
    rest = (squares.sum(1) - largest).clamp_min(0.0) / max(weight.shape[1] - 1, 1)
    peaks = (largest / rest.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    row = int(peaks.argmax())
    return WeightFacts(
        rms=float(squares.mean().sqrt()),
        int8_db=decibels(float(squares.sum()), float((rows - restored).square().sum())),
        peak=float(peaks[row]),
        row=row,
        column=int(columns[row]),
    )


@dataclass(frozen=True)
class Unusual:
    """What is wrong with a weight, in a sentence. factor: how many times over the limit, to compare layers by."""

    sentence: str
    factor: float


def unusual(facts: Mapping[str, WeightFacts]) -> dict[str, Unusual]:
    """By layer, what is unusual about its weight among those of all layers."""
    middle_rms = statistics.median(fact.rms for fact in facts.values()) if facts else 0.0
    middle_peak = statistics.median(fact.peak for fact in facts.values()) if facts else 0.0
    found = {layer: _unusual(fact, middle_rms, middle_peak) for layer, fact in facts.items()}
    return {layer: what for layer, what in found.items() if what is not None}


def _unusual(fact: WeightFacts, middle_rms: float, middle_peak: float) -> Unusual | None:
    if fact.int8_db is not None and fact.int8_db < STALE_DB:
        return Unusual(
            f"its int8 weight is not that of its float weight ({fact.int8_db:.1f} dB): changed where it cannot be "
            "noticed? int8pass.requantize(model)",
            math.inf,
        )
    larger, lonelier = fact.rms / (middle_rms or math.inf), fact.peak / (middle_peak or math.inf)
    if larger > LARGER and larger / LARGER >= lonelier / LONELIER:
        return Unusual(f"its weights are {larger:.0f} times as large as the middle layer's", larger / LARGER)
    if lonelier > LONELIER:
        return Unusual(
            f"weight [{fact.row}, {fact.column}] is {fact.peak:.0f} times the rest of its row, and takes the int8 "
            "levels of that row",
            lonelier / LONELIER,
        )
    return None
