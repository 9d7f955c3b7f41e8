"""Regional compilation, each block compiled on its own, and models that share a weight."""

import concurrent.futures
import copy
import sys

import torch
from torch import nn

from int8pass.freed_parameter import FreedParameter
from tests.backend.models import assert_close_to_float, assert_follows_reference, compiled, counted_int8mixed
from tests.linear_models import IN, OUT, Mlp, activation, frozen


def regional_blocks(count, **options):
    blocks = nn.ModuleList(Mlp() for _ in range(count))
    frozen(blocks)
    floats = copy.deepcopy(blocks)
    backend = counted_int8mixed(**options)
    for block in blocks:
        block.compile(backend=backend)
    return blocks, floats, backend


def test_equal_blocks_share_a_graph_and_use_their_own_weights():
    blocks, floats, backend = regional_blocks(4)
    x = activation(5)
    for _ in range(2):
        for block, original in zip(blocks, floats, strict=True):
            assert_close_to_float(block(x), original, x)
    assert backend.graphs == 1


def test_threads_that_run_equal_blocks_use_their_own_weights():
    blocks, _, backend = regional_blocks(2)
    x = activation(5)
    expected = [block(x) for block in blocks]

    def differences(number):
        return sum(not torch.equal(blocks[number](x), expected[number]) for _ in range(1500))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            assert list(pool.map(differences, range(2))) == [0, 0]
    finally:
        sys.setswitchinterval(interval)
    assert backend.graphs == 1


def test_equal_blocks_compiled_by_name():
    blocks = frozen(nn.ModuleList(Mlp() for _ in range(3)))
    floats = copy.deepcopy(blocks)
    for block in blocks:
        block.compile(backend="int8mixed", options={"lowering": "eager"})
    x = activation(5)
    for block, original in zip(blocks, floats, strict=True):
        assert_close_to_float(block(x), original, x)


def test_every_equal_block_is_freed_and_none_falls_back_to_float():
    count = torch._dynamo.config.recompile_limit + 2
    blocks, floats, backend = regional_blocks(count, free_weights=True)
    x = activation(5)
    for _ in range(2):
        for block, original in zip(blocks, floats, strict=True):
            assert_close_to_float(block(x), original, x)
    assert all(isinstance(linear.weight, FreedParameter) for block in blocks for linear in (block.up, block.down))
    assert backend.graphs <= 2


def test_two_compiled_models_share_one_quantized_weight(quantized_shapes):
    first, second = frozen(nn.Linear(IN, OUT)), frozen(nn.Sequential(nn.ReLU(), nn.Linear(IN, OUT)))
    second[1].weight = first.weight
    x = activation(5)
    assert_follows_reference(compiled(first)(x), first, x)
    assert_follows_reference(compiled(second)(x), second[1], torch.relu(x))
    assert quantized_shapes == [(OUT, IN)]
