"""What the contract tests share: what they are skipped for, and runs of their probes in processes of their own."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.export.tensorrt import stand_in_libraries

PACKAGE = importlib.util.find_spec("torch_tensorrt")
MINOR = ".".join(torch.__version__.split(".")[:2])
SKIPS = [
    *stand_in_libraries.SKIPS,
    pytest.mark.skipif(
        None in (PACKAGE, *map(importlib.util.find_spec, ("dllist", "psutil"))),
        reason=f"torch-tensorrt is not installed: pip install --no-deps 'torch-tensorrt=={MINOR}.*' dllist psutil, and "
        "the tensorrt_cu13_bindings that it names",
    ),
    pytest.mark.skipif(
        PACKAGE is not None and not importlib.metadata.version("torch-tensorrt").startswith(f"{MINOR}."),
        reason="torch-tensorrt is for another PyTorch",
    ),
]


class Findings:
    """What a probe printed, by kind and name."""

    def __init__(self, probe, folder, **environment):
        folder.mkdir(exist_ok=True)
        libraries = stand_in_libraries.build(folder)
        command = [sys.executable, "-m", f"tests.lower.tensorrt.{probe}", libraries, Path(PACKAGE.origin).parent]
        result = subprocess.run(
            [*command, folder / "package"], capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[3],
            env={**os.environ, **environment},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"kind"')]
        self._lines = {(line["kind"], line["name"]): line for line in lines}

    def of(self, kind, name):
        result = self._lines[kind, name]
        assert not isinstance(result.get("error"), str), result["error"]
        return result
