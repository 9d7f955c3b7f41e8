"""Interleaved timing: a busy or throttled machine slows every contestant of a round alike, so ratios hold.

In each round every contestant runs one batch of calls, long enough for the clock, in an order drawn anew, so that what
one leaves behind (memory given back to the system, say) is not always the same contestant's loss. What is compared is
the median over the rounds of the ratio of two contestants in the same round. Each batch comes after an untimed call
and a pause, until no thread of the contestant before spins any more: ONNX Runtime's do for 40 ms, in which whoever came
next would be a core short. Where contestants share weights, `before` drives from the caches what the one before read.
"""

import contextlib
import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_DRAW = random.Random(0)  # one for all measurements of a process, whose orders are then not the same
Clock = Callable[[], float]
Seconds = Sequence[float | None]  # one a round, None where the contestant sat the round out

BATCH_SECONDS = 5e-3  # the shortest batch that is timed
SLOW_SECONDS = 1.0  # a contestant whose single call takes longer ...
SLOW_ROUNDS = 3  # ... takes part in this many rounds only
_PAUSE_SECONDS = 5e-3
LONGEST_PAUSE_SECONDS = 1.0
SHORT_PAUSE_SECONDS = 0.05  # the longest within a user's process, other threads of which may never rest
_IDLE_SHARE = 0.1  # of a pause, that threads of this process may still compute
_LONG_CALL_SECONDS = 50e-3  # beside a call as long as this, waking up costs nothing


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    batch_seconds: float = BATCH_SECONDS,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    processor_time: Clock = time.process_time,
    longest_pause: float = LONGEST_PAUSE_SECONDS,
    before: Callable[[], object] = lambda: None,
    progress: Callable[[int], None] = lambda number: None,
) -> dict[str, list[float | None]]:
    """Time every call, warmed up before, in `rounds` rounds. Returns seconds a call, one a round, None: sat out.

    processor_time: seconds that the threads of this process have computed; longest_pause: where they never rest, a
    batch begins after so many seconds. `before` is called ahead of each batch; `progress` is told the number of each
    round, from 1, before it.
    """
    names = list(calls)
    once = {name: _seconds(call, 1, clock) for name, call in calls.items()}
    sizes = {name: max(1, math.ceil(batch_seconds / max(once[name], 1e-9))) for name in names}
    found: dict[str, list[float | None]] = {name: [] for name in names}
    with no_garbage_collection():
        for number in range(rounds):
            progress(number + 1)
            for name in _DRAW.sample(names, len(names)):
                if number >= SLOW_ROUNDS and max(found[name][:SLOW_ROUNDS]) > SLOW_SECONDS:
                    found[name].append(None)
                    continue
                before()
                _pause(sleep, processor_time, longest_pause)
                if once[name] < _LONG_CALL_SECONDS:
                    calls[name]()
                found[name].append(_seconds(calls[name], sizes[name], clock))
    return found


def _pause(sleep: Callable[[float], None], processor_time: Clock, longest: float) -> None:
    """Sleep until no thread of this process computes any more."""
    for _ in range(round(longest / _PAUSE_SECONDS)):
        start = processor_time()
        sleep(_PAUSE_SECONDS)
        if processor_time() - start < _IDLE_SHARE * _PAUSE_SECONDS:
            return


def _seconds(call: Callable[[], object], count: int, clock: Clock) -> float:
    start = clock()
    for _ in itertools.repeat(None, count):
        call()
    return (clock() - start) / count


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A collection costs milliseconds and would hit whoever happens to run."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def median(seconds: Seconds) -> float:
    """Median of the rounds taken part in; NaN where there are none."""
    taken = [value for value in seconds if value is not None]
    return statistics.median(taken) if taken else math.nan


def ratio(seconds: Seconds, baseline: Seconds) -> float:
    """Median over the rounds that both took part in of seconds / baseline; NaN where there are none."""
    pairs = zip(seconds, baseline, strict=False)
    return median([mine / base for mine, base in pairs if mine is not None and base is not None])


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of the values that are not NaN; NaN where there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return statistics.geometric_mean(kept) if kept else math.nan
