"""Interleaving, medians, ratios and geometric means, with a clock that only the calls move."""

import math

import pytest

from int8pass.bench import timing


class FakeClock:
    """A clock that calls advance; `order` records who ran."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return run


def interleave(clock, calls, rounds=4, **settings):
    return timing.interleave(calls, rounds, clock=clock, sleep=lambda seconds: None, **settings)


def test_every_contestant_runs_once_a_round_in_an_order_drawn_anew():
    clock = FakeClock()
    calls = {name: clock.call(name, 0.2) for name in "abcd"}
    found = interleave(clock, calls, rounds=8)
    assert clock.order[:4] == list("abcd")  # to know how long a batch has to be
    rounds = ["".join(clock.order[start : start + 4]) for start in range(4, 36, 4)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 4
    followers = {order[order.index("d") + 1] for order in rounds if not order.endswith("d")}
    assert len(followers) > 1
    assert all(seconds == pytest.approx([0.2] * 8) for seconds in found.values())


def test_something_is_done_ahead_of_each_batch():
    clock = FakeClock()
    calls = {name: clock.call(name, 0.2) for name in "ab"}
    interleave(clock, calls, rounds=2, before=lambda: clock.order.append("-"))
    assert "".join(clock.order[2:]).count("-") == 4
    assert all(
        (first == "-") != (second == "-") for first, second in zip(clock.order[2:], clock.order[3:], strict=False)
    )


def test_a_batch_waits_until_threads_of_the_one_before_rest():
    clock, slept, computed = FakeClock(), [], [0.0]

    def sleep(seconds):
        slept.append(seconds)
        computed[0] += seconds if len(slept) in (1, 2, 4) else seconds / 100  # others spin through some pauses

    timing.interleave(
        {name: clock.call(name, 0.2) for name in "ab"}, 1, clock=clock, sleep=sleep, processor_time=lambda: computed[0]
    )
    assert len(slept) == 3 + 2


def test_a_pause_ends_although_threads_never_rest():
    clock = FakeClock()

    def sleep(seconds):
        clock.now += seconds

    found = timing.interleave(
        {"a": clock.call("a", 0.2)}, 1, clock=clock, sleep=sleep, processor_time=clock, longest_pause=0.5
    )
    assert found["a"] == pytest.approx([0.2]) and clock.now == pytest.approx(0.2 + 0.5 + 0.2)


def test_a_batch_is_long_enough_for_the_clock_and_follows_an_untimed_call():
    clock = FakeClock()
    found = interleave(clock, {"short": clock.call("short", 1e-3)}, rounds=1, batch_seconds=5e-3)
    assert len(clock.order) == 1 + 1 + 5
    assert found["short"] == pytest.approx([1e-3])


def test_a_slow_contestant_sits_out_later_rounds():
    clock = FakeClock()
    calls = {"slow": clock.call("slow", 2.0), "quick": clock.call("quick", 0.1)}
    found = interleave(clock, calls, rounds=5)
    assert found["slow"][:3] == pytest.approx([2.0] * 3) and found["slow"][3:] == [None, None]
    assert None not in found["quick"]


def test_a_machine_that_slows_down_leaves_ratios_alone():
    clock = FakeClock()
    calls = {
        name: clock.call(name, lambda cost=cost: cost * (1 + clock.now)) for name, cost in (("a", 0.1), ("b", 0.2))
    }
    found = interleave(clock, calls, rounds=9)
    assert max(found["a"]) > 5 * min(found["a"])
    assert timing.ratio(found["b"], found["a"]) == pytest.approx(2.0, rel=0.25)


def test_progress_is_told_each_round():
    seen = []
    interleave(FakeClock(), {}, rounds=3, progress=seen.append)
    assert seen == [1, 2, 3]


def test_ratio_is_the_median_over_rounds_that_both_took_part_in():
    assert timing.ratio([2.0, 30.0, None, 8.0], [1.0, 10.0, 1.0, 2.0]) == 3.0
    assert math.isnan(timing.ratio([None], [1.0]))
    assert math.isnan(timing.median([]))


def test_geometric_mean_leaves_out_nan():
    assert timing.geometric_mean([2.0, 8.0, math.nan]) == pytest.approx(4.0)
    assert math.isnan(timing.geometric_mean([math.nan]))
