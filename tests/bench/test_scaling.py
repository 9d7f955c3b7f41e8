"""`int8pass bench scaling`: the fitted slope, and the command from end to end."""

import math
import struct

import pytest

from int8pass.bench import scaling
from int8pass.bench.results import Case, Measurement, Run


def cases(cost, sizes=(1, 2, 4, 8, 16, 32), axis="M", name="int8mixed"):
    found = []
    for size in sizes:
        facts = {"axis": axis, "size": size, "layers_a_call": size}
        found.append(Case(f"{axis}={size}", facts, (Measurement(name, seconds=(cost(size),)),)))
    return found


def test_slope_of_linear_and_of_quadratic_growth():
    assert scaling.slope(cases(lambda size: 3e-6 * size), "int8mixed") == pytest.approx(1.0)
    assert scaling.slope(cases(lambda size: 3e-6 * size**2), "int8mixed") == pytest.approx(2.0)


def test_slope_leaves_out_the_sizes_that_a_fixed_cost_hides():
    assert scaling.slope(cases(lambda size: max(size, 4)), "int8mixed") == pytest.approx(1.0)


def test_the_axis_of_layers_counts_whole_graphs():
    assert scaling.slope(cases(lambda size: 1e-3, axis="layers"), "int8mixed") == pytest.approx(1.0)


def test_no_figures_no_slope():
    assert math.isnan(scaling.slope(cases(lambda size: 1.0), "torchao"))
    (verdict,) = scaling.judge(cases(lambda size: math.nan))
    assert verdict.passed is None


@pytest.mark.parametrize(("power", "passed"), [(1, True), (2, False)])
def test_growth_is_judged(power, passed):
    (verdict,) = scaling.judge(cases(lambda size: size**power))
    assert verdict.target == "linear growth with M" and verdict.passed is passed


@pytest.mark.inductor
def test_quick_run(run, tmp_path):
    code, out, err = run("bench", "scaling", "--quick", "--peers", "float32-eager", "--out", tmp_path)
    assert code == 0, err
    result = Run.from_json((tmp_path / "scaling-float32.json").read_text())
    assert [case.name for case in result.cases] == ["M=1", "M=4", "layers=1", "layers=2"]
    assert [verdict.target for verdict in result.verdicts] == ["linear growth with M", "linear growth with layers"]
    assert "time over layers" in out
    png = (tmp_path / "scaling-float32.png").read_bytes()
    assert struct.unpack(">I", png[16:20]) == (1200,)
