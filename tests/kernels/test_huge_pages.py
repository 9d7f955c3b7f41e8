"""Packed weights in huge pages: whole, apart from each other, and gone with their tensors."""

import gc
import mmap
import sys

import pytest
import torch

from int8pass.kernels.cpu import huge_pages
from int8pass.kernels.cpu.huge_pages import HUGE_PAGE, empty_int8
from int8pass.kernels.cpu.packing import pack, unpack

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def mappings() -> list[dict[str, str]]:
    """Of /proc/self/smaps, by mapping: its address range under "range", and its fields."""
    found = []
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first, *rest = line.split()
            if first.endswith(":"):
                found[-1][first] = " ".join(rest)
            else:
                found.append({"range": first})
    return found


def mapping_of(tensor: torch.Tensor) -> dict[str, str]:
    for mapping in mappings():
        start, end = (int(bound, 16) for bound in mapping["range"].split("-"))
        if start <= tensor.data_ptr() < end:
            return mapping
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.parametrize("shape", [(0, 4), (1,), (3, 5, 64, 4), (2, 1024, 64, 4), (HUGE_PAGE + 64,)])
def test_tensors_are_whole_and_lie_apart(shape):
    tensors = [empty_int8(shape).fill_(value) for value in range(5)]
    for value, tensor in enumerate(tensors):
        assert tensor.shape == torch.Size(shape) and tensor.dtype is torch.int8 and tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert (tensor == value).all()


def test_a_packed_weight_comes_back_from_huge_pages():
    codes = torch.randint(-127, 128, (1030, 2050), dtype=torch.int8)
    assert torch.equal(unpack(pack(codes), *codes.shape), codes)


@LINUX
@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a kernel without huge pages")
def test_huge_pages_are_asked_for_and_no_more_than_needed():
    before = kilobytes_in_huge_pages()
    tensor = empty_int8((3 * HUGE_PAGE + HUGE_PAGE // 2,)).fill_(1)
    flags = mapping_of(tensor)["VmFlags:"].split()
    assert "hg" in flags
    assert tensor.data_ptr() % HUGE_PAGE == 0
    assert kilobytes_in_huge_pages() - before <= tensor.nbytes // 1024 + 64


def kilobytes_in_huge_pages() -> int:
    """What mappings hold that asked for huge pages; neighbours may have become one."""
    return sum(int(mapping["Rss:"].split()[0]) for mapping in mappings() if "hg" in mapping["VmFlags:"].split())


@LINUX
def test_memory_goes_with_the_tensor():
    tensor = empty_int8((4 * HUGE_PAGE,)).fill_(1)
    address = tensor.data_ptr()
    del tensor
    gc.collect()
    ranges = [[int(bound, 16) for bound in mapping["range"].split("-")] for mapping in mappings()]
    assert not any(start <= address < end and end - start >= 4 * HUGE_PAGE for start, end in ranges)


def test_without_huge_pages_memory_is_plain(monkeypatch, caplog):
    def refuse(nbytes):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(huge_pages._ALLOCATOR, "empty", refuse)
    with caplog.at_level("INFO", "int8pass"):
        tensor = empty_int8((128, 4))
    assert tensor.shape == (128, 4)
    assert "small pages" in caplog.text
