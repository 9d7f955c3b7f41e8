"""What was measured, kept in the user's cache folder: one small file for each Linear, machine and set of options.

Files are written whole, then renamed, so any number of processes may write; one that cannot be read is measured again.
"""

import dataclasses
import hashlib
import json
import logging
import math
from pathlib import Path

import torch

from int8pass.break_even.case import Case
from int8pass.config import Int8MixedConfig
from int8pass.files import cache_folder, write_text
from int8pass.kernels.identity import device_in_words, kernel_version
from int8pass.version import VERSION

logger = logging.getLogger(__name__)

_NOT_ABOUT_TIME = frozenset(
    {"skip_modules", "skip_modules_default", "free_weights", "break_even", "dump_dir", "profile"}
)

_known: dict[str, float] = {}  # of this process, for where the folder cannot be written to


def key_of(case: Case, config: Int8MixedConfig) -> dict[str, str]:
    """Everything that the time of a Linear depends on, in words: machine, versions, options, and the Linear."""
    options = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    options["outlier_weights"] = "original" if config.keeps_original_weights else "dequantized"
    found = {
        "device": device_in_words(case.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "int8pass": VERSION,
        "kernels": kernel_version(),
        **{name: value for name, value in options.items() if name not in _NOT_ABOUT_TIME},
        **{f"linear.{item.name}": getattr(case, item.name) for item in dataclasses.fields(case)},
    }
    return {name: str(value) for name, value in found.items()}


def load(key: dict[str, str]) -> float | None:
    """The speedup that was kept under a key; None where there is none, or its file is not what was written."""
    path = _path(key)
    if path.name in _known:
        return _known[path.name]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        speedup = content["speedup"] if content["key"] == key else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read and is measured again: %s", path, error)
        return None
    if not isinstance(speedup, float) or not math.isfinite(speedup) or speedup <= 0:
        logger.warning("%s holds no speedup for its key and is measured again", path)
        return None
    _known[path.name] = speedup
    return speedup


def save(key: dict[str, str], speedup: float) -> None:
    """Keep a speedup. Where the folder cannot be written to, for this process only, and a log line says so."""
    path = _path(key)
    _known[path.name] = speedup
    try:
        write_text(path, json.dumps({"speedup": speedup, "key": key}, indent=2) + "\n")
    except OSError as error:
        logger.warning("what was measured is not kept, another process will measure it again: %s", error)


def _path(key: dict[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "break_even" / f"{digest}.json"
