"""The memory benchmark, and the targets that it is there to check, on one layer of 205 MB."""

import importlib.util
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from int8pass.bench.memory import (
    CONTESTANTS,
    HIDDEN,
    INTERMEDIATE,
    REFERENCE,
    Contestant,
    Result,
    Size,
    measure,
    measure_apart,
    table,
    write_weights,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLACK = 12e6  # compiled code, and what Python keeps of a compilation


def contestant(name):
    return next(each for each in CONTESTANTS if each.name == name)


def measured(name, size):
    result = measure_apart(contestant(name), size)
    assert not result.failure, result.failure
    return result


@pytest.mark.inductor
@pytest.mark.parametrize(
    "name, float_bytes", (("int8mixed, free_weights", 4), ("int8mixed on bfloat16, free_weights", 2))
)
def test_freed_weights_leave_one_byte_a_parameter(name, float_bytes):
    size = Size.of_gigabytes(0.2)
    result = measured(name, size)
    assert result.parameters == size.linear_parameters > 5e7
    assert result.trimmed <= 1.1 * result.parameters + SLACK / 2
    assert result.resident <= result.trimmed + 32 * 2**20  # what malloc may keep before it is trimmed
    largest = HIDDEN * INTERMEDIATE
    assert result.peak <= float_bytes * result.parameters + largest + SLACK


@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="needs safetensors")
def test_loading_through_the_meta_device_takes_the_int8_model_and_one_layer(tmp_path):
    size = Size(1, file=str(tmp_path / "model.safetensors"))
    write_weights(size)
    result = measured("Int8Linear from a float32 file", size)
    assert result.trimmed <= 1.1 * result.parameters + SLACK
    assert result.peak <= result.parameters + 4 * HIDDEN * INTERMEDIATE + SLACK


def test_size():
    size = Size.of_gigabytes(1.2)
    linears = [module for module in Size(2, 64, 96).build().modules() if isinstance(module, nn.Linear)]
    assert sum(linear.weight.numel() for linear in linears) == Size(2, 64, 96).linear_parameters
    assert size.layers == 6 and 4 * size.linear_parameters == pytest.approx(1.2e9, rel=0.05)


def test_what_is_not_installed_and_what_fails_are_rows():
    missing = Contestant("missing", REFERENCE.load, REFERENCE.prepare, needs="no_such_module")
    assert measure(missing, Size(1)).failure == "no_such_module is not installed"
    result = measure_apart(contestant("Int8Linear from a float32 file"), Size(1, 64, 64, "/nowhere/model.safetensors"))
    assert "/nowhere" in result.failure or "No such file" in result.failure


def test_table():
    plain = Result(REFERENCE.name, 1000, loaded=4000, peak=5_000_000, resident=4500, trimmed=4_000_000)
    int8 = Result("int8", 1_000_000, peak=6_000_000, resident=2_000_000, trimmed=1_100_000)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(table([plain, int8, Result("broken", failure="because")]))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines[-2:] == [["int8", "2", "2.00", "1", "6", "1.20"], ["broken", "not", "run"]]


def test_no_float_weight_is_left_by_any_way_of_holding_int8(tmp_path):
    size = Size(1, 64, 64, str(tmp_path / "model.safetensors"))
    write_weights(size)
    with torch.no_grad():
        model = contestant("Int8Linear from a float32 file").load(size)
    floats = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    assert floats == {"0.norm.weight", "0.norm.bias"}
