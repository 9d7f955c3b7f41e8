"""What `debug` found: errors of the layers, the layer to look at, repairs, a proposal; as text and as JSON."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from int8pass.inspection.weight_facts import Unusual

SCHEMA_VERSION = 2
STANDS_OUT_DB = 10.0  # worse by this much than the middle layer
WORSE_DB = 3.0  # the own error of a layer that needs repair, against the middle layer's
REPAIRED_DB = 1.0  # outputs that differ by less are as good as each other


@dataclass(frozen=True)
class LayerError:
    """Signal-to-noise ratios in dB, against float; inf where there is no error, None where there is no signal.

    module: whose Linears these are. own_db: of their outputs on float inputs (teacher-forced), the worst of several;
    running_db: on the inputs that the int8 model gives them (free-running); alone_db: of the model's output with these
    Linears in int8 and all others in float. unusual: what is wrong with its weight or its inputs, "" for nothing.
    compiled_db: as running_db, in the compiled model; None where that was not run.
    """

    module: str
    own_db: float | None
    running_db: float | None
    alone_db: float | None
    unusual: str = ""
    compiled_db: float | None = None


@dataclass(frozen=True)
class Repair:
    """An option of Int8MixedConfig for the whole model; with it, the suspect's own error and the output, in dB."""

    option: str
    value: Any
    own_db: float | None
    total_db: float | None

    def __str__(self) -> str:
        return f"{self.option}={list(self.value) if isinstance(self.value, tuple) else self.value!r}"


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. layers: in the order in which they run; total_db: of the model's output, all in int8.

    suspect: the layer to look at, and why: its weight is unusual, or its own error is far above the others', or it is
    what takes most from the output. repairs: what was tried; repair: the first that is about as good as leaving the
    suspect in float, None where even that does not help.
    compiled_db: of the compiled model's output, None where it was not run. file: of a diagnosis of an ONNX file, its
    name; what the compiled model is for another, the whole file in ONNX Runtime is there.
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
    compiled_db: float | None = None
    file: str = ""

    @property
    def leaves_when_compiled(self) -> bool:
        """Whether the compiled model's output is further from that of its ops than rounding explains."""
        return self.compiled_db is not None and abs(known(self.compiled_db) - known(self.total_db)) > REPAIRED_DB

    @property
    def leaves_at(self) -> LayerError | None:
        """The first layer that is so much worse in the compiled model than op by op."""
        worse = (
            layer
            for layer in self.layers
            if layer.compiled_db is not None and known(layer.compiled_db) < known(layer.running_db) - REPAIRED_DB
        )
        return next(worse, None)

    def to_json(self) -> str:
        """JSON with a schema version. An infinite ratio (no error at all) is null."""
        return json.dumps({"schema": SCHEMA_VERSION, **_without_infinity(dataclasses.asdict(self))}, indent=2)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def suspect_of(layers: list[LayerError], strange: Mapping[str, Unusual]) -> tuple[LayerError | None, str]:
    """The layer to look at first, and why."""
    if not layers:
        return None, ""
    if strange:
        found = max(
            (layer for layer in layers if layer.module in strange), key=lambda layer: strange[layer.module].factor
        )
        return found, found.unusual
    worst = min(layers, key=lambda layer: known(layer.own_db))
    if _stands_out([layer.own_db for layer in layers]):
        own = f"its own error stands out: {_text(worst.own_db)} dB, on the inputs that it has in float"
        return worst, "; ".join(filter(None, (own, worst.unusual)))
    hidden = [layer for layer in layers if layer.unusual]
    if hidden:
        found = min(hidden, key=lambda layer: known(layer.alone_db))
        return found, found.unusual
    found = min(layers, key=lambda layer: known(layer.alone_db))
    how = "far more than others" if _stands_out([layer.alone_db for layer in layers]) else "if not far more than others"
    return found, f"in int8 alone it takes most from the output, {how}: {_text(found.alone_db)} dB"


def _stands_out(ratios: list[float | None]) -> bool:
    ordered = sorted(map(known, ratios))
    return len(ordered) > 2 and ordered[0] <= ordered[len(ordered) // 2] - STANDS_OUT_DB


def first_that_helps(
    layers: list[LayerError], suspect: LayerError | None, repairs: tuple[Repair, ...], total: float | None
) -> Repair | None:
    """The first repair that is good enough; None where even leaving the suspect in float does not help.

    A suspect whose own error is worse than the middle layer's needs to become as good as that, and the output no worse.
    Otherwise the output has to come near to what it is with the suspect in float.
    """
    if suspect is None:
        return None
    middle = sorted(known(layer.own_db) for layer in layers)[len(layers) // 2]
    if known(suspect.own_db) < middle - WORSE_DB:
        good = (each for each in repairs if known(each.own_db) >= middle - WORSE_DB)
        return next((each for each in good if known(each.total_db) >= known(total) - REPAIRED_DB), None)
    in_float = known(repairs[-1].total_db)
    if in_float < known(total) + REPAIRED_DB:
        return None
    return next(repair for repair in repairs if known(repair.total_db) >= in_float - REPAIRED_DB)


def known(value: float | None) -> float:
    """A ratio to compare with: NaN (an output that is NaN) is the worst, None (no signal to lose) the best."""
    return math.inf if value is None else -math.inf if math.isnan(value) else value


def _without_infinity(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _without_infinity(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_without_infinity(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def _lines(found: Diagnosis) -> Iterator[str]:
    width = max([len("layer"), *(len(layer.module) for layer in found.layers)])
    was_compiled = found.compiled_db is not None
    heading = f"  {'file dB' if found.file else 'compiled dB':>11}" if was_compiled else ""
    yield f"{'layer':{width}}  {'own dB':>8}  {'running dB':>10}{heading}  {'output dB, alone':>16}"
    for layer in found.layers:
        own, running, alone = map(_text, (layer.own_db, layer.running_db, layer.alone_db))
        compiled = f"  {_text(layer.compiled_db):>11}" if was_compiled else ""
        yield f"{layer.module or '(root)':{width}}  {own:>8}  {running:>10}{compiled}  {alone:>16}"
    yield ""
    whole = "the whole file in ONNX Runtime" if found.file else "compiled"
    compiled = f"; {whole}: {_text(found.compiled_db)} dB" if was_compiled else ""
    each = "Linear by Linear" if found.file else "op by op"
    yield f"the model's output in int8, {each}: {_text(found.total_db)} dB{compiled}"
    if found.leaves_when_compiled:
        yield _leaving(found)
    if found.suspect is None:
        yield "no layer was rewritten"
        return
    most = min(found.layers, key=lambda layer: known(layer.alone_db))
    yield f"it loses most to {most.module or '(root)'}: {_text(most.alone_db)} dB with that layer alone in int8"
    yield f"look at {found.suspect.module or '(root)'}: {found.why}"
    yield from (
        f"also {each.module}: {each.unusual}" for each in found.layers if each.unusual and each != found.suspect
    )
    for repair in found.repairs:
        yield f"    with {repair}: {_text(repair.own_db)} dB there, {_text(repair.total_db)} dB in all"
    if found.repair is None:
        yield "no option repairs it: in float too it leaves the output as it is, so the error comes in elsewhere"
    else:
        yield f"would repair it: {found.repair}"
    if found.wanted_db is not None:
        yield from _proposal(found)


def _leaving(found: Diagnosis) -> str:
    layer = found.leaves_at
    if layer is None:
        place = "after the last Linear, or between Linears"
    else:
        place = (
            f"before or in {layer.module or '(root)'} ({_text(layer.compiled_db)} dB, not {_text(layer.running_db)})"
        )
    if found.file:
        return (
            f"the whole file differs from its Linears in the float model by more than rounding: {place}. That is what "
            "ONNX Runtime makes of its graph, or other operators of it, not int8"
        )
    return (
        f"the compiled model differs from its ops by more than rounding: {place}. That is what Inductor and the fused "
        "kernel make of them, not int8: options={'lowering': 'eager'} runs the ops as they are"
    )


def _proposal(found: Diagnosis) -> Iterator[str]:
    if not found.skip_modules:
        yield f"for {found.wanted_db:g} dB nothing needs to be skipped"
        return
    names = list(found.skip_modules)
    yield f"for {found.wanted_db:g} dB: skip_modules={names}, which gives {_text(found.reached_db)} dB"


def _text(value: float | None) -> str:
    return "-" if value is None else "exact" if value == math.inf else f"{value:.1f}"
