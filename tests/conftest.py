"""What tests of several folders start from."""

import os
import sys

import pytest
import torch

import int8pass.notices
from int8pass import cli


def pytest_configure():
    """Processes that test side by side share the cores, as do those that they start."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if processes > 1:
        threads = max(1, torch.get_num_threads() // processes)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture
def fresh_compiler(monkeypatch):
    """The test starts without compiled code and without warnings that were given already."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(int8pass.notices, "_warned", set())
    yield
    torch._dynamo.reset()


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the entry point in this process: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["int8pass", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call
