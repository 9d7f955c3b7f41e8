"""Progress of a long experiment: a bar on a terminal, elsewhere a line for each tenth of the work."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINES = 10


@contextlib.contextmanager
def progress_bar(title: str, total: int, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """Gives `advance(text)`, to be called once a unit of work with what was just done. Writes to standard error."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _line_writer(title, total, console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[done]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, done="")
        yield lambda text: bar.update(task, advance=1, done=escape(text))


def _line_writer(title: str, total: int, console: Console) -> Callable[[str], None]:
    start, done = time.perf_counter(), 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        if done * _LINES // total > (done - 1) * _LINES // total:
            line = f"{title}: {done} of {total}, {time.perf_counter() - start:.0f} s, {text}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return advance
