"""What tests of several folders start from."""

import pytest
import torch

import int8pass.notices


@pytest.fixture
def fresh_compiler(monkeypatch):
    """The test starts without compiled code and without warnings that were given already."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(int8pass.notices, "_warned", set())
    yield
    torch._dynamo.reset()
