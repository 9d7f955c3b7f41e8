"""Tuned launches: one at a time, and kept on disk unless the device is shared; which interpreters are known to fail."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.interpreter import interpreter_fault

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("arguments, kept", [((), 2), (("--keep-nothing",), 0)], ids=["kept", "kept nothing"])
def test_two_threads_launch_while_tiles_are_timed(tmp_path, arguments, kept):
    command = [sys.executable, "-m", "tests.kernels.tuning_probe", *arguments]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "both launched\n", done.stderr
    assert len(list(tmp_path.rglob("*.autotune.json"))) == kept


@pytest.mark.parametrize(
    "triton, numpy, fails",
    [("3.6.0", "2.5.1", True), ("3.6.0", "2.4.0", True), ("3.6.0", "2.3.5", False), ("3.7.1", "2.5.0", False)],
)
def test_interpreters_that_fail_are_named(triton, numpy, fails):
    assert bool(fault := interpreter_fault(triton, numpy)) == fails
    assert not fails or (triton in fault and numpy in fault)
