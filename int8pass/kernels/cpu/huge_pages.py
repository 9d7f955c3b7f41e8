"""Memory for packed weights in pages of 2 MiB, where Linux has them.

With one token a Linear does little but read its weight, and with pages of 4 KiB the processor spends as long on finding
the pages: 4096x4096 at one row, cold, on one thread of an AVX-512 VNNI machine, 0.93 ms with small pages, 0.53 ms with
huge ones. Linux gives them to who asks (`/sys/kernel/mm/transparent_hugepage/enabled`: always or madvise).
"""

import logging
import mmap
import threading

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

HUGE_PAGE = 2**21
_CHUNK = 8 * HUGE_PAGE  # weights smaller than a page share a mapping, of which only what is written to takes memory
_LINE = 64  # every tensor starts at a cache line


class _Chunk:
    """A mapping that tensors are cut from, one after the other; it lives as long as any of them."""

    def __init__(self, nbytes: int) -> None:
        # room to begin at a huge page's boundary; what lies before it is never touched
        self._mapping = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = torch.frombuffer(self._mapping, dtype=torch.uint8).data_ptr()
        self._next = -address % HUGE_PAGE
        self._end = self._next + nbytes
        # whole pages only, so that the last one takes no memory past the tensors
        self._mapping.madvise(mmap.MADV_HUGEPAGE, self._next, nbytes // HUGE_PAGE * HUGE_PAGE)

    def cut(self, nbytes: int) -> Tensor | None:
        """uint8[nbytes], or None where there is no room left."""
        start = -(-self._next // _LINE) * _LINE
        if start + nbytes > self._end:
            return None
        self._next = start + nbytes
        return torch.frombuffer(self._mapping, dtype=torch.uint8, count=nbytes, offset=start)


class _Allocator:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: _Chunk | None = None

    def empty(self, nbytes: int) -> Tensor:
        """uint8[nbytes]. Raises OSError where the kernel has no huge pages."""
        if nbytes >= HUGE_PAGE:
            return _Chunk(nbytes).cut(nbytes)
        with self._lock:
            found = self._shared and self._shared.cut(nbytes)
            if found is None:
                self._shared = _Chunk(_CHUNK)
                found = self._shared.cut(nbytes)
            return found


_ALLOCATOR = _Allocator()


def empty_int8(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """An uninitialized int8 tensor, on the CPU in huge pages where there are any."""
    nbytes = torch.Size(shape).numel()
    if nbytes and torch.device(device).type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            return _ALLOCATOR.empty(nbytes).view(torch.int8).view(shape)
        except OSError as error:
            logger.info("packed weights lie in small pages, the system gives no huge ones: %s", error)
    return torch.empty(shape, dtype=torch.int8, device=device)
