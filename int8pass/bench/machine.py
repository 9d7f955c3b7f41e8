"""The machine that a benchmark ran on, read from Linux's /proc and /sys; elsewhere "unknown", with usual sizes."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from int8pass.version import VERSION

LIBRARIES = (
    "torch triton numpy bitsandbytes torchao onnxruntime onnx openvino nncf transformers llama-cpp-python gguf"
).split()
ENVIRONMENT = "OMP_NUM_THREADS OMP_WAIT_POLICY OMP_PROC_BIND KMP_BLOCKTIME MKL_NUM_THREADS ONEDNN_MAX_CPU_ISA".split()
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20
_USUAL_MEMORY = 8 * 2**30
_INSTRUCTION_SETS = re.compile(r"avx|amx|vnni|fma|f16c|asimd|i8mm|sve|bf16")


def describe() -> dict[str, Any]:
    """CPU, instruction sets, caches, memory, threads, system, environment, and the version of every library."""
    flags = cpu_flags()
    return {
        "cpu": cpu_model(),
        "instruction_sets": [flag for flag in flags if _INSTRUCTION_SETS.search(flag)],
        "flags": flags,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_available_bytes": available_memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "versions": {"int8pass": VERSION, **{name: _version(name) for name in LIBRARIES}},
    }


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def cpu_flags() -> list[str]:
    return sorted((_cpuinfo("flags") or _cpuinfo("Features")).split())


def has_exact_int8() -> bool:
    """Whether the CPU multiplies int8 without 16-bit sums that saturate: VNNI or AMX."""
    return any("vnni" in flag or flag == "amx_int8" for flag in cpu_flags())


def last_level_cache_bytes() -> int:
    """Size of the largest cache that the first CPU reaches; 32 MiB where the system does not tell."""
    sizes = [_size(path.read_text()) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=_USUAL_CACHE)


def available_memory_bytes() -> int:
    """Memory that can be had without swapping, within the limit of the control group; 8 GiB where nothing tells."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    available = int(found[1]) * 1024 if found else _USUAL_MEMORY
    group = Path("/sys/fs/cgroup")
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    return min(available, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else available


def _cpuinfo(key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]?)\s*", text).groups()
    return int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
