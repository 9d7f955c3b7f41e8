"""Quantized weights are computed once, noticed when stale, gone with their tensor, kept when it is freed."""

import concurrent.futures
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from int8pass.errors import FreedWeightError, WeightError
from int8pass.freed_parameter import FreedParameter, free, is_freed
from int8pass.weight_cache import WEIGHTS, WeightCache, requantize
from tests import reference


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def evaluations():
    """A view that counts how often it is evaluated, and the counts: (evaluate, list of shapes)."""
    seen = []

    def evaluate(tensor):
        seen.append(tuple(tensor.shape))
        return tensor

    return evaluate, seen


def identity(weight):
    return weight


def int8(cache, tensor, view="", evaluate=identity):
    return cache.get(tensor, view, evaluate).quantized


def parameter(*shape, dtype=torch.float32):
    return nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False)


# --- once, and again when stale


def test_quantizes_once(evaluations):
    evaluate, seen = evaluations
    cache, weight = WeightCache(), parameter(4, 8)
    first = int8(cache, weight, "", evaluate)
    assert int8(cache, weight, "", evaluate) is first
    assert seen == [(4, 8)]
    codes, scale = reference.quantize_weight(weight.numpy())
    np.testing.assert_array_equal(first.codes.numpy(), codes)
    np.testing.assert_array_equal(first.scale.numpy(), scale)


def test_views_are_told_apart():
    cache, weight = WeightCache(), parameter(4, 8)
    plain = int8(cache, weight)
    transposed = int8(cache, weight, ".t()", torch.t)
    assert plain.codes.shape == (4, 8) and transposed.codes.shape == (8, 4)
    assert int8(cache, weight) is plain
    assert int8(cache, weight, ".t()", torch.t) is transposed


def test_equal_tensors_are_told_apart():
    cache, weight = WeightCache(), parameter(4, 8)
    twin = nn.Parameter(weight.clone(), requires_grad=False)
    assert int8(cache, weight) is not int8(cache, twin)


def multiply_in_place(weight):
    weight.mul_(2)


def fill_one_entry(weight):
    weight[0, 0] = 9.0


def move_storage(weight):
    weight.data = torch.randn(weight.shape)


def change_dtype(weight):
    weight.data = weight.data.to(torch.bfloat16)


def optimizer_step(weight):
    weight.requires_grad_(True)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()
    weight.requires_grad_(False)


CHANGES = (multiply_in_place, fill_one_entry, move_storage, change_dtype, optimizer_step)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weight_is_quantized_again(change, evaluations):
    evaluate, seen = evaluations
    cache, weight = WeightCache(), parameter(4, 8)
    int8(cache, weight, "", evaluate)
    change(weight)
    changed = int8(cache, weight, "", evaluate)
    codes, scale = reference.quantize_weight(weight.float().numpy())
    np.testing.assert_array_equal(changed.codes.numpy(), codes)
    np.testing.assert_array_equal(changed.scale.numpy(), scale)
    assert int8(cache, weight, "", evaluate) is changed
    assert len(seen) == 2


@pytest.mark.parametrize("change", CHANGES)
def test_every_view_of_a_changed_weight_is_quantized_again(change):
    cache, weight = WeightCache(), parameter(4, 8)
    before = int8(cache, weight, ".t()", torch.t)
    int8(cache, weight)
    change(weight)
    int8(cache, weight)
    after = int8(cache, weight, ".t()", torch.t)
    assert after is not before
    np.testing.assert_array_equal(after.codes.numpy(), reference.quantize_weight(weight.t().float().numpy())[0])


def test_edit_through_data_is_noticed_after_forget():
    cache, weight = WeightCache(), parameter(4, 8)
    before = int8(cache, weight)
    weight.data.mul_(2)
    assert int8(cache, weight) is before
    cache.forget(weight)
    assert torch.equal(int8(cache, weight).scale, before.scale * 2)


def test_forgetting_an_unknown_tensor_is_harmless():
    WeightCache().forget(parameter(2, 2))


def test_inference_tensors_have_no_version():
    cache = WeightCache()
    with torch.inference_mode():
        weight = torch.randn(4, 8)
        before = int8(cache, weight)
        assert int8(cache, weight) is before
        weight.mul_(2)
        cache.forget(weight)
        assert torch.equal(int8(cache, weight).scale, before.scale * 2)


def test_result_is_no_inference_tensor_and_needs_no_gradient():
    cache, weight = WeightCache(), nn.Parameter(torch.randn(4, 8))
    with torch.inference_mode():
        quantized = int8(cache, weight)
    assert not quantized.codes.is_inference() and not quantized.scale.is_inference()
    assert not quantized.scale.requires_grad and quantized.scale.grad_fn is None


def test_failed_quantization_is_tried_again_once_the_weight_changes(evaluations):
    evaluate, seen = evaluations
    cache, weight = WeightCache(), parameter(4, 8)
    weight[0, 0] = torch.nan
    for _ in range(2):
        with pytest.raises(WeightError):
            int8(cache, weight, "", evaluate)
    assert len(seen) == 1
    weight[0, 0] = 1.0
    assert int8(cache, weight, "", evaluate).scale.isfinite().all()
    assert len(seen) == 2


def test_requantize_forgets_parameters_and_buffers_of_a_model(evaluations):
    evaluate, seen = evaluations
    model = nn.Linear(8, 4).requires_grad_(False)
    model.register_buffer("table", torch.randn(4, 8))
    for tensor in (model.weight, model.table):
        int8(WEIGHTS, tensor, "", evaluate)
    requantize(model)
    for tensor in (model.weight, model.table):
        int8(WEIGHTS, tensor, "", evaluate)
    assert len(seen) == 4


# --- lifetime


def test_entry_dies_with_its_tensor():
    cache, weight = WeightCache(), parameter(4, 8)
    codes = weakref.ref(int8(cache, weight).codes)
    reference_to_weight = weakref.ref(weight)
    assert codes() is not None
    del weight
    gc.collect()
    assert reference_to_weight() is None and codes() is None


def test_view_that_is_evaluated_keeps_nothing_alive():
    cache, weight = WeightCache(), parameter(4, 8)
    codes = weakref.ref(int8(cache, weight, "[0:2]", lambda tensor: tensor[:2]).codes)
    del weight
    gc.collect()
    assert codes() is None


def test_stale_form_dies_when_it_is_replaced():
    cache, weight = WeightCache(), parameter(4, 8)
    codes = weakref.ref(int8(cache, weight).codes)
    weight.mul_(2)
    int8(cache, weight)
    gc.collect()
    assert codes() is None


def test_many_short_lived_weights_do_not_meet_each_other():
    cache = WeightCache()
    for value in range(200):  # addresses and ids are reused
        weight = nn.Parameter(torch.full((2, 3), value + 1.0), requires_grad=False)
        assert torch.equal(int8(cache, weight).scale, torch.full((2,), value + 1.0) / 127)
        del weight


# --- threads


def test_threads_share_one_quantization(evaluations):
    evaluate, seen = evaluations
    cache, weights = WeightCache(), [parameter(64, 64) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: int8(cache, weights[number % 8], "", evaluate), range(200)))
    assert len(seen) == 8
    assert all(result is results[number % 8] for number, result in enumerate(results))


def test_grad_mode_of_the_caller_is_restored():
    cache = WeightCache()
    with torch.inference_mode():
        int8(cache, parameter(2, 3), "", identity)
        assert torch.is_inference_mode_enabled()
    with torch.enable_grad():
        int8(cache, parameter(2, 3), "", identity)
        assert torch.is_grad_enabled()


# --- freed parameters


def test_free_releases_storage_and_keeps_metadata():
    weight = parameter(4, 8)
    storage = weakref.ref(weight.untyped_storage())
    free(weight)
    gc.collect()
    assert is_freed(weight) and isinstance(weight, nn.Parameter) and type(weight) is FreedParameter
    assert weight.shape == (4, 8) and weight.stride() == (8, 1) and weight.dtype == torch.float32
    assert storage() is None


@pytest.mark.parametrize("make", (lambda: torch.randn(8, 4).t(), lambda: torch.randn(4, 16)[:, ::2]))
def test_free_keeps_strides_of_views(make):
    weight = nn.Parameter(make(), requires_grad=False)
    shape, stride = weight.shape, weight.stride()
    free(weight)
    assert weight.shape == shape and weight.stride() == stride


def test_other_tensors_keep_a_shared_storage():
    whole = torch.randn(8, 8)
    kept = whole.clone()
    weight = nn.Parameter(whole[:4], requires_grad=False)
    free(weight)
    assert torch.equal(whole, kept)


def test_freed_weight_keeps_its_int8_form():
    cache, weight = WeightCache(), parameter(4, 8)
    quantized = int8(cache, weight)
    free(weight)
    assert int8(cache, weight) is quantized
    cache.forget(weight)
    assert int8(cache, weight) is quantized


def test_another_view_of_a_freed_weight_raises():
    cache, weight = WeightCache(), parameter(4, 8)
    int8(cache, weight)
    free(weight)
    with pytest.raises(FreedWeightError, match="released by free_weights=True"):
        int8(cache, weight, ".t()", torch.t)


def test_forgetting_in_requantize_keeps_freed_weights():
    model = nn.Linear(8, 4).requires_grad_(False)
    quantized = int8(WEIGHTS, model.weight)
    free(model.weight)
    requantize(model)
    assert int8(WEIGHTS, model.weight) is quantized
