"""Libraries in place of TensorRT's, which the real Python bindings load: every function fails."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BINDINGS = importlib.util.find_spec("tensorrt_bindings")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
# What a test that uses them is skipped for.
SKIPS = [
    pytest.mark.skipif(
        BINDINGS is None,
        reason="the bindings are not installed: pip install --no-deps tensorrt_cu13_bindings "
        "(or 'tensorrt_cu12_bindings<11' for TensorRT 10)",
    ),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler for the stand-ins"),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_libs") is not None,
        reason="the real libraries are installed: build an engine",
    ),
]
# The nine functions that the bindings link to; each gives a null pointer, which means failure.
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
    "initLibNvInferPlugins",
)


def build(folder):
    """Compile one for each library that the bindings name. Returns the folder that they are in."""
    libraries = folder / "libraries"
    libraries.mkdir()
    (folder / "none.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    (module,) = Path(BINDINGS.origin).parent.glob("tensorrt*.so")
    for name in sorted(set(re.findall(rb"libnv\w+\.so\.\d+", module.read_bytes()))):
        library = libraries / name.decode()
        soname = f"-Wl,-soname,{library.name}"
        subprocess.run([COMPILER, "-shared", "-fPIC", soname, "-o", library, folder / "none.c"], check=True)
    return libraries
