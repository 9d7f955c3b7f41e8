"""What tests of several folders start from."""

import sys

import pytest
import torch

import int8pass.notices
from int8pass import cli


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
