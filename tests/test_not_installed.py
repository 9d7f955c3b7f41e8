"""A checkout that was not installed, without metadata and entry points: the GPU benchmark works there all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from int8pass.version import VERSION

ROOT = Path(__file__).parents[1]

HIDE = """
import importlib.metadata as metadata
import sys

find = metadata.MetadataPathFinder.find_distributions
metadata.MetadataPathFinder.find_distributions = lambda *args: (each for each in find(*args) if each.name != "int8pass")
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
try:
    metadata.version("int8pass")
except metadata.PackageNotFoundError:
    pass
else:
    sys.exit("int8pass is installed all the same")
"""
VERSIONS = """
import torch
from int8pass.bench import machine
from int8pass.break_even import store
from int8pass.break_even.case import Case
from int8pass.config import Int8MixedConfig

case = Case(1, 8, 8, *[torch.float32] * 4, torch.device("cpu"))
print(store.key_of(case, Int8MixedConfig())["int8pass"], machine.describe()["versions"]["int8pass"])
"""
CONTESTANT = """
import runpy

sys.path = ["examples", *[path for path in sys.path if path != ""]]  # as Python sets it for a script
runpy.run_path("examples/bench_gpu.py")
import torch
from torch import nn
from int8pass.bench import gpu_contestants

assert "int8mixed" not in torch.compiler.list_backends(exclude_tags=())
layers = gpu_contestants.Layers([nn.Linear(8, 8)]).eval().requires_grad_(False)
with torch.no_grad():
    (y,) = gpu_contestants.int8mixed(lowering="eager")(layers)([torch.ones(2, 8)])
print(list(y.shape))
"""


def run(script):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", HIDE + script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_versions_are_known():
    assert run(VERSIONS).split() == [VERSION] * 2


def test_the_gpu_benchmark_finds_the_package_and_needs_no_name_of_a_backend():
    assert run(CONTESTANT) == "[2, 8]\n"


def test_the_project_takes_its_version_from_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "int8pass.version.VERSION"}
