"""The CUDA kernels compile to machine code for GPUs that are not there, to the instructions that they are about."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def compiled(capability, *arguments):
    command = [sys.executable, "-m", "tests.kernels.fake_gpu", str(capability), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "capability, product",
    [(90, "wgmma.mma_async"), pytest.param(80, "mma.sync.aligned.m16n8k32", marks=pytest.mark.slow)],
    ids=str,
)
def test_instructions(capability, product):
    found = compiled(capability)
    names = ("_quantize_rows", "_int8_gemm", "few_rows_kernel", "_finish_sums", "_norm_quantize_rows")
    quantize, many, few, finish, norm = (found["assembly"][name] for name in names)
    for instructions in (quantize, few, norm):
        assert "div.rn.f32" in instructions and not any(name.startswith("div.full") for name in instructions)
    assert any(name.startswith(product) and "s32.s8.s8" in name for name in many)
    assert any(name.startswith("mma.sync") and "s32.s8.s8" in name for name in few)
    for instructions in (many, few, finish):  # words of the column cache, each read and written at once
        assert any(name.startswith("ld.global.cg") for name in instructions)
        assert any(name.startswith("st.global.cg") for name in instructions)
    for instructions in (quantize, many, few, finish, norm):
        assert not any(".tf32" in name or ".ftz" in name for name in instructions)
    # A few bytes are for the slow path of division; more would be registers that were spilled to memory, as those of
    # the one case that multiplies outliers in float32 are at this tile size: tuning gives it smaller ones.
    assert sum(kernel["stack"] > 32 for kernel in found["loaded"]) <= 1


@pytest.mark.slow
def test_an_unaligned_width_is_loaded_while_the_tile_before_is_multiplied():
    """K = 5140, a multiple of 4: asynchronous copies of four bytes at a time, and no registers spilled."""
    found = compiled(90, "--unaligned")
    for kernel in ("_int8_gemm", "few_rows_kernel"):
        assert any(name.startswith("cp.async.c") for name in found["assembly"][kernel]), kernel
    multiplied = [kernel for kernel in found["loaded"] if kernel["kernel"] in ("_int8_gemm", "few_rows_kernel")]
    assert len(multiplied) >= 5 and all(kernel["stack"] <= 32 for kernel in multiplied)


@pytest.mark.slow
def test_turing():
    """Triton has no int8 product for it: float16 products, exact in their float32 sums, without tensor cores."""
    found = compiled(75)
    assert {"_int8_gemm", "few_rows_kernel", "_quantize_rows", "_norm_quantize_rows"} <= {
        kernel["kernel"] for kernel in found["loaded"]
    }


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_every_tile_size_compiles(capability):
    assert compiled(capability, "--all")["loaded"]
