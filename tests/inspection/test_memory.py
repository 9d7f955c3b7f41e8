"""The memory that reports predict for a weight, beside what a process takes while it is quantized."""

import json
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from int8pass.inspection.memory import int8_bytes, weight_memory
from int8pass.weight_expression import WeightExpression
from int8pass.weights import quantize_weight

EXPRESSIONS = {
    "": WeightExpression("weight"),
    ".t()": WeightExpression("weight", ".t()", lambda tensor: tensor.t()),
    ".half()": WeightExpression("weight", ".half()", lambda tensor: tensor.half()),
}
ROWS, COLUMNS = 4096, 4096

QUANTIZE = """
import json, sys
import torch
from int8pass.bench.process_memory import peak_bytes, reset_peak, settled_bytes
from int8pass.weights import quantize_weight
from tests.inspection.test_memory import COLUMNS, EXPRESSIONS, ROWS

torch.set_num_threads(1)  # where several processes share few cores, threads wait for one another
given = json.loads(sys.argv[1])

def run(rows, columns):
    weight = torch.randn(rows, columns).to(getattr(torch, given["dtype"]))
    settled_bytes()
    reset_peak()
    with torch.no_grad():
        quantized = quantize_weight(EXPRESSIONS[given["view"]].evaluate(weight))
    if not given["kept_float"]:
        del weight
    if given["fused"]:
        quantized.packed
    return peak_bytes()

run(128, 256)
before = settled_bytes()
print(run(ROWS, COLUMNS) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "dtype, view, kept_float, fused",
    (
        ("float32", "", True, True),
        ("bfloat16", ".t()", False, True),
        ("float32", ".half()", True, False),
    ),
)
def test_peak_is_what_a_process_takes(dtype, view, kept_float, fused):
    given = {"dtype": dtype, "view": view, "kept_float": kept_float, "fused": fused}
    command = [sys.executable, "-c", QUANTIZE, json.dumps(given)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    tensor = torch.empty(ROWS, COLUMNS, dtype=getattr(torch, dtype))
    memory = weight_memory(tensor, EXPRESSIONS[view], kept_float=kept_float, fused=fused)
    assert int(result.stdout) == pytest.approx(memory.peak, rel=0.06)


@pytest.mark.parametrize("rows, columns", ((64, 64), (1, 1), (65, 30), (100, 257)))
def test_int8_bytes_are_those_held(rows, columns):
    quantized = quantize_weight(torch.randn(rows, columns))
    assert int8_bytes(rows, columns, packed=False) == quantized.nbytes == rows * columns + 4 * rows
    _ = quantized.packed
    assert int8_bytes(rows, columns, packed=True) == quantized.nbytes


def test_float_weight_counts_where_it_is_kept():
    tensor = torch.empty(128, 64)
    kept, freed = (
        weight_memory(tensor, EXPRESSIONS[""], kept_float=kept_float, fused=True) for kept_float in (True, False)
    )
    assert (kept.before, kept.int8) == (freed.before, freed.int8) == (4 * 128 * 64, 128 * 64 + 8 * 128)
    assert (kept.after, freed.after) == (kept.before + kept.int8, freed.int8)


def test_layout_of_the_fused_kernel_is_not_counted_where_it_takes_no_weight():
    wide = torch.empty(1, 70000)
    assert weight_memory(wide, EXPRESSIONS[""], kept_float=False, fused=True).int8 == 70000 + 4


@pytest.mark.parametrize("dtype, profiled", [("float32", False), ("float32", True), ("bfloat16", False)])
def test_cached_columns_count_on_cuda(dtype, profiled):
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensor = torch.empty(128, 1024, dtype=getattr(torch, dtype), device="cuda")
    given = {"kept_float": True, "fused": True, "profiled": profiled}
    without, cached = (weight_memory(tensor, EXPRESSIONS[""], outliers=outliers, **given) for outliers in (False, True))
    held = 32 * 128 * (8 if dtype == "float32" and not profiled else 4)  # 32 slots for 1024 features
    assert cached.int8 == without.int8 + held and cached.after == without.after + held
    unfused = weight_memory(tensor, EXPRESSIONS[""], kept_float=True, fused=False, outliers=True)
    assert unfused.after == without.after
