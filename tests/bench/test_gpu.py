"""The GPU benchmark without a GPU: the check of the kernels, and everything that measures, on the CPU in its place."""

import importlib.util
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from int8pass.bench import gpu, gpu_check, gpu_targets, tables
from int8pass.bench.gpu_cases import WIDTHS, Blocks, BlockShape, LinearShape, block_inputs, moving_columns
from int8pass.bench.gpu_charts import PAPER
from int8pass.bench.gpu_limits import Limits
from int8pass.bench.results import Case, Measurement, Run
from int8pass.errors import UnsupportedDeviceError
from int8pass.files import write_text
from int8pass.kernels.cuda.column_words import slot_of
from tests.kernels.interpreter import INTERPRETER_FAULT

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


def example(*arguments):
    command = [sys.executable, "examples/bench_gpu.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing():
    done = example()
    assert done.returncode == 1
    assert done.stderr.startswith("error: this benchmark needs an NVIDIA GPU") and "--quick" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_results_there_is_nothing_to_draw(tmp_path):
    done = example("--draw", "--out", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("error: there is no ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(bool(INTERPRETER_FAULT) and not torch.cuda.is_available(), reason=INTERPRETER_FAULT)
def test_quick_checks_every_kernel():
    done = example("--quick")
    assert done.returncode == 0, done.stderr
    for op in ("cuda_quantize", "cuda_norm_quantize", "cuda_linear", "cuda_int8_linear", "in two parts", "by cuBLASLt"):
        assert next(line for line in done.stdout.splitlines() if f" {op} " in line).rstrip().endswith("right")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_is_required():
    with pytest.raises(UnsupportedDeviceError, match="CUDA build"):
        gpu.require_cuda()


def test_the_checks_reference_is_the_tests_reference():
    """Two references, written apart, agree."""
    from tests import reference

    listed = [(dtype, gpu_check.LISTED) for dtype in gpu_check.DTYPES]
    for dtype, rule in [*zip(gpu_check.DTYPES, gpu_check.RULES, strict=True), *listed]:
        x, weight, bias = gpu_check._inputs(9, 40, 12, dtype)
        mask = np.zeros((9, 40), bool)
        mask[:, gpu_check.LISTED.arguments(40)[2]] = True
        kept = reference.PROFILE_WEIGHTS if rule.listed and dtype == torch.float32 else "original"
        for original in (True, False):
            found = gpu_check._reference(x, weight, bias, rule, original)
            y, _ = reference.linear(
                x.float().numpy(), weight.float().numpy(), bias.float().numpy(), threshold=rule.threshold,
                outliers="token" if rule.per_token else "column", outlier_weights=kept if original else "dequantized",
                mask=mask if rule.listed else None,
            )  # fmt: skip
            torch.testing.assert_close(found.y, torch.from_numpy(y), rtol=1e-12, atol=1e-12)


@pytest.mark.inductor
def test_everything_is_measured_and_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    plan = gpu.Plan(
        tmp_path, widths=(64,), prefill_rows=(20,), decode_rows=(1,), blocks=BlockShape(64, 96, 4, 2, 1),
        dtype=torch.bfloat16, rounds=2, peers=("bare-*", "int8mixed-64", "int8mixed-moving"), limits_side=64,
    )  # fmt: skip
    written = []
    monkeypatch.setattr(gpu, "write_text", lambda path, text: written.append(text) or write_text(path, text))
    found = gpu.run(plan, CPU, Console(quiet=True))
    assert [len(json.loads(text)["cases"]) for text in written] == [1, 2, 3, 4]
    assert [case.name for case in found.cases] == [
        "64x256 M=20", "64x256 M=1", "1 blocks, prefill 1x20", "1 blocks, decode 1x1",
    ]  # fmt: skip
    linear = found.cases[0]
    for name in ("int8mixed", "int8mixed-64", "int8mixed-moving", "bare-int_mm", "float-eager"):
        assert linear.median(name) > 0 and not linear[name].failure
        assert linear.facts["rates"][name]["TOP/s"] == pytest.approx(2 * 20 * 64 * 256 / linear.median(name) / 1e12)
    assert 0 < linear["int8mixed"].error < 0.02 and math.isnan(linear["bare-int_mm"].error)
    assert 0 < linear["int8mixed-moving"].error < 0.02 and found.cases[3]["int8mixed-moving"].failure == "not run"
    assert 0 < found.cases[3]["int8mixed"].error < 0.05
    assert Run.from_json((tmp_path / "gpu.json").read_text()).cases[0].name == linear.name
    facts = json.loads((tmp_path / "gpu.json").read_text())["machine"]
    assert facts["limits"]["bandwidth"] > 0 and facts["checked"] == "not in this run: --no-check"
    for chart in ("gpu-linears.png", "gpu-blocks.png"):
        assert (tmp_path / chart).read_bytes().startswith(b"\x89PNG")
        (tmp_path / chart).unlink()
    assert example("--draw", "--out", str(tmp_path)).returncode == 0
    for chart in ("gpu-linears.png", "gpu-blocks.png"):
        assert (tmp_path / chart).read_bytes().startswith(b"\x89PNG")


def test_shares_are_of_the_nearer_limit():
    limits = Limits(int8_ops=1e12, float_ops=5e11, bandwidth=1e9)
    assert limits.share(ops=5e11, bytes_moved=1e8, seconds=1.0, int8=True) == 0.5
    assert limits.share(ops=5e11, bytes_moved=1e8, seconds=1.0, int8=False) == 1.0
    assert limits.share(ops=1e9, bytes_moved=8e8, seconds=1.0, int8=True) == 0.8


def test_linears_read_their_weights_from_memory():
    shape = LinearShape(1, 4096, 4096)
    assert shape.copies(50 * 2**20) == 7 and shape.copies(0) == 1
    assert shape.ops == 2 * 4096**2
    assert shape.bytes_moved(1, 2) == 4096**2 + 2 * 2 * 4096
    x = shape.input(8, CPU, torch.float16)
    assert (x.abs() >= 6).sum() == 8 and len(PAPER) == len(WIDTHS)


@pytest.mark.parametrize("features", [64, 256, *WIDTHS, 49152])
def test_moving_columns_are_never_in_the_cache(features):
    """Those of one turn have slots of their own, and those of the next one the same slots."""
    first, second = (moving_columns(features, 8, turn) for turn in range(2))
    assert len({slot_of(column, features) for column in first}) == 8
    assert [slot_of(column, features) for column in second] == [slot_of(column, features) for column in first]
    assert not set(first) & set(second) and max(first + second) < features
    x = LinearShape(1, features, 8).input(8, CPU, torch.float16, turn=1)
    assert (x.abs() >= 6).nonzero()[:, 1].tolist() == sorted(second)


def test_blocks_have_the_weights_that_they_say():
    shape = BlockShape(64, 96, 4, 2, blocks=3)
    model = Blocks(shape, CPU, torch.float32)
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(linear.weight.numel() for linear in linears) == shape.weights
    assert BlockShape(blocks=32).weights == 6_979_321_856  # Llama-3-8B less embedding, head and norms


def test_a_block_decodes_as_it_prefills():
    shape = BlockShape(64, 96, 4, 2, blocks=1)
    model = Blocks(shape, CPU, torch.float32)
    x, _ = block_inputs(shape, 1, 5, 0, CPU, torch.float32)
    block = model.blocks[0]
    normed = block.norms[0](x)
    past = torch.stack([block._heads(linear(normed), 2)[:, :, :4] for linear in (block.key, block.value)])
    torch.testing.assert_close(model(x[:, 4:], past), model(x, None)[:, 4:], rtol=1e-4, atol=1e-4)


def test_targets():
    def case(rows, width, int8, floating, branchless, share):
        found = tuple(
            Measurement(name, (seconds,))
            for name, seconds in (("int8mixed", int8), ("float-eager", floating), ("int8mixed-t0", branchless))
        )
        facts = {"M": rows, "K": width, "rates": {"int8mixed": {"share": share}}}
        return Case(f"{width} {rows}", facts, found)

    cases = [case(2048, 4096, 1.0, 1.6, 0.9, 0.5), case(2048, 1024, 1.0, 1.1, 0.5, 0.5),
             case(1, 4096, 1.0, 1.5, 1, 0.8), case(1, 768, 1.0, 0.9, 1, 0.3)]  # fmt: skip
    passed = {verdict.target: verdict.passed for verdict in gpu_targets.judge(cases)}
    assert passed["1.0x 16-bit cuBLAS, Table 5, width >= 1024"] and passed["1.5x 16-bit cuBLAS, Table 5, width >= 4096"]
    assert passed["1.7x 16-bit cuBLAS, Table 5, width 12288"] is None
    assert passed["1.6x 16-bit cuBLAS, M <= 16, width >= 4096"] is False
    assert passed["0.75 of measured memory bandwidth, M <= 16, width >= 4096"] is True
    assert passed["branch <= 5%, 8 columns, K = 4096"] is False
    text = io.StringIO()
    Console(file=text, width=130).print(tables.verdict_table(gpu_targets.judge(cases)))
    narrow = [" ".join(line.split()) for line in text.getvalue().splitlines() if "width < 4096" in line]
    assert narrow == [
        "16-bit cuBLAS, M <= 16, width < 4096 shown only 0.900 0.900",
        "share of measured memory bandwidth, M <= 16, width < 4096 shown only 0.300 0.300",
    ]
