"""Where benchmarks print: their tables are wider than the 80 columns that a file or a pipe is taken to have."""

from rich.console import Console

_WIDTH = 130  # columns, where the output is not a terminal


def wide_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)
