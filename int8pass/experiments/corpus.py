"""The source of Python's standard library as bytes: text to train a language model on, on every machine, offline."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# No tests and no bundled packages; the code tables of encodings and the dumped manual of pydoc_data are not source.
_LEFT_OUT = frozenset("test tests idle_test site-packages dist-packages __pycache__ encodings pydoc_data".split())
_VALIDATION_SHARE = 16  # one file in so many


@dataclass(frozen=True)
class Corpus:
    """train, validation: uint8[bytes], from different files; digest: of both, hexadecimal."""

    train: Tensor
    validation: Tensor
    digest: str


def load_corpus(folder: Path | None = None, limit: int | None = None) -> Corpus:
    """Read every Python file below `folder` (default: the standard library), in the order of their names.

    A hash of a file's relative name says which part it belongs to, so the split is the same everywhere. limit: bytes
    of each part, from its start; None takes all.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(name.split("/")):
            parts[is_validation(name)].append((folder / name).read_bytes())
    train, validation = (b"\n".join(parts[held_out])[:limit] for held_out in (False, True))
    digest = hashlib.sha256(train + b"\0" + validation).hexdigest()
    return Corpus(_tensor(train), _tensor(validation), digest)


def is_validation(name: str) -> bool:
    """Whether the file of this relative name is held out from training."""
    return hashlib.sha256(name.encode()).digest()[0] % _VALIDATION_SHARE == 0


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
