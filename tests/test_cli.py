"""The command line: report and dump, their options, errors and exit codes."""

import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from int8pass import cli, explain
from int8pass.inspection.dump import ENVIRONMENT_VARIABLE
from tests import minilm

IN, HIDDEN, OUT = 32, 48, 24
MODEL = "tests.test_cli:make"


class Mlp(nn.Module):
    """Two Linears, the second of them called lm_head; `breaks` cuts the graph between them."""

    def __init__(self, breaks):
        super().__init__()
        self.up = nn.Linear(IN, HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, OUT)
        self.breaks = breaks

    def forward(self, x):
        hidden = torch.relu(self.up(x))
        if self.breaks:
            torch._dynamo.graph_break()
        return self.lm_head(hidden)


def make(breaks=False):
    torch.manual_seed(0)
    x = torch.randn(4, IN).clamp(-4, 4)
    x[1, 3], x[2, 9] = 5.0, 20.0
    return Mlp(breaks), (x,), {}


def make_broken():
    return make(breaks=True)


def make_failing():
    raise RuntimeError("no luck")


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    """Each test starts without compiled code, outside a terminal, with no dump asked for."""
    torch._dynamo.reset()
    for name in (ENVIRONMENT_VARIABLE, "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def expected_report(**options):
    torch._dynamo.reset()
    model, args, kwargs = make()
    return explain(model.eval(), args, kwargs, options=options)


# --- the program


def test_version(run):
    assert run("--version") == (0, f"int8pass {importlib.metadata.version('int8pass')}\n", "")


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "int8pass", "report", "absent:make"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.endswith("error: there is no Python module 'absent', also not in the current directory\n")
    assert "Traceback" not in result.stderr


def test_installed_program_is_this_one():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="int8pass")
    assert script.load() is cli.main


@pytest.mark.parametrize("command", ("report", "dump"))
def test_help_names_every_option(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run(command, "--help")
    assert code == 0
    for option in ("scheme", "threshold", "outliers", "outlier-weights", "skip-modules", "no-skip-modules-default"):
        assert f"--{option}" in out


def test_help_is_shown_without_a_command(run):
    _, out, err = run()
    assert "report" in out + err and "dump" in out + err


# --- report


def test_report_is_that_of_explain(run):
    assert run("report", MODEL) == (0, f"{expected_report()}\n", "")


def test_report_passes_options_on(run):
    options = ("--threshold", "4.5", "--outliers", "token", "--outlier-weights", "dequantized")
    code, out, _ = run("report", MODEL, *options, "--no-skip-modules-default", "--json", "-")
    expected = expected_report(
        threshold=4.5, outliers="token", outlier_weights="dequantized", skip_modules_default=False
    )
    assert code == 0 and out == expected.to_json() + "\n"
    rows = json.loads(out)["rows"]
    assert rows[0]["outlier_columns"] == [3, 9] and rows[1]["rewritten"]


def test_report_skips_several_modules(run):
    _, out, _ = run("report", MODEL, "--skip-modules", "up", "--skip-modules", "re:lm_", "--json", "-")
    document = json.loads(out)
    assert document["totals"]["rewritten"] == 0
    assert set(document["totals"]["reasons"]) == {"named in skip_modules ('up')", "named in skip_modules ('re:lm_')"}


def test_report_as_a_file(run, tmp_path):
    path = tmp_path / "reports" / "report.json"
    code, out, _ = run("report", MODEL, "--json", path)
    assert code == 0 and out == f"{expected_report()}\n"
    assert path.read_text() == expected_report().to_json() + "\n"


def test_report_leaves_what_is_no_file_alone(run, tmp_path):
    code, out, err = run("report", MODEL, "--json", tmp_path)
    assert code == 2 and out == "" and "not a file" in err and tmp_path.is_dir()


def test_report_on_a_terminal_is_a_table(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("report", MODEL)
    assert code == 0 and "\x1b[" in out and "\x1b[" in err
    for word in ("up", "48x32", "int8", "lm_head", "24x48", "outliers", "1 of 2 Linears rewritten"):
        assert word in out


def test_report_on_a_real_model(run):
    code, out, _ = run("report", importlib.resources.files(minilm.PACKAGE) / "model", "--json", "-")
    document = json.loads(out)
    assert code == 0
    assert document["totals"]["linears"] == document["totals"]["rewritten"] == 37
    assert document["totals"]["with_outliers"] > 20
    rows = {row["module"]: row for row in document["rows"]}
    assert 99 in rows["encoder.layer.0.attention.self.query"]["outlier_columns"]
    assert all(row["snr_db"] > 25 for row in rows.values())


def test_report_of_a_program_file(run, tmp_path):
    model, args, _ = make()
    with torch.no_grad():
        torch.export.save(torch.export.export(model.eval(), args), tmp_path / "model.pt2")
    assert run("report", tmp_path / "model.pt2") == (0, f"{expected_report()}\n", "")


# --- dump


def test_dump_writes_every_stage(run, tmp_path):
    code, out, err = run("dump", MODEL, "--out", tmp_path / "graphs")
    graph = tmp_path / "graphs" / "graph-000"
    assert (code, out, err) == (0, f"{graph}\n", "")
    assert {file.stem.partition("-")[2] for file in graph.iterdir()} == set(cli.STAGES)


def test_dump_numbers_graphs_on(run, tmp_path):
    run("dump", MODEL, "--out", tmp_path)
    code, out, _ = run("dump", "tests.test_cli:make_broken", "--out", tmp_path)
    assert code == 0
    assert out == f"{tmp_path / 'graph-001'}\n{tmp_path / 'graph-002'}\n"


@pytest.mark.parametrize("stage", cli.STAGES)
def test_dump_prints_a_stage(run, stage, tmp_path):
    code, out, _ = run("dump", MODEL, "--stage", stage)
    run("dump", MODEL, "--out", tmp_path)
    (file,) = tmp_path.glob(f"graph-000/*-{stage}.txt")
    assert code == 0 and out == file.read_text()


def test_dump_prints_a_stage_of_every_graph(run):
    _, out, _ = run("dump", "tests.test_cli:make_broken", "--stage", "linear_to_int8_mixed")
    first, second = out.split("# graph-001\n")
    assert first.startswith("# graph-000\n")
    assert "int8pass.int8_mm" in first and "int8pass.int8_mm" not in second


def test_dump_passes_options_on(run):
    options = ("--threshold", "0", "--no-skip-modules-default", "--skip-modules", "up")
    _, out, _ = run("dump", MODEL, "--stage", "share_activation_quantize", *options)
    assert out.count("int8pass.int8_mm(") == 1 and out.count("linear(") == 1
    assert "outlier" not in out


def test_dump_of_an_unknown_stage_lists_the_stages(run):
    code, out, err = run("dump", "absent:make", "--stage", "linear")
    assert code == 2 and out == ""
    assert all(stage in err for stage in cli.STAGES)


@pytest.mark.parametrize("form", ("text", "svg", "dot", "json"))
def test_dump_formats_are_the_same_bytes_in_two_runs(run, form, tmp_path):
    for name in ("a", "b"):
        assert run("dump", MODEL, "--out", tmp_path / name, "--format", form)[0] == 0
    first, second = (sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b"))
    assert len(first) == len(second) > len(cli.STAGES)  # the stages and report.json
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_dump_of_a_module_as_json(run):
    _, out, _ = run("dump", "tests.test_cli:make_broken", "--stage", "captured", "--format", "json", "--module", "lm_*")
    document = json.loads(out)  # the graph without lm_head is left out
    assert document["nodes"][-1]["module"] == "lm_head" and len(document["nodes"]) == 4
    _, out, _ = run("dump", "tests.test_cli:make_broken", "--stage", "captured", "--format", "json")
    assert [graph["stage"] for graph in json.loads(out)] == ["captured", "captured"]


def test_dump_refuses_unknown_formats_and_modules(run):
    code, _, err = run("dump", MODEL, "--stage", "captured", "--format", "png")
    assert code == 2 and "the formats are: text, svg, dot, json" in err
    code, _, err = run("dump", MODEL, "--stage", "captured", "--module", "decoder")
    assert code == 2 and "no module matches 'decoder'; the graph has: lm_head, up" in err


def test_dump_needs_to_know_where(run):
    code, _, err = run("dump", MODEL)
    assert code == 2 and "--out" in err and "--stage" in err


# --- errors


@pytest.mark.parametrize(
    "arguments, words",
    (
        (("report", "absent_folder"), "MODULE:FACTORY"),
        (("report", MODEL, "--threshold", "-1"), "threshold must be a number >= 0"),
        (("report", MODEL, "--outliers", "row"), "outliers must be one of"),
        (("report", MODEL, "--outlier-weights", "float"), "outlier_weights must be one of"),
        (("dump", "absent.pt2", "--stage", "captured"), "there is no file 'absent.pt2'"),
    ),
)
def test_errors_are_one_message_and_exit_code_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and words in err and "Traceback" not in err


def test_errors_are_red_on_a_terminal(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, _, err = run("report", "[bold]absent")
    assert "\x1b[1;31merror:" in err and "[bold]absent" in err


@pytest.mark.parametrize("arguments", (("report",), ("report", MODEL, "--treshold", "1"), ("reprot", MODEL)))
def test_wrong_usage_exits_with_2(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2 and "Traceback" not in err


def test_unknown_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["int8pass", "report", "tests.test_cli:make_failing"])
    with pytest.raises(RuntimeError, match="no luck"):
        cli.main()


def test_unknown_errors_show_plain_tracebacks():
    command = [sys.executable, "-m", "int8pass", "report", "tests.test_cli:make_failing"]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("RuntimeError: no luck")
    assert "Traceback (most recent call last):" in result.stderr
