"""Writing the graph after every stage to a folder, with the difference between neighbouring stages."""

import difflib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from int8pass.errors import ConfigError
from int8pass.files import write_bytes, write_text
from int8pass.inspection.dot import stage_dot
from int8pass.inspection.onnx_picture import stage_onnx
from int8pass.inspection.stages import Stage, stage_of
from int8pass.inspection.svg import stage_svg
from int8pass.program import Program

ENVIRONMENT_VARIABLE = "INT8PASS_DUMP"
FORMATS = {
    "text": (".txt", lambda stage: stage.text),
    "svg": (".svg", stage_svg),
    "dot": (".dot", stage_dot),
    "json": (".json", Stage.to_json),
    "onnx": (".onnx", stage_onnx),
}


class Dump:
    """A tap for the pipeline: keeps every stage, and writes its text where a folder is given.

    Files: `graph-000/00-captured.txt`, `01-....txt`, and `01-....diff` against the stage before. A graph gets the
    first number that the folder does not hold yet.
    """

    def __init__(self, folder: str | os.PathLike | None) -> None:
        self.graphs: list[Stage] = []
        self._folder = _next_folder(Path(folder)) if folder else None

    @classmethod
    def for_config(cls, dump_dir: str | None) -> "Dump | None":
        """The dump that a config or the environment variable INT8PASS_DUMP asks for; None where neither does."""
        folder = dump_dir or os.environ.get(ENVIRONMENT_VARIABLE)
        return cls(folder) if folder else None

    @property
    def stages(self) -> list[tuple[str, str]]:
        """Name and text of each stage so far."""
        return [(stage.name, stage.text) for stage in self.graphs]

    def __call__(self, stage: str, program: Program) -> None:
        self.graphs.append(stage_of(stage, program))
        if self._folder is not None:
            _write(self._folder, self.graphs, len(self.graphs) - 1, "text")


def write_stages(folder: Path, stages: Sequence[Stage], form: str) -> Path:
    """Write every stage of one graph in a format, as `Dump` does in text. Returns the graph's folder."""
    graph = _next_folder(folder)
    for number in range(len(stages)):
        _write(graph, stages, number, form)
    return graph


def rendered(stage: Stage, form: str) -> str | bytes:
    """A stage in one of FORMATS; bytes of onnx. Raises ConfigError for another one, MissingDependencyError."""
    if form not in FORMATS:
        raise ConfigError(f"there is no format {form!r}; the formats are: {', '.join(FORMATS)}")
    return FORMATS[form][1](stage)


def difference(before: Stage, after: Stage) -> str:
    """The unified diff of two stages' texts."""
    lines = difflib.unified_diff(before.text.splitlines(True), after.text.splitlines(True), before.name, after.name)
    return "".join(lines)


def _write(folder: Path, stages: Sequence[Stage], number: int, form: str) -> None:
    stage = stages[number]
    stem = folder / f"{number:02}-{stage.name}"
    content = rendered(stage, form)
    path = stem.with_suffix(FORMATS[form][0])
    write_bytes(path, content) if isinstance(content, bytes) else write_text(path, content)
    if number and form == "text":
        write_text(stem.with_suffix(".diff"), difference(stages[number - 1], stage))


def _next_folder(folder: Path) -> Path:
    """Make and return `folder`/graph-NNN, with the first number that is free."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        candidate = folder / f"graph-{number:03}"
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
