"""Whose int8 product Linears of many rows take on a GPU: Triton's, unless cuBLASLt's was measured to be faster there.

`examples/bench_gpu.py --products` measures and keeps the times, one file for each device and set of versions. The
kernels read it once a process; this choice is never measured while a model runs.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from int8pass.break_even.store import device_in_words, kernel_version
from int8pass.files import cache_folder, write_text

logger = logging.getLogger(__name__)

TRITON, CUBLASLT = "triton", "cublaslt"
_FEWEST_ROWS, _MULTIPLE = 17, 8  # of torch._int_mm on CUDA


@dataclass(frozen=True)
class Size:
    """Linears that share a choice. rows: M, rounded up to a power of two; dtype: of x, in words."""

    rows: int
    out_features: int
    in_features: int
    dtype: str

    @classmethod
    def of(cls, M: int, N: int, K: int, dtype: torch.dtype) -> "Size":
        return cls(1 << max(0, M - 1).bit_length(), N, K, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class Comparison:
    """speed: of a Linear by cuBLASLt's product over that by Triton's, what follows the product included."""

    size: Size
    speed: float


def cublaslt_takes(M: int, N: int, K: int) -> bool:
    """Whether PyTorch hands cuBLASLt an int8 product [M, K] x [K, N]: 17 rows or more, N and K multiples of 8."""
    return M >= _FEWEST_ROWS and N > 0 and K > 0 and N % _MULTIPLE == 0 and K % _MULTIPLE == 0


def product_for(M: int, N: int, K: int, dtype: torch.dtype, device: torch.device) -> str:
    """TRITON, or CUBLASLT where it takes the product and was measured to be faster on the device."""
    return CUBLASLT if cublaslt_takes(M, N, K) and Size.of(M, N, K, dtype) in _faster(device) else TRITON


def save(device: torch.device, found: Iterable[Comparison]) -> Path:
    """Keep comparisons, beside those of other sizes that were kept before. Raises OutputError."""
    kept = {each.size: each for each in (*_load(device), *found)}
    content = {"key": _key(device), "comparisons": [dataclasses.asdict(each) for each in kept.values()]}
    write_text(_path(device), json.dumps(content, indent=2) + "\n")
    _faster.cache_clear()
    return _path(device)


@functools.cache
def _faster(device: torch.device) -> frozenset[Size]:
    """The sizes at which cuBLASLt is faster."""
    return frozenset(each.size for each in _load(device) if each.speed > 1)


def _load(device: torch.device) -> list[Comparison]:
    path = _path(device)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [Comparison(Size(**each["size"]), float(each["speed"])) for each in content["comparisons"]]
        return found if content["key"] == _key(device) else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read, so Triton's int8 product is used throughout: %s", path, error)
        return []


def _path(device: torch.device) -> Path:
    digest = hashlib.sha256(json.dumps(_key(device), sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "cuda_products" / f"{digest}.json"


@functools.cache
def _key(device: torch.device) -> dict[str, str]:
    import triton  # its name as a package differs between PyTorch's builds

    return {
        "device": device_in_words(device),
        "kernels": kernel_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
