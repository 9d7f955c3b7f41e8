"""One case: prepare every contestant, run it once, time all of them interleaved. A failure becomes a row of its own."""

import contextlib
import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch

from int8pass.bench.machine import last_level_cache_bytes
from int8pass.bench.results import Measurement
from int8pass.bench.timing import Clock, interleave
from int8pass.errors import ConfigError

Progress = Callable[[str], None]

LIMIT_SECONDS = 5.0  # a call that takes longer is timed once
_RECOMPILE_LIMIT = 64  # graphs of one code object; Dynamo's own is 8


class Unavailable(Exception):
    """A peer cannot take part; the message is its row."""


class Named(Protocol):
    name: str


@dataclass(frozen=True)
class Prepared:
    """A contestant that has run once. call: what is timed, `units` units of work (layers, tokens) at a time.

    warm: the same with weights that stay in cache, `units` units too. seconds: set where one call was so slow that it
    is not repeated; a unit's time.
    """

    call: Callable[[], object]
    units: int = 1
    warm: Callable[[], object] | None = None
    error: float = math.nan
    note: str = ""
    seconds: float | None = None


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """No silent eager: past Dynamo's limit of graphs a contestant fails. Compiled code is dropped before and after."""
    torch._dynamo.reset()
    patch = torch._dynamo.config.patch(
        recompile_limit=_RECOMPILE_LIMIT,
        accumulated_recompile_limit=8 * _RECOMPILE_LIMIT,
        fail_on_recompile_limit_hit=True,
    )
    try:
        with patch, torch.no_grad():
            yield
    finally:
        torch._dynamo.reset()


def measure(
    contestants: Sequence[Named],
    prepare: Callable[[Any], Prepared],
    rounds: int,
    progress: Progress = lambda message: None,
    clock: Clock = time.perf_counter,
    before: Callable[[], object] | None = None,
) -> tuple[Measurement, ...]:
    """Measure every contestant, in the order given. `prepare` runs it once and says what to time.

    before: what precedes each batch; by default everything is driven from the processor's caches.
    """
    ready: dict[str, Prepared] = {}
    failures: dict[str, str] = {}
    for contestant in contestants:
        progress(f"preparing {contestant.name}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside the peers
                ready[contestant.name] = prepare(contestant)
        except Exception as error:  # whatever a peer raises becomes its row of the table
            failures[contestant.name] = reason(error)
    repeated = {name: prepared for name, prepared in ready.items() if prepared.seconds is None}
    cold = {name: prepared.call for name, prepared in repeated.items()}
    warm = {f"{name} (warm)": prepared.warm for name, prepared in repeated.items() if prepared.warm is not None}
    seconds = interleave(
        {**cold, **warm},
        rounds,
        clock=clock,
        before=evicting() if before is None else before,
        progress=lambda number: progress(f"round {number} of {rounds}"),
    )
    return tuple(_measurement(contestant.name, ready, failures, seconds) for contestant in contestants)


def _measurement(
    name: str, ready: dict[str, Prepared], failures: dict[str, str], seconds: dict[str, list[float | None]]
) -> Measurement:
    if name in failures:
        return Measurement(name, failure=failures[name])
    prepared = ready[name]
    if prepared.seconds is not None:
        note = ", ".join(filter(None, (prepared.note, f"timed once: a call takes over {LIMIT_SECONDS:.0f} s")))
        return Measurement(name, seconds=(prepared.seconds,), error=prepared.error, note=note)
    cold, warm = (
        tuple(None if value is None else value / prepared.units for value in seconds.get(key, ()))
        for key in (name, f"{name} (warm)")
    )
    return Measurement(name, cold, warm, prepared.error, prepared.note)


def evicting() -> Callable[[], object]:
    """A function that drives everything else from the caches: contestants share float weights, and int8 ones too."""
    filler = torch.zeros(2 * last_level_cache_bytes(), dtype=torch.uint8)
    return lambda: filler.add_(1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings, log lines and progress of a peer that is imported or that quantizes; errors still show."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def reason(error: Exception) -> str:
    """One line: an Unavailable's own words, or the type and first line of another error."""
    if isinstance(error, Unavailable):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the reference, in float64."""
    reference = reference.double()
    return float((value.double() - reference).norm() / reference.norm())


def chosen(contestants: Sequence[Named], patterns: Sequence[str], always: Sequence[str] = ()) -> list:
    """The contestants whose names match one of the globs, and `always`. Raises ConfigError for a glob without match."""
    names = [contestant.name for contestant in contestants]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"--peers {pattern!r} matches no contestant; there are: {', '.join(names)}")
    if not patterns:
        return list(contestants)
    wanted = {name for name in names if name in always or any(fnmatchcase(name, pattern) for pattern in patterns)}
    return [contestant for contestant in contestants if contestant.name in wanted]
