"""What a benchmark found, as plain records that go to JSON and back: runs hold cases, cases hold measurements."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from int8pass.bench.timing import Seconds, median, ratio
from int8pass.errors import ConfigError

SCHEMA = "int8pass-bench/1"
BASELINE = "int8mixed"


@dataclass(frozen=True)
class Measurement:
    """One contestant in one case. seconds: a unit of work (a layer, a batch, a token), one a round; see `timing`.

    warm: the same with weights that stay in cache, where that is measured. error: how far the result is from the
    reference, see the case; NaN where it has no meaning. failure: why there are no figures, "" where there are.
    """

    name: str
    seconds: Seconds = ()
    warm: Seconds = ()
    error: float = math.nan
    note: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Case:
    """One workload that every contestant runs. facts: what it is made of (shape, dtype, copies of the layer, ...)."""

    name: str
    facts: dict[str, Any]
    measurements: tuple[Measurement, ...]

    def __getitem__(self, name: str) -> Measurement:
        """The measurement of a contestant; an empty one where it was not asked for."""
        return next((found for found in self.measurements if found.name == name), Measurement(name, failure="not run"))

    def ratio(self, name: str, baseline: str = BASELINE) -> float:
        """Time of `name` over time of `baseline`, median over rounds; NaN where one of them has no figures."""
        return ratio(self[name].seconds, self[baseline].seconds)

    def warm_ratio(self, name: str, baseline: str = BASELINE) -> float:
        return ratio(self[name].warm, self[baseline].warm)

    def median(self, name: str) -> float:
        """Median seconds of a contestant."""
        return median(self[name].seconds)


@dataclass(frozen=True)
class Verdict:
    """A target and what was found. value: geometric mean of the ratio; worst: the worst point's; passed: see `rule`."""

    target: str
    rule: str
    value: float
    worst: float
    passed: bool | None  # None: nothing to judge


@dataclass(frozen=True)
class Run:
    """A whole benchmark. kind: "linear", "models" or "scaling"; machine: see `machine.describe`."""

    kind: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    cases: tuple[Case, ...]
    verdicts: tuple[Verdict, ...] = ()
    started: str = ""
    seconds: float = 0.0
    schema: str = field(default=SCHEMA)

    def to_json(self) -> str:
        """JSON text; NaN becomes null."""
        return json.dumps(_without_nan(dataclasses.asdict(self)), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """The inverse of to_json. Raises ConfigError for another schema."""
        data = json.loads(text)
        if data.get("schema") != SCHEMA:
            raise ConfigError(f"this is no result of schema {SCHEMA!r}: its schema is {data.get('schema')!r}")
        cases = tuple(
            Case(case["name"], case["facts"], tuple(_measurement(found) for found in case["measurements"]))
            for case in data.pop("cases")
        )
        verdicts = tuple(Verdict(**_with_nan(verdict, "value", "worst")) for verdict in data.pop("verdicts"))
        return cls(cases=cases, verdicts=verdicts, **data)


def _measurement(data: dict) -> Measurement:
    values = _with_nan(data, "error")
    return Measurement(**{**values, "seconds": tuple(values["seconds"]), "warm": tuple(values["warm"])})


def _with_nan(data: dict, *names: str) -> dict:
    return {**data, **{name: math.nan for name in names if data[name] is None}}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
