"""What a measured time holds for, in words: the device, and the sources of kernels and lowerings."""

import functools
import hashlib
from pathlib import Path

import torch

from int8pass.bench.machine import cpu_model
from int8pass.kernels.cpu.build import processor_flags

_SOURCES = ("kernels", "lower")


def device_in_words(device: torch.device) -> str:
    """The processor, with its instruction sets, or the accelerator."""
    if device.type == "cpu":
        return f"{cpu_model()} {processor_flags()}"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} {properties.major}.{properties.minor} CUDA {torch.version.cuda}"


@functools.cache
def kernel_version() -> str:
    """A digest of the sources of kernels and lowerings."""
    package = Path(__file__).parents[1]
    sources = [path for folder in _SOURCES for path in sorted((package / folder).rglob("*.*")) if path.is_file()]
    content = b"\0".join(path.read_bytes() for path in sources if path.suffix in (".py", ".cpp", ".h"))
    return hashlib.sha256(content).hexdigest()[:16]
