"""Files are written whole, then renamed: a reader never sees half of one, and a failure leaves the old one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from int8pass.errors import OutputError

_CACHE_VARIABLE = "INT8PASS_CACHE_DIR"


def cache_folder() -> Path:
    """Where what is made once for this machine is kept: compiled kernels, measured times."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "int8pass"
    return Path(os.environ.get(_CACHE_VARIABLE) or default)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, as `write_bytes` does. Raises OutputError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to `path`, replacing the file at once and making folders that are missing. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    with staged(path) as folder:
        (folder / path.name).write_bytes(content)


def require_writable(path: Path) -> None:
    """Raise OutputError, before any work is done, where a file could not be written to `path`."""
    folder = path.parent
    try:
        if path.is_dir():
            reason = "it is a folder; name a file in it"
        elif not folder.is_dir():
            reason = f"there is no folder {str(folder)!r}; make it first"
        else:
            with tempfile.TemporaryFile(dir=folder):
                return
    except OSError as error:
        raise _cannot_write(path, error) from error
    raise OutputError(f"cannot write {str(path)!r}: {reason}")


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write a file and its companions to; they move into place once the block succeeds.

    Companions move before the file of `path`'s own name, which refers to them. Raises OutputError for what the system
    refuses, such as a full disk; nothing is left behind then.
    """
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield folder
        for file in sorted(folder.iterdir(), key=lambda each: each.name == path.name):
            os.chmod(file, 0o666 & ~_umask())
            os.replace(file, path.parent / file.name)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {str(path)!r}: {error.strerror or error}")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
