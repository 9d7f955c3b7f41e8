"""A report as text: a table of its rows, the schemes' errors, and what they add up to in lines."""

import itertools
from typing import TYPE_CHECKING

from int8pass.inspection.scheme_errors import scheme_table
from int8pass.passes.recognize_int8_linear import ALREADY_INT8
from int8pass.quantization.scheme import DEFAULT

if TYPE_CHECKING:
    from int8pass.inspection.report import Report, Row

_COLUMNS_SHOWN = 6
_HEADER = ("module", "weight", "dtype", "decision", "outlier columns", "SNR dB", "MB before", "MB after", "MB peak")
_TIMES = ("us int8", "us float", "quantize", "GEMM", "dequantize", "outliers")


def report_text(report: "Report") -> str:
    """The table, the table of schemes where there is one, and the summary."""
    timed = any(row.timing for row in report.rows)
    header, cells = (_HEADER + _TIMES, _timed_cells) if timed else (_HEADER, _cells)
    tables = [_table([header, *map(cells, report.rows)])]
    if any(row.schemes for row in report.rows):
        tables.append(_table(scheme_table([(row.module, row.schemes) for row in report.rows])))
    return "\n".join([*itertools.chain.from_iterable((*table, "") for table in tables), *_summary(report)])


def _cells(row: "Row") -> tuple[str, ...]:
    return (
        row.module or "(root)",
        "x".join(map(str, row.weight_shape)) if row.weight_shape else "-",
        row.dtype,
        "int8" if row.rewritten else f"skipped: {row.reason}",
        columns_text(row, _COLUMNS_SHOWN) if row.rewritten else "",
        "" if row.snr_db is None else f"{row.snr_db:.1f}",
        megabytes(row.bytes_before),
        megabytes(row.bytes_after),
        megabytes(row.bytes_peak),
    )


def _timed_cells(row: "Row") -> tuple[str, ...]:
    if row.timing is None:
        return (*_cells(row), *("" for _ in _TIMES))
    parts = (row.timing.int8, row.timing.float, row.timing.quantize, row.timing.gemm, row.timing.dequantize)
    times = (*parts, row.timing.outliers)
    return (*_cells(row), *("fused" if seconds is None else f"{1e6 * seconds:.0f}" for seconds in times))


def columns_text(row: "Row", shown: int) -> str:
    """The outlier columns of a row, the first of many, and those that its profile misses."""
    missed = f" (missed: {_listed(row.missed_columns, shown)})" if row.missed_columns else ""
    if row.outlier_columns is None:
        return "in each call"
    return (_listed(row.outlier_columns, shown) if row.outlier_columns else "none") + missed


def _listed(columns: tuple[int, ...], shown: int) -> str:
    more = f", ... ({len(columns)})" if len(columns) > shown else ""
    return ", ".join(map(str, columns[:shown])) + more


def megabytes(size: int) -> str:
    """1.25 of 1250000 bytes."""
    return f"{size / 1e6:.2f}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _outliers_met(report: "Report") -> str:
    if any(row.outlier_columns is None for row in report.rows):
        return "their columns are found in each call"
    return f"{report.totals.with_outliers} of them {'have' if report.file else 'met'} outlier columns"


def _how(report: "Report") -> str:
    named = f"scheme {report.scheme}, " if report.scheme != DEFAULT.name else ""
    chosen = "profile" if report.profile else report.outliers
    return f"{named}threshold {report.threshold:g}, outliers by {chosen}"


def _summary(report: "Report") -> list[str]:
    totals = report.totals
    skipped = [f"skipped {count}: {reason}" for reason, count in totals.reasons.items()]
    if report.converted:
        return [report.converted, *(line for line in skipped if not line.endswith(ALREADY_INT8))]
    lines = [
        f"{totals.rewritten} of {totals.linears} Linears rewritten to int8 ({_how(report)}); {_outliers_met(report)}",
        f"weights: {megabytes(totals.bytes_before)} MB before, {megabytes(totals.bytes_after)} MB "
        + ("in the file" if report.file else f"after, {megabytes(totals.bytes_peak)} MB at the peak in between"),
    ]
    if report.inputs:
        lines.append(f"run in ONNX Runtime on {report.inputs}")
    missing = [row.module for row in report.rows if row.missed_columns]
    if missing:
        lines.append(f"the profile misses outlier columns of {len(missing)}: calibrate on inputs like these too")
    clamped = [row.clamped for row in report.rows if row.clamped]
    if clamped:
        lines.append(f"clamped {sum(clamped)} values past the profile's ranges, in {len(clamped)} Linears")
    timed = [row.timing for row in report.rows if row.timing]
    if timed:
        times = (1e3 * sum(each.int8 for each in timed), 1e3 * sum(each.float for each in timed))
        how = "in ONNX Runtime" if report.file else "each alone"
        lines.append(f"time of the Linears, {how}: {times[0]:.2f} ms in int8, {times[1]:.2f} ms in float")
    if report.slower_in_int8:
        lines.append(
            f"faster in float, by {1e3 * report.saved_by_skipping:.2f} ms: skip_modules={list(report.slower_in_int8)}"
        )
    return lines + skipped
