"""`Report`: what the pass did to each Linear of a model, as rows, totals, text and JSON."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from int8pass.inspection.observation import Details
from int8pass.inspection.report_text import megabytes, report_text
from int8pass.inspection.scheme_errors import SchemeError, finite
from int8pass.inspection.stages import Stage
from int8pass.inspection.timing import Timing
from int8pass.passes.recognize_int8_linear import ALREADY_INT8
from int8pass.quantization.scheme import DEFAULT

SCHEMA_VERSION = 4
SLOWER = 1.1  # int8 time over float time, beyond what timings of a shared machine vary by


@dataclass(frozen=True)
class Row:
    """One Linear-like node.

    module: dotted name; weight_shape: (N, K); reason: "" where rewritten. outlier_columns: features with |x| >=
    threshold in the inputs that were run, or with a profile those that it names, and missed_columns the others that
    reached the threshold; None where a file finds them in each call. snr_db: signal-to-noise ratio of the output
    against the float Linear on the same input, in dB (None where it was not rewritten or not run).
    bytes_before: the float weight; bytes_after: all that is held of it once the model is compiled with these options
    and has run: its int8 form, and the float weight if it `keeps_float` (free_weights releases it); bytes_peak: the
    most that is held of it on the way, scratch included.
    weight: the parameter or buffer; view: the views that it is read through. Rows that agree in both share the bytes.
    timing: of its first call, schemes: the error of other schemes, where they were asked for. clamped: how many values
    of its input, outside of the profile's outlier columns, lay past the profile's range (activations="static").
    """

    module: str
    operation: str
    weight_shape: tuple[int, ...] | None
    dtype: str
    rewritten: bool
    reason: str
    outlier_columns: tuple[int, ...] | None
    snr_db: float | None
    bytes_before: int
    bytes_after: int
    bytes_peak: int
    keeps_float: bool = True
    weight: str = ""
    view: str = ""
    timing: Timing | None = None
    missed_columns: tuple[int, ...] = ()
    schemes: tuple[SchemeError, ...] = ()
    clamped: int = 0

    @property
    def bytes_int8(self) -> int:
        """Of bytes_after: the int8 form."""
        return self.bytes_after - self.bytes_before if self.keeps_float else self.bytes_after


@dataclass(frozen=True)
class Totals:
    """Counts over all rows, and bytes of their weights, each counted once.

    bytes_peak: the most that is held while the weights are quantized one after the other. reasons: how many nodes were
    skipped for each reason.
    """

    linears: int
    rewritten: int
    skipped: int
    with_outliers: int
    bytes_before: int
    bytes_after: int
    bytes_peak: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class Report:
    """What `int8pass.explain` found. rows: in graph order; graphs: how many graphs the model was captured as; scheme:
    the name of the one that its int8 forms are of.

    profile: the fingerprint of the model whose profile named the outlier columns, "" without one. file: of a report of
    an ONNX file, its name; bytes are those in the file then, and errors and times are absent unless it was run, on the
    inputs that `inputs` names.
    stages: of each graph, what it was after every pass; details: of each row, what its inputs and weight looked like.
    Neither is part of the JSON; the page that `to_html` writes shows them.
    """

    rows: tuple[Row, ...]
    threshold: float
    outliers: str
    graphs: int = 1
    profile: str = ""
    file: str = ""
    inputs: str = ""
    scheme: str = DEFAULT.name
    stages: tuple[tuple[Stage, ...], ...] = field(default=(), compare=False, repr=False)
    details: tuple[Details, ...] = field(default=(), compare=False, repr=False)

    @property
    def totals(self) -> Totals:
        """Counts and bytes over all rows."""
        done = [row for row in self.rows if row.rewritten]
        weights = _distinct_weights(self.rows)
        return Totals(
            linears=len(self.rows),
            rewritten=len(done),
            skipped=len(self.rows) - len(done),
            with_outliers=sum(bool(row.outlier_columns) for row in done),
            bytes_before=_before(weights),
            bytes_after=_after(weights),
            bytes_peak=_after(weights) if self.file else _peak(weights),
            reasons=dict(Counter(row.reason for row in self.rows if row.reason)),
        )

    @property
    def converted(self) -> str:
        """In one line, that the model is converted already; "" where anything was rewritten."""
        int8 = [row for row in self.rows if row.reason == ALREADY_INT8]
        if not int8 or any(row.rewritten for row in self.rows):
            return ""
        return (
            f"already converted: {len(int8)} of {len(self.rows)} Linears are int8 in it, {megabytes(_after(int8))} MB "
            "of codes; a report of the float model shows decisions, outlier columns and errors"
        )

    @property
    def slower_in_int8(self) -> tuple[str, ...]:
        """Modules whose Linears took longer in int8 than in float, together by more than a tenth."""
        found: dict[str, list[Timing]] = {}
        for row in self.rows:
            if row.timing is not None:
                found.setdefault(row.module, []).append(row.timing)
        return tuple(
            module
            for module, timings in found.items()
            if sum(each.int8 for each in timings) > SLOWER * sum(each.float for each in timings)
        )

    @property
    def saved_by_skipping(self) -> float:
        """Seconds that the Linears of `slower_in_int8` took longer in int8 than in float."""
        slower = set(self.slower_in_int8)
        timings = (row.timing for row in self.rows if row.timing is not None and row.module in slower)
        return sum(each.int8 - each.float for each in timings)

    def to_json(self, indent: int | None = 2) -> str:
        """JSON with a schema version, the rows and the totals. An infinite ratio (no error at all) is null."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        for row in rows:
            for error in (row, *row["schemes"]):
                error["snr_db"] = finite(error["snr_db"])
        document = {
            "schema": SCHEMA_VERSION,
            "scheme": self.scheme,
            "threshold": self.threshold,
            "outliers": self.outliers,
            "profile": self.profile,
            "file": self.file,
            "inputs": self.inputs,
            "graphs": self.graphs,
            "totals": dataclasses.asdict(self.totals),
            "rows": rows,
        }
        return json.dumps(document, indent=indent, allow_nan=False)

    def to_html(self, path: str | os.PathLike, title: str = "int8pass report") -> None:
        """Write one page that opens from disk, without network: the layers, their plots, the graphs, every stage."""
        from int8pass.inspection.page import write_page

        write_page(self, Path(path), title)

    def __str__(self) -> str:
        return report_text(self)


def _distinct_weights(rows: Iterable[Row]) -> list[Row]:
    """One row for each weight; of a weight that several Linears read, that of the one for which most is held."""
    found: dict[object, Row] = {}
    for number, row in enumerate(rows):
        key = (row.weight, row.view) if row.weight else number
        found[key] = max(found.get(key, row), row, key=lambda each: each.bytes_after)
    return list(found.values())


def _before(rows: Iterable[Row]) -> int:
    return sum(row.bytes_before for row in rows)


def _after(rows: Iterable[Row]) -> int:
    return sum(row.bytes_after for row in rows)


def _peak(rows: Iterable[Row]) -> int:
    """The most that is held at once: weights become int8 in order, and are packed once all are.

    A float weight that is not kept goes when the last view of it is int8.
    """
    views: dict[object, list[Row]] = {}
    for number, row in enumerate(rows):
        views.setdefault(row.weight or number, []).append(row)
    peak = now = _before(rows)
    for same in views.values():
        for row in same:
            peak = max(peak, now + row.bytes_peak - row.bytes_before)
            now += row.bytes_int8
        now -= sum(row.bytes_before for row in same if not row.keeps_float)
    return max([peak, *(now - row.bytes_after + row.bytes_peak for row in rows if row.keeps_float)])
