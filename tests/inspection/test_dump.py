"""Dumps: one text a stage and graph, the same bytes in every process, with differences that can be applied."""

import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from int8pass import convert, explain, pipeline
from int8pass.inspection.dump import ENVIRONMENT_VARIABLE

IN, OUT = 16, 8
STAGES = ["captured", *(step.name for step in pipeline.PASSES)]

SCRIPT = """
import sys
import torch
from torch import nn
from int8pass import convert, explain

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        hidden, _ = self.attention(x, x, x, need_weights=False)
        torch._dynamo.graph_break()
        return {"y": self.head(x + hidden), "mean": self.mean}

model, x = Model().eval().requires_grad_(False), torch.randn(2, 4, 16)
explain(model, (x,), options={"dump_dir": sys.argv[1]})
options = {"dump_dir": sys.argv[1], "lowering": "eager"}
with torch.no_grad():
    torch.compile(model, backend="int8mixed", dynamic=True, options=options)(x)
convert(model.head, (x,), options={"dump_dir": sys.argv[1]})
"""


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    """Each test starts with the same seed, without compiled code and with no dump asked for."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(IN, OUT)
        self.down = nn.Linear(OUT, IN)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def model():
    return Mlp().eval().requires_grad_(False)


def run_compiled(options):
    with torch.no_grad():
        run = torch.compile(model(), backend="int8mixed", options={"lowering": "eager", **options})
        run(torch.randn(4, IN))


def run_convert(options):
    convert(model(), (torch.randn(4, IN),), options=options)


def run_explain(options):
    explain(model(), (torch.randn(4, IN),), options=options)


def run_explain_program(options):
    with torch.no_grad():
        explain(torch.export.export(model(), (torch.randn(4, IN),)), options=options)


RUNS = (run_compiled, run_convert, run_explain, run_explain_program)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def stages(graph):
    """Stage names of a graph's folder in the order of their numbers."""
    return [file.stem.partition("-")[2] for file in sorted(graph.glob("*.txt"))]


def applied(before, diff):
    """The text that a unified diff makes of `before`."""
    source, result, position = before.splitlines(True), [], 0
    for line in diff.splitlines(True)[2:]:
        if line.startswith("@@"):
            first, count = re.match(r"@@ -(\d+)(?:,(\d+))?", line).groups(default="1")
            start = int(first) - (count != "0")
            result += source[position:start]
            position = start
        elif line.startswith("+"):
            result.append(line[1:])
        else:
            assert source[position] == line[1:]
            position += 1
            result += [line[1:]] if line.startswith(" ") else []
    return "".join(result + source[position:])


@pytest.mark.parametrize("run", RUNS)
def test_every_stage_is_written_once(run, tmp_path):
    run({"dump_dir": str(tmp_path)})
    (graph,) = tmp_path.iterdir()
    assert graph.name == "graph-000"
    assert stages(graph) == STAGES
    numbers = range(len(STAGES))
    expected = [f"{number:02}-{STAGES[number]}.txt" for number in numbers]
    expected += [f"{number:02}-{STAGES[number]}.diff" for number in numbers[1:]]
    assert sorted(file.name for file in graph.iterdir()) == sorted(expected)


@pytest.mark.inductor
def test_lowering_to_inductor_is_a_stage(tmp_path):
    run_compiled({"dump_dir": str(tmp_path), "lowering": "inductor"})
    written = stages(tmp_path / "graph-000")
    assert written[: len(STAGES)] == STAGES and len(written) > len(STAGES)


@pytest.mark.parametrize("run", RUNS)
def test_environment_variable(run, tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "environment"))
    run({})
    assert (tmp_path / "environment" / "graph-000" / "00-captured.txt").is_file()


def test_option_comes_before_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "environment"))
    run_convert({"dump_dir": str(tmp_path / "option")})
    assert [folder.name for folder in tmp_path.iterdir()] == ["option"]


def test_nothing_is_written_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in RUNS:
        run({})
    assert list(tmp_path.iterdir()) == []


def test_graphs_are_numbered_on(tmp_path):
    run_convert({"dump_dir": str(tmp_path)})
    first = contents(tmp_path / "graph-000")
    run_convert({"dump_dir": str(tmp_path)})
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["graph-000", "graph-001"]
    assert contents(tmp_path / "graph-000") == contents(tmp_path / "graph-001") == first


@pytest.mark.parametrize("run", RUNS)
def test_differences_apply(run, tmp_path):
    run({"dump_dir": str(tmp_path)})
    texts = sorted((tmp_path / "graph-000").glob("*.txt"))
    for before, after in itertools.pairwise(texts):
        diff = after.with_suffix(".diff").read_text()
        assert applied(before.read_text(), diff) == after.read_text()
        assert bool(diff) == (before.read_text() != after.read_text())
    changed = (tmp_path / "graph-000").glob("*-linear_to_int8_mixed.diff")
    assert "+%int8_mm : i32[4, 8] = int8pass.int8_mm(" in next(changed).read_text()


def test_text_names_weights_and_shapes(tmp_path):
    run_convert({"dump_dir": str(tmp_path), "outlier_weights": "dequantized"})
    text = next((tmp_path / "graph-000").glob("*-linear_to_int8_mixed.txt")).read_text()
    lines = text.splitlines()
    assert "%p_up_weight_codes : i8[8, 16] = int8 codes of 'up.weight'" in lines
    assert "%p_up_weight_scale : f32[8] = int8 scale of 'up.weight'" in lines
    assert "%x : f32[4, 16] = input" in lines
    assert not re.search(r"0x[0-9a-f]{6}|/(work|home|tmp|usr|opt)/", text)


def test_bytes_are_the_same_in_every_process(tmp_path):
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / seed)]
        subprocess.run(command, env=environment, check=True, timeout=120)
    first = contents(tmp_path / "0")
    assert len({name.partition("/")[0] for name in first}) >= 5
    assert first == contents(tmp_path / "1")
