"""The kernel that TensorRT launches without Python: its numbers in Triton's interpreter, and its code for 9.0."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from int8pass.errors import EngineError
from int8pass.kernels.cuda import fused
from tests.kernels.interpreter import INTERPRETER_FAULT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

CASES = Path(__file__).with_name("linear_kernel_cases.py")
ARGUMENTS = ["u64", "u64", "u64", "u64", "u64", "u32", "u64"]  # x, w_codes, w_scale, bias, weight, rows, y


@pytest.mark.skipif(torch.cuda.is_available(), reason="run on the GPU instead")
@pytest.mark.skipif(bool(INTERPRETER_FAULT), reason=INTERPRETER_FAULT)
def test_in_the_interpreter():
    run(TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_the_gpu():
    run(TRITON_INTERPRET="0")


def run(**environment):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def problem(rows, dtype, capability=(9, 0), original=True, outliers=fused.COLUMN):
    from int8pass.lower.tensorrt.linear_kernel import Problem

    dtypes = (dtype, torch.int8, torch.float32, dtype, dtype if original else torch.int8, dtype)
    return Problem(rows, 4096, 4096, outliers, 6.0, dtypes, capability)


def check(problem):
    """Every tile compiles to a kernel that a launch without further ado can hold, over TensorRT's arguments alone."""
    from int8pass.lower.tensorrt.linear_kernel import LARGEST_SHARED_MEMORY, compile_linear

    found = []
    for tile in problem.tiles:
        kernel = compile_linear(problem, tile)
        (entry,) = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", kernel.ptx, re.DOTALL)
        assert entry[0] == kernel.name and re.findall(r"\.param \.(\w+)", entry[1]) == ARGUMENTS
        assert re.findall(r"\.reqntid (\d+)", kernel.ptx) == [str(kernel.threads)]
        assert kernel.shared_memory <= LARGEST_SHARED_MEMORY
        found.append(kernel.ptx)
    return found


@pytest.mark.parametrize("rows, dtype", [(1, torch.float16), (16, torch.float32)], ids=str)
def test_it_compiles_for_a_gpu_that_is_not_there(rows, dtype):
    for ptx in check(problem(rows, dtype)):
        assert "div.rn.f32" in ptx and "div.full" not in ptx
        assert re.search(r"mma\.sync\S+s32\.s8\.s8", ptx)
        assert ".tf32" not in ptx and ".ftz" not in ptx


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (10, 0), (12, 0)], ids=str)
def test_it_compiles_for_every_capability(capability):
    for rows, dtype in ((1, torch.float16), (5, torch.float32), (16, torch.bfloat16)):
        assert check(problem(rows, dtype, capability, original=rows > 1, outliers=fused.TOKEN))


def test_more_rows_and_wider_types_leave_fewer_tiles():
    counts = [len(problem(rows, dtype).tiles) for rows in (1, 16) for dtype in (torch.float16, torch.float32)]
    assert counts == sorted(counts, reverse=True) and counts[-1] >= 2


def test_arguments_of_tritons_own_are_taken_away():
    from int8pass.lower.tensorrt.linear_kernel import without_scratch_memory

    arguments = (".param .u64 .ptr .global .align 1 f_param_0", ".param .u32 f_param_1", ".param .u64 f_param_2")
    ptx = ".visible .entry f(\n\t" + ",\n\t".join(arguments) + "\n)"
    body = "{\n\tld.param.b64 \t%rd1, [f_param_0];\n}"
    assert without_scratch_memory(ptx + body, "f", 3) == ptx + body
    assert without_scratch_memory(ptx + body, "f", 2) == ptx.replace(",\n\t.param .u64 f_param_2", "") + body
    with pytest.raises(EngineError, match="gives f scratch memory, and TensorRT has none"):
        without_scratch_memory(ptx + body + "ld.param.b64 %rd2, [f_param_2];", "f", 2)
