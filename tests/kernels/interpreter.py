"""Whether Triton's interpreter works beside the NumPy that is installed."""

import importlib.metadata
import importlib.util

FIXED_IN, FAILS_FROM = (3, 7), (2, 4)  # of Triton; of NumPy


def interpreter_fault(triton: str, numpy: str) -> str:
    """Why kernels cannot be interpreted with these versions; "" where they can."""
    if _release(triton) >= FIXED_IN or _release(numpy) < FAILS_FROM:
        return ""
    return f"the interpreter of Triton {triton} fails with NumPy {numpy}: it takes arrays of one element for numbers"


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _installed() -> str:
    if importlib.util.find_spec("triton") is None:
        return ""
    import triton  # its name as a package differs between PyTorch's builds

    return interpreter_fault(triton.__version__, importlib.metadata.version("numpy"))


INTERPRETER_FAULT = _installed()
