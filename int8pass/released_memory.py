"""Give freed weights back to the system: glibc's malloc keeps pieces of up to 32 MiB, and holes between live ones."""

import ctypes
import functools
import sys
from collections.abc import Callable

_RELEASED_AT_ONCE = 32 * 2**20  # trimming takes milliseconds

_released = 0


def released(nbytes: int) -> None:
    """Count memory that was freed, and have malloc return what it keeps once that is worth the time."""
    global _released
    _released += nbytes
    if _released >= _RELEASED_AT_ONCE:
        _released = 0
        _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    """glibc's malloc_trim; elsewhere nothing."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", lambda keep: None)
