"""One compiled graph for several models: each keeps its own decisions, and equal ones keep the fast code."""

import copy
import logging

import pytest
import torch
from torch import nn

import int8pass
from int8pass.errors import ProfileError
from tests.linear_models import IN, OUT, activation, frozen, relative_error


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each test starts without compiled code."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def variants(caplog):
    """What was logged about graphs that run op by op in place of the compiled one."""
    caplog.set_level(logging.WARNING, logger="int8pass")
    return lambda: [record.getMessage() for record in caplog.records if "runs op by op" in record.getMessage()]


class Headed(nn.Module):
    """A body, and a head that is skipped by its name."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(IN, IN)
        self.lm_head = nn.Linear(IN, OUT)

    def forward(self, x):
        return self.lm_head(torch.relu(self.body(x)))


OPTIONS = {"lowering": "eager"}


def assert_only_the_body_is_int8(run, model, x):
    assert 0 < relative_error(run(x), model(x)) < 0.03
    model.body.weight.copy_(torch.eye(IN))  # exact in int8, so that the head's own error shows
    x = x.sign()
    model.body.bias.zero_()
    assert torch.equal(run(x), model(x))


def test_second_instance_of_a_class_keeps_the_compiled_graph(variants):
    x = activation(5)
    for _ in range(3):
        model = frozen(Headed())
        assert_only_the_body_is_int8(torch.compile(model, backend="int8mixed", options=OPTIONS), model, x)
    assert variants() == []


def test_assigned_state_keeps_the_compiled_graph(variants):
    model, x = frozen(Headed()), activation(5)
    run = torch.compile(model, backend="int8mixed", options=OPTIONS)
    run(x)
    model.load_state_dict(Headed().state_dict(), assign=True)
    frozen(model)
    assert_only_the_body_is_int8(run, model, x)
    assert variants() == []


def test_blocks_with_skipped_modules_keep_the_compiled_graph(variants):
    blocks, x = frozen(nn.ModuleList(Headed() for _ in range(3))), activation(5)
    floats = copy.deepcopy(blocks)
    for block in blocks:
        block.compile(
            backend="int8mixed", options={**OPTIONS, "skip_modules_default": False, "skip_modules": ("body",)}
        )
    for block, original in zip(blocks, floats, strict=True):
        assert 0 < relative_error(block(x), original(x)) < 0.03
    assert variants() == []


class Tied(nn.Module):
    """A head tied to an embedding that another graph reads. Returns the head's input as well."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(OUT, IN)
        self.body = nn.Linear(IN, IN)
        self.head = nn.Linear(IN, OUT, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        torch._dynamo.graph_break()
        x = self.body(x)
        return x, self.head(x)


def test_tied_head_stays_float_in_every_instance():
    tokens = torch.arange(8)
    for _ in range(3):
        model = frozen(Tied())
        state, logits = torch.compile(model, backend="int8mixed", options=OPTIONS)(tokens)
        assert relative_error(state, model.body(model.embedding(tokens))) > 0
        assert torch.equal(logits, model.head(state))


def with_outlier(column):
    x = activation(5).clamp(-5, 5)
    x[:, column] = 20.0
    return x


def test_a_profile_is_never_used_for_another_block():
    blocks, x = frozen(nn.ModuleList(Headed() for _ in range(2))), with_outlier(3)
    original = copy.deepcopy(blocks[0])
    profile = int8pass.calibrate(original, [x])
    for block in blocks:
        block.compile(backend="int8mixed", options={**OPTIONS, "profile": profile})
    assert 0 < relative_error(blocks[0](x), original(x)) < 0.03
    with pytest.raises(ProfileError, match=r"another model: the values or the dtype of 'body.weight' differ"):
        blocks[1](x)
