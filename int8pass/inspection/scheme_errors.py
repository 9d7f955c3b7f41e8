"""What every scheme would do to each Linear: its error on the inputs of the run, beside that of the chosen scheme."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from int8pass.inspection.float_run import LinearCall


@dataclass(frozen=True)
class SchemeError:
    """snr_db: signal-to-noise ratio of a Linear's output in dB, as in its row; None where the output is all zeros."""

    scheme: str
    snr_db: float | None


def scheme_noise(call: LinearCall, schemes: Iterable[str]) -> dict[str, float]:
    """By scheme, the energy of the error that it makes in one call. One with an outlier branch takes the run's
    threshold, or its own where the run has none.
    """
    config = call.graph.program.config
    y = call.y.double()
    errors = ((name, y - call.int8(config.with_scheme(name)).double()) for name in schemes)
    return {name: float(error.square().sum()) for name, error in errors}


def scheme_table(rows: Sequence[tuple[str, tuple[SchemeError, ...]]]) -> list[tuple[str, ...]]:
    """Cells of a table of modules by schemes, in dB, its header first. rows: module and errors."""
    schemes = dict.fromkeys(error.scheme for _, errors in rows for error in errors)
    found = [("SNR dB by scheme", *schemes)]
    for module, errors in rows:
        if errors:
            ratios = {error.scheme: error.snr_db for error in errors}
            found.append(
                (module or "(root)", *("" if ratios[name] is None else f"{ratios[name]:.1f}" for name in schemes))
            )
    return found


def finite(snr_db: float | None) -> float | None:
    """As JSON takes it: no error at all is null."""
    return snr_db if snr_db is not None and math.isfinite(snr_db) else None
