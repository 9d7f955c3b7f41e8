"""A cache folder of its own for every test, and a fake stopwatch."""

import pytest

from int8pass.break_even import measure, store


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Where results are kept in this test; the process has none in memory."""
    monkeypatch.setattr(store, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(store, "_known", {})
    return tmp_path / "break_even"


class FakeStopwatch:
    """In place of `measure.stopwatch`: runs each call once, and says that int8 is twice as fast from LARGE weights on.

    Below, it says that it takes twice as long. cases: what was timed; results: what the calls of each gave.
    """

    LARGE = 1024

    def __init__(self):
        self.cases, self.results = [], []

    def __call__(self, case, calls):
        self.cases.append(case)
        self.results.append({name: call() for name, call in calls.items()})
        large = case.in_features * case.out_features >= self.LARGE
        return {"float": [2.0, 2.0, 2.0], "int8": [1.0 if large else 4.0] * 3}


@pytest.fixture
def fake_stopwatch(monkeypatch):
    stopwatch = FakeStopwatch()
    monkeypatch.setattr(measure, "stopwatch", stopwatch)
    return stopwatch
