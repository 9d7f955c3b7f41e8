"""What `examples/bench_gpu.py` measured to be faster on a device, kept: one file for each device and set of versions.

The kernels and the lowering read it once a process. Nothing is measured while a model runs.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from int8pass.files import cache_folder, write_text
from int8pass.kernels.identity import device_in_words, kernel_version

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """size: what was measured; speed: of the alternative there, over that of what is done without a measurement."""

    size: Any
    speed: float


@dataclass
class Comparisons:
    """Those of one question. folder: in the user's cache; size: the dataclass that it is asked of; otherwise: what
    happens where none can be read, for the log."""

    folder: str
    size: type
    otherwise: str
    _faster: dict[torch.device, frozenset] = field(default_factory=dict)

    def faster(self, device: torch.device) -> frozenset:
        """The sizes at which the alternative was measured to be faster."""
        if device not in self._faster:
            self._faster[device] = frozenset(each.size for each in self._load(device) if each.speed > 1)
        return self._faster[device]

    def save(self, device: torch.device, found: Iterable[Comparison]) -> Path:
        """Keep comparisons, beside those of other sizes that were kept before. Raises OutputError."""
        kept = {each.size: each for each in (*self._load(device), *found)}
        content = {"key": _key(device), "comparisons": [dataclasses.asdict(each) for each in kept.values()]}
        write_text(self._path(device), json.dumps(content, indent=2) + "\n")
        self.forget()
        return self._path(device)

    def forget(self) -> None:
        """Have the files read again."""
        self._faster.clear()

    def _load(self, device: torch.device) -> list[Comparison]:
        path = self._path(device)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = [Comparison(self.size(**each["size"]), float(each["speed"])) for each in content["comparisons"]]
            return found if content["key"] == _key(device) else []
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read, so %s: %s", path, self.otherwise, error)
            return []

    def _path(self, device: torch.device) -> Path:
        digest = hashlib.sha256(json.dumps(_key(device), sort_keys=True).encode()).hexdigest()[:32]
        return cache_folder() / self.folder / f"{digest}.json"


@functools.cache
def _key(device: torch.device) -> dict[str, str]:
    import triton  # its name as a package differs between PyTorch's builds

    return {
        "device": device_in_words(device),
        "kernels": kernel_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def rows_up_to(M: int) -> int:
    """M rounded up to a power of two: sizes up to the same one share a choice."""
    return 1 << max(0, M - 1).bit_length()
