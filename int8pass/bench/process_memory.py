"""What this process holds in memory, in bytes, from Linux's /proc/self. Raises OSError elsewhere."""

import ctypes
import gc
import re
from pathlib import Path


def resident_bytes() -> int:
    """Pages of this process in memory."""
    return _kilobytes("smaps_rollup", "Rss")


def peak_bytes() -> int:
    """The most that was resident since `reset_peak`."""
    return _kilobytes("status", "VmHWM")


def _kilobytes(file: str, field: str) -> int:
    text = Path(f"/proc/self/{file}").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1])


def reset_peak() -> None:
    """Start `peak_bytes` anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def settled_bytes() -> int:
    """What is resident once Python has collected its cycles and glibc's malloc has given back what is free."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return resident_bytes()
