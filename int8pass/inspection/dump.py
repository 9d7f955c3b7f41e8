"""Writing the graph after every stage to a folder, with the difference between neighbouring stages."""

import difflib
import itertools
import os
from pathlib import Path

from int8pass.files import write_text
from int8pass.inspection.text import graph_text
from int8pass.program import Program

ENVIRONMENT_VARIABLE = "INT8PASS_DUMP"


class Dump:
    """A tap for the pipeline: keeps the text of each stage, and writes it where a folder is given.

    Files: `graph-000/00-captured.txt`, `01-....txt`, and `01-....diff` against the stage before. A graph gets the
    first number that the folder does not hold yet.
    """

    def __init__(self, folder: str | os.PathLike | None) -> None:
        self.stages: list[tuple[str, str]] = []
        self._folder = _next_folder(Path(folder)) if folder else None

    @classmethod
    def for_config(cls, dump_dir: str | None) -> "Dump | None":
        """The dump that a config or the environment variable INT8PASS_DUMP asks for; None where neither does."""
        folder = dump_dir or os.environ.get(ENVIRONMENT_VARIABLE)
        return cls(folder) if folder else None

    def __call__(self, stage: str, program: Program) -> None:
        number = len(self.stages)
        self.stages.append((stage, graph_text(program.graph, program.labels)))
        if self._folder is None:
            return
        write_text(self._folder / f"{number:02}-{stage}.txt", self.stages[-1][1])
        if number:
            write_text(self._folder / f"{number:02}-{stage}.diff", self.difference(number))

    def difference(self, number: int) -> str:
        """The unified diff from stage number - 1 to stage number."""
        (before_name, before), (after_name, after) = self.stages[number - 1 : number + 1]
        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), before_name, after_name)
        return "".join(lines)


def _next_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        candidate = folder / f"graph-{number:03}"
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
