"""What is not Python in the package travels with it: pip installs just what pyproject.toml names."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "int8pass"


def package_files():
    """Every file of the package but Python's caches and the documentation of its folders, pictures included."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path for path in files if path.name != "README.md" and path.suffix != ".png"}


def named_files():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["int8pass"]
    return {pattern: set(PACKAGE.glob(pattern)) for pattern in patterns}


def test_every_file_that_is_not_python_is_named():
    named = set().union(*named_files().values())
    assert {path for path in package_files() if path.suffix != ".py"} <= named


def test_every_name_finds_files():
    assert [pattern for pattern, files in named_files().items() if not files] == []


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in package_files() if path.suffix == ".py"}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.slow
def test_a_report_is_written_from_a_wheel(tmp_path):
    pytest.importorskip("setuptools", "77", reason="the wheel is built without downloading its build tools")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "int8pass", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "w", tmp_path]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "w").glob("*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()
    (elsewhere / "made.py").write_text(
        "import torch\nmake = lambda: (torch.nn.Linear(8, 4), (torch.ones(2, 8),), {})\n"
    )
    kernel = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "kernel")}  # compiled anew, from the wheel's own sources
    run = [sys.executable, "-m", "int8pass"]

    def ran(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(installed), **kernel}
        return subprocess.run([*run, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True)

    report = ran("report", "made:make", "--html", "report.html", "--timings")
    assert report.returncode == 0, report.stderr
    assert "fused" in report.stdout
    assert "Mike Bostock" in (elsewhere / "report.html").read_text(encoding="utf-8")  # d3's licence
    assert ran("export", "onnx", "made:make", "-o", "made.onnx", "--threshold", "0").returncode == 0
    check = ran("check", "made.onnx")  # reads the list of operators
    assert check.returncode in (0, 1) and "Traceback" not in check.stderr, check.stderr
