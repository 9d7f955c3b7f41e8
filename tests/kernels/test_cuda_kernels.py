"""The CUDA kernels under Triton's interpreter, and on a GPU where there is one: cases run in a process of their own.

Triton decides when it is imported whether it compiles or interprets, and other tests import it through Inductor.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.interpreter import INTERPRETER_FAULT

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


CASES = sorted(file.name for file in HERE.glob("cuda_*_cases.py"))


@pytest.mark.skipif(bool(INTERPRETER_FAULT), reason=INTERPRETER_FAULT)
@pytest.mark.parametrize("cases", CASES)
def test_in_the_interpreter(cases):
    run(cases, TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("cases", CASES)
def test_on_the_gpu(cases):
    run(cases, TRITON_INTERPRET="0")


def run(cases, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(HERE / cases)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout
