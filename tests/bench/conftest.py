"""The command line in this process."""

import sys

import pytest

from int8pass import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the entry point: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["int8pass", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call
