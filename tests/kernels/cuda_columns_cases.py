"""The cache of outlier columns on the device: what it serves, and that nothing in it makes a result wrong."""

import pytest
import torch

from int8pass.kernels.cuda import fused
from int8pass.kernels.cuda.column_words import slots
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
    case.words = quantized.wide_column_words if dtype == torch.float32 else quantized.column_words
    return case


def run(case):
    """The result of the kernel for so many rows."""
    return case.results()[1]


def held(words):
    """The columns in the cache, by slot; None where a row holds nothing, or words of several."""
    tags = (words >> (32 if words.dtype == torch.int64 else 16)).tolist()
    return [row[0] if len(set(row)) == 1 and row[0] else None for row in tags]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_are_read_once(dtype, rows):
    case = case_of(rows, dtype, 5, 11, 68)
    first = run(case)
    case.check(first)
    assert held(case.words) == [None, None, None, 2, 9, 1, None, None] and SLOTS == 8  # 11, 68 and 5
    whole, case.weight = case, case.weight * 0
    quantized = Case(whole.x, planted(OUTPUTS, FEATURES, dtype, 0), None).quantized
    rest = (quantized.codes, quantized.scale, None, case.weight, case.words, 6.0, False, dtype)
    assert torch.equal(fused.cuda_int8_linear(case.x, *rest), first)  # though the weight is gone


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outliers", ["column", "token"])
def test_columns_of_one_slot_take_turns(outliers, rows):
    case = case_of(rows, torch.float16, 3, 3 + SLOTS, 3 + 2 * SLOTS, 4, outliers=outliers)
    for _ in range(2):
        case.check(run(case))
    assert held(case.words)[4] == 1
    other = case_of(rows, torch.float16, 3 + SLOTS, 6)
    other.words = case.words
    other.check(run(other))
    assert held(other.words)[3:7] == [2, 1, None, 1]


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
    case, other = case_of(rows, dtype, 5, 11), case_of(rows, dtype, 5 + SLOTS, 11 + 3 * SLOTS)
    run(other)
    case.words = other.words
    case.words[:, ::3] = 0
    mixed = case_of(rows, dtype, 5, 11)
    run(mixed)
    case.words[:, 1::3] = mixed.words[:, 1::3]
    case.check(run(case))
    assert held(case.words)[5] == 1 and held(case.words)[3] == 2


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
    """Features at the end of the widest layer that has few slots, and special values among the weights."""
    case = case_of(rows, torch.float16, 4094, 4095, features=4096)
    case.weight[0, 4095], case.weight[1, 4094] = -0.0, 6e-8
    for _ in range(2):
        case.check(run(case))
    assert case.words.shape == (64, OUTPUTS) and case.words.device.type == DEVICE.type
    assert (4095 // 64 + 1) << 16 <= int(case.words.max())
