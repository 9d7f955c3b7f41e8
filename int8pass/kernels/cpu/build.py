"""Build linear.cpp with the compiler Inductor uses, keep the library in a cache folder, load it once a process."""

import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import torch

from int8pass import torch_private
from int8pass.files import cache_folder

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "linear.cpp"
_FLAGS = (
    "-O3 -std=c++20 -march=native -fPIC -fopenmp -DAT_PARALLEL_OPENMP=1 "
    # lets the loops over rows vectorize; division and rounding stay IEEE
    "-fno-trapping-math -fno-math-errno -mprefer-vector-width=512"
).split()


@functools.cache
def load() -> str:
    """Load the kernels, building them if this machine and torch version have not yet. Returns "" or why it failed."""
    if reason := torch_private.cxx_compiler_error():
        return reason
    try:
        library = _library()
        if not library.exists():
            logger.warning("building the CPU kernel (once for this machine and torch version)")
            _build(library)
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _library() -> Path:
    """One file for each source, torch version and processor, since the code is compiled for this processor."""
    sources = [path.read_text() for path in (_SOURCE, *sorted(_FOLDER.glob("*.h")))]
    parts = (*sources, " ".join(_FLAGS), torch.__version__, platform.machine(), processor_flags())
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"linear-{digest}.so"


def processor_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _build(library: Path) -> None:
    from torch.utils import cpp_extension  # brings setuptools, which only a build needs

    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled, linked = Path(folder, "linear.o"), Path(folder, "linear.so")
        compiler = torch_private.cxx_compiler()
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        _run([compiler, *_FLAGS, abi, *includes, "-c", str(_SOURCE), "-o", str(compiled)])
        # no OpenMP library of its own: the symbols resolve to the one that torch has loaded
        folders = [f"-L{path}" for path in cpp_extension.library_paths()]
        _run([compiler, "-shared", str(compiled), *folders, "-ltorch_cpu", "-lc10", "-o", str(linked)])
        os.replace(linked, library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
