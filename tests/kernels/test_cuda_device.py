"""What a GPU must be and have for the kernels, each by one clear error. (The device is made up.)"""

import importlib.util
import logging

import pytest
import torch

from int8pass.errors import MissingDependencyError, UnsupportedDeviceError
from int8pass.kernels.cuda import fused

GPU = torch.device("cuda", 0)


def require(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    fused.require_device.__wrapped__(GPU)


def test_without_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"int8 on CUDA needs Triton.*pip install 'int8pass\[gpu\]'"):
        require(monkeypatch, (9, 0))


def test_too_old(monkeypatch):
    with pytest.raises(UnsupportedDeviceError, match=r"Some GPU \(compute capability 7.0\).*7\.5 or newer"):
        require(monkeypatch, (7, 0))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_turing_is_slow_and_ampere_is_not(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "int8pass"):
        require(monkeypatch, (8, 0))
        assert not caplog.records
        require(monkeypatch, (7, 5))
    assert "without tensor cores" in caplog.text
