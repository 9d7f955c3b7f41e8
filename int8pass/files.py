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
    """Write UTF-8 text to `path`, replacing the file at once."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to `path`, replacing the file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are readable by their owner only
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def require_writable(path: Path) -> None:
    """Raise OutputError, before any work is done, where a file could not be written to `path`."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if not folder.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: there is no folder {str(folder)!r}; make it first")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write a file and its companions to; they move into place once the block succeeds.

    Companions move before the file of `path`'s own name, which refers to them. Raises OutputError for what the system
    refuses, such as a full disk; nothing is left behind then.
    """
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    try:
        yield folder
        for file in sorted(folder.iterdir(), key=lambda each: each.name == path.name):
            os.chmod(file, 0o666 & ~_umask())
            os.replace(file, path.parent / file.name)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
