"""The cache of outlier columns on the device: what it serves, and that nothing in it makes a result wrong."""

import pytest
import torch

from int8pass.kernels.cuda import fused
from int8pass.kernels.cuda.column_words import slot_of, slots, words_field
from tests.kernels.cuda_inputs import DEVICE, DTYPES, Case, planted

FEATURES, OUTPUTS = 70, 37
ROWS = [3, 17]  # of the two kernels
SLOTS = slots(FEATURES)


def case_of(rows, dtype, *columns, outliers="column", features=FEATURES):
    """A Linear whose input has these outlier columns, with an empty cache."""
    x = planted(rows, features, dtype, 0).clamp(-5, 5)
    x[:, list(columns)] = 20.0
    case = Case(x, planted(OUTPUTS, features, dtype, 0), None, outliers=outliers)
    quantized = case.quantized
    case.words = getattr(quantized, words_field(dtype))
    return case


def run(case):
    """The result of the kernel for so many rows."""
    return case.results()[1]


def held(words):
    """The columns in the cache: those that have all words of their slot."""
    tags = (words >> (32 if words.dtype == torch.int64 else 16)).tolist()
    return {k for k in range(FEATURES) if set(tags[slot_of(k, FEATURES)]) == {k // SLOTS + 1}}


def same_slot(column):
    """Other columns of its slot, ascending."""
    return [k for k in range(FEATURES) if k != column and slot_of(k, FEATURES) == slot_of(column, FEATURES)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_are_read_once(dtype, rows):
    case = case_of(rows, dtype, 5, 11, 68)
    first = run(case)
    case.check(first)
    assert held(case.words) == {5, 11, 68}
    quantized, gone = case.quantized, case.weight * 0
    rest = (quantized.codes, quantized.scale, None, gone, case.words, 6.0, False, dtype)
    assert torch.equal(fused.cuda_int8_linear(case.x, *rest), first)  # though the weight is gone


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outliers", ["column", "token"])
def test_columns_of_one_slot_take_turns(outliers, rows):
    second, third = same_slot(3)[:2]
    case = case_of(rows, torch.float16, 3, 4, second, third, outliers=outliers)
    for _ in range(2):
        case.check(run(case))
    assert 4 in held(case.words)
    other = case_of(rows, torch.float16, second, 6)
    other.words = case.words
    other.check(run(other))
    assert held(other.words) == {second, 4, 6}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_columns_than_slots(dtype, rows):
    case = case_of(rows, dtype, *range(1, 60))
    for _ in range(2):
        case.check(run(case))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_words_of_other_columns_between_them(dtype, rows):
    """What kernels on two streams leave: a row of words that are partly of one column, partly of another or empty."""
    case, other = case_of(rows, dtype, 5, 11), case_of(rows, dtype, same_slot(5)[0], same_slot(11)[2])
    run(other)
    case.words = other.words
    case.words[:, ::3] = 0
    mixed = case_of(rows, dtype, 5, 11)
    run(mixed)
    case.words[:, 1::3] = mixed.words[:, 1::3]
    case.check(run(case))
    assert held(case.words) == {5, 11}


def test_a_cache_that_is_full_is_not_written():
    """The ops name no argument that they write to, and a call that finds its columns writes to none."""
    case = case_of(3, torch.float32, 5, 11)
    case.results()
    before = case.words.clone()
    quantized = case.quantized
    rest = (quantized.codes, quantized.scale, None, case.weight, case.words, 6.0, False, torch.float32)
    torch.library.opcheck(fused.cuda_linear, (case.x, *case.quantize(), *rest))
    torch.library.opcheck(fused.cuda_int8_linear, (case.x, *rest))
    assert torch.equal(case.words, before)


@pytest.mark.parametrize("rows", ROWS)
def test_the_largest_tag(rows):
    """The last features of a layer, and special values among the weights."""
    case = case_of(rows, torch.float16, 1022, 1023, features=1024)
    case.weight[0, 1023], case.weight[1, 1022] = -0.0, 6e-8
    for _ in range(2):
        case.check(run(case))
    assert case.words.shape == (32, OUTPUTS) and case.words.device.type == DEVICE.type
    assert int(case.words.max()) >> 16 == 1023 // 32 + 1
