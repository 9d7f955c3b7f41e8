"""Freed memory goes back to the system: not at every weight, and only where malloc is glibc's."""

import sys

import pytest

from int8pass import released_memory


@pytest.fixture
def trims(monkeypatch):
    """The calls of malloc_trim."""
    calls = []
    monkeypatch.setattr(released_memory, "_malloc_trim", lambda: calls.append)
    monkeypatch.setattr(released_memory, "_released", 0)
    return calls


def test_small_pieces_add_up(trims):
    for _ in range(5):
        released_memory.released(10 * 2**20)
    assert trims == [0]
    released_memory.released(100 * 2**20)
    assert trims == [0, 0]


@pytest.mark.parametrize("platform", (sys.platform, "darwin", "win32"))
def test_call_is_harmless_on_every_system(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    released_memory._malloc_trim.cache_clear()
    released_memory._malloc_trim()(0)
    released_memory._malloc_trim.cache_clear()
