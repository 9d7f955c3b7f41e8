"""explain: SNR, outlier columns, bytes and decisions of every Linear that a model runs; the model stays as it is."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from int8pass import Int8Linear, Report, convert, explain
from int8pass.errors import CaptureError, ConfigError
from int8pass.inspection.page import page_data
from int8pass.kernels.cpu import fused
from int8pass.weight_cache import WEIGHTS
from tests import reference, zoo
from tests.linear_models import HIDDEN, IN, OUT, Mlp, bounded, frozen


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts with the same seed and without compiled code."""
    torch.manual_seed(0)
    torch._dynamo.reset()


def reference_snr(linear, x, **options):
    """Signal-to-noise ratio in dB, from float64 results of both the float and the int8 Linear."""
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    exact = x.double().numpy() @ weight.astype(np.float64).T + bias
    y, _ = reference.linear(x.numpy(), weight, bias, **options)
    return 10 * math.log10((exact**2).sum() / ((exact - y) ** 2).sum())


# --- what is measured


@pytest.mark.parametrize("outliers", reference.OUTLIERS)
@pytest.mark.parametrize("outlier_weights", reference.OUTLIER_WEIGHTS)
@pytest.mark.parametrize("threshold", (0.0, 3.0))
def test_ratio_is_that_of_float64(outliers, outlier_weights, threshold):
    linear, x = frozen(nn.Linear(IN, OUT)), torch.randn(16, IN) * 2
    options = {"outliers": outliers, "outlier_weights": outlier_weights, "threshold": threshold}
    (row,) = explain(linear, (x,), options=options).rows
    assert row.snr_db == pytest.approx(reference_snr(linear, x, **options), abs=0.01)


def test_ratio_of_the_second_layer_is_measured_on_its_float_input():
    model, x = frozen(Mlp()), bounded(16, IN)
    up, down = explain(model, (x,)).rows
    assert up.snr_db == pytest.approx(reference_snr(model.up, x), abs=0.01)
    assert down.snr_db == pytest.approx(reference_snr(model.down, torch.relu(model.up(x))), abs=0.01)


def test_ratio_without_error_is_infinite_and_without_signal_absent():
    linear = frozen(nn.Linear(IN, OUT, bias=False))
    linear.weight.copy_(torch.eye(OUT, IN) * 127)
    (row,) = explain(linear, (torch.full((2, IN), 127.0),), options={"threshold": 0.0}).rows
    assert row.snr_db == math.inf
    (row,) = explain(linear, (torch.zeros(2, IN),)).rows
    assert row.rewritten and row.snr_db is None


def test_outlier_columns_are_exactly_the_planted_ones():
    model, x = frozen(Mlp()), bounded(4, 5, IN)
    x[1, 2, 3], x[0, 0, 17], x[3, 4, 31], x[0, 1, 5] = 6.0, -9.0, 60.0, 5.99
    up, down = explain(model, (x,)).rows
    assert up.outlier_columns == (3, 17, 31)
    hidden = torch.relu(model.up(x)).reshape(-1, HIDDEN)
    assert down.outlier_columns == tuple((hidden.abs() >= 6).any(0).nonzero().flatten().tolist())


@pytest.mark.parametrize("outliers", reference.OUTLIERS)
def test_outlier_columns_follow_the_threshold(outliers):
    linear, x = frozen(nn.Linear(IN, OUT)), torch.zeros(3, IN)
    x[0, 2], x[1, 9] = 2.0, -3.0
    columns = [
        explain(linear, (x,), options={"threshold": threshold, "outliers": outliers}).rows[0].outlier_columns
        for threshold in (0.0, 2.0, 2.5, 3.5)
    ]
    assert columns == [(), (2, 9), (9,), ()]


def test_layer_that_runs_twice_has_a_row_for_each_run():
    linear = nn.Linear(IN, IN)
    model = frozen(nn.Sequential(linear, nn.ReLU(), linear))
    x = bounded(4, IN)
    x[0, 4] = 50.0
    first, second = explain(model, (x,)).rows
    assert first.module == second.module == "0"
    assert 4 in first.outlier_columns and first.snr_db != second.snr_db


OPTIONS_OF_MEMORY = ({}, {"outlier_weights": "dequantized"}, {"free_weights": True})


@pytest.mark.parametrize("options", OPTIONS_OF_MEMORY)
@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_bytes_are_those_that_the_compiled_model_holds(options, lowering):
    if lowering == "inductor" and not fused.is_available():
        pytest.skip("the report counts the layout of the fused CPU kernel, which is not available")
    model, x = frozen(Mlp()).bfloat16(), bounded(4, IN).bfloat16()
    report = explain(copy.deepcopy(model), (x,), options=options | {"lowering": lowering})
    torch.compile(model, backend="int8mixed", options=options | {"lowering": lowering})(x)
    fields = ("packed", "offset", "scale") if lowering == "inductor" else ("codes", "scale")
    held = [held_bytes(linear.weight, fields) for linear in (model.up, model.down)]
    assert [row.bytes_before for row in report.rows] == [2 * linear.weight.numel() for linear in (model.up, model.down)]
    assert [row.bytes_after for row in report.rows] == held
    assert [row.keeps_float for row in report.rows] == [not options.get("free_weights")] * 2
    assert report.totals.bytes_after == sum(held)


def held_bytes(weight, fields):
    """Of the storages of a float weight and of its int8 form."""
    quantized = WEIGHTS.get(weight, "", lambda tensor: tensor).quantized
    int8 = [getattr(quantized, field).untyped_storage().nbytes() for field in fields]
    assert quantized.nbytes == WEIGHTS.nbytes(weight) == sum(int8)
    with torch._C.DisableTorchFunctionSubclass():
        return weight.untyped_storage().nbytes() + sum(int8)


def test_layout_of_the_fused_kernel_counts_its_padding():
    (row,) = explain(frozen(nn.Linear(IN + 1, OUT)), (bounded(4, IN + 1),), options={"free_weights": True}).rows
    assert row.bytes_after == 64 * (IN + 4) + 2 * 4 * OUT  # codes, scale and offset


def test_views_of_one_weight_are_freed_together():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Parameter(torch.randn(3 * OUT, IN), requires_grad=False)

        def forward(self, x):
            return [nn.functional.linear(x, part) for part in self.qkv.chunk(3)]

    report = explain(Fused(), (bounded(4, IN),), options={"free_weights": True, "lowering": "eager"})
    assert [(row.weight, row.keeps_float) for row in report.rows] == [("qkv", False)] * 3
    assert len({row.view for row in report.rows}) == 3
    int8 = OUT * IN + 4 * OUT
    assert (report.totals.bytes_before, report.totals.bytes_after) == (4 * 3 * OUT * IN, 3 * int8)
    assert report.totals.bytes_peak >= report.totals.bytes_before + report.totals.bytes_after


def test_buffer_and_weight_that_something_else_reads_stay_in_float():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.alone = nn.Linear(IN, IN), nn.Linear(IN, IN)
            self.register_buffer("buffer", torch.randn(OUT, IN))

        def forward(self, x):
            y = self.alone(self.read(x)) + self.read.weight.sum()
            return nn.functional.linear(y, self.buffer)

    rows = explain(frozen(Reads()), (bounded(4, IN),), options={"free_weights": True}).rows
    assert {row.weight: row.keeps_float for row in rows} == {
        "read.weight": True,
        "alone.weight": False,
        "buffer": True,
    }


def test_weight_that_runs_twice_counts_once():
    linear = nn.Linear(IN, IN)
    report = explain(frozen(nn.Sequential(linear, linear)), (bounded(4, IN),))
    assert report.totals.linears == 2
    assert report.totals.bytes_before == report.rows[0].bytes_before == 4 * IN * IN
    assert report.totals.bytes_after == report.rows[0].bytes_after


def test_half_precision():
    model = frozen(Mlp()).bfloat16()
    report = explain(model, (bounded(4, IN).bfloat16(),))
    assert [row.dtype for row in report.rows] == ["bfloat16"] * 2
    assert report.rows[0].bytes_before == 2 * IN * HIDDEN
    assert all(25 < row.snr_db < 60 for row in report.rows)


# --- decisions


def test_rows_in_graph_order_say_what_was_skipped_and_why():
    model = frozen(nn.Sequential(Mlp(), nn.Linear(OUT, OUT)))
    report = explain(model, (bounded(4, IN),), options={"skip_modules": ("0.down",)})
    assert [(row.module, row.weight_shape, row.rewritten) for row in report.rows] == [
        ("0.up", (HIDDEN, IN), True),
        ("0.down", (OUT, HIDDEN), False),
        ("1", (OUT, OUT), True),
    ]
    (skipped,) = (row for row in report.rows if not row.rewritten)
    assert skipped.module == "0.down" and "skip_modules" in skipped.reason
    assert skipped.outlier_columns == () and skipped.snr_db is None
    assert skipped.bytes_before == skipped.bytes_after == 4 * HIDDEN * OUT


def test_weight_with_nan_is_a_skipped_row():
    model = frozen(Mlp())
    model.up.weight[0, 0] = float("nan")
    rows = {row.module: row for row in explain(model, (bounded(4, IN),)).rows}
    assert not rows["up"].rewritten and "NaN" in rows["up"].reason and rows["up"].snr_db is None
    assert rows["down"].rewritten


def test_int8_linear_is_a_row():
    model = frozen(Mlp())
    model.up = Int8Linear.from_linear(model.up)
    rows = {row.module: row for row in explain(model, (bounded(4, IN),)).rows}
    assert rows["up"].reason == "already int8 (Int8Linear)" and rows["up"].dtype == "int8"
    assert rows["down"].rewritten


def test_converted_program_says_so_and_shows_its_int8_linears():
    program = torch.export.export(frozen(Mlp()), (bounded(4, IN),))
    report = explain(convert(program, options={"skip_modules": ["down"]}), options={"skip_modules": ["down"]})
    assert [(row.module, row.dtype, row.rewritten) for row in report.rows] == [
        ("up", "int8", False),
        ("down", "float32", False),
    ]
    line = "already converted: 1 of 2 Linears are int8 in it, 0.00 MB of codes; a report of the float model shows"
    assert report.converted.startswith(line) and report.converted in str(report)
    assert "rewritten to int8" not in str(report) and "skipped 1: named in skip_modules ('down')" in str(report)
    assert page_data(report, "")["converted"] == report.converted
    assert explain(program).converted == ""


def test_model_in_training_that_needs_gradients_is_reported_for_inference():
    report = explain(Mlp(), (bounded(4, IN),))
    assert report.totals.rewritten == 2


# --- kinds of model


def test_graph_break_makes_two_graphs_and_one_report():
    class Broken(Mlp):
        def forward(self, x):
            hidden = self.up(x)
            torch._dynamo.graph_break()
            return self.down(torch.relu(hidden))

    model, x = frozen(Broken()), bounded(16, IN)
    report = explain(model, (x,))
    assert report.graphs == 2
    assert [row.module for row in report.rows] == ["up", "down"]
    assert report.rows[0].snr_db == pytest.approx(reference_snr(model.up, x), abs=0.01)


def test_exported_program_gives_the_rows_of_its_module():
    model, x = frozen(Mlp()), bounded(16, IN)
    x[0, 3] = 30.0
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    expected = explain(model, (x,))
    for report in (explain(program), explain(program, (x,)), explain(program, None, {"x": x})):
        assert report == expected


def test_exported_program_with_constants_and_buffers():
    class Constants(Mlp):
        def __init__(self):
            super().__init__()
            self.constant = torch.full((OUT,), 3.0)
            self.register_buffer("unsaved", torch.full((OUT,), 5.0), persistent=False)

        def forward(self, x, *, scale):
            return super().forward(x) * scale + self.constant * self.unsaved

    model, x, scale = frozen(Constants()), bounded(16, IN), torch.tensor(2.0)
    with torch.no_grad():
        program = torch.export.export(model, (x,), {"scale": scale})
    assert explain(program) == explain(model, (x,), {"scale": scale})


def test_exported_program_without_example_inputs_is_refused():
    with torch.no_grad():
        program = torch.export.export(frozen(Mlp()), (bounded(4, IN),))
    program._example_inputs = None
    with pytest.raises(CaptureError, match="example inputs"):
        explain(program)


def test_module_without_inputs_is_refused():
    with pytest.raises(CaptureError, match="pass args"):
        explain(frozen(Mlp()))


def test_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'outliers'"):
        explain(frozen(Mlp()), (bounded(4, IN),), options={"outlier": "token"})


def test_plain_function():
    weight = nn.Parameter(torch.randn(OUT, IN), requires_grad=False)
    report = explain(lambda x: nn.functional.linear(x, weight), (bounded(4, IN),))
    assert report.totals.rewritten == 1


@pytest.mark.parametrize("name, rewritten", (("bert", 13), ("gpt2", 8)))
def test_transformers_models(name, rewritten):
    model, args, kwargs = zoo.build(name)
    report = explain(model, args, kwargs)
    assert report.totals.rewritten == rewritten
    assert report.totals.reasons == {"tied to an embedding (skip_modules_default)": 1}
    assert all(row.snr_db > 25 for row in report.rows if row.rewritten)


# --- the model, and the process, stay as they were


def test_nothing_is_changed_in_the_model():
    model, x = Mlp(), bounded(4, IN)
    before, tensors = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    expected, given = model(x), x.clone()
    explain(model, (x,), options={"free_weights": True})
    assert torch.equal(model(x), expected) and torch.equal(x, given)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter is tensors[name] for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.training and torch.is_grad_enabled()


def test_explaining_again_gives_the_same_report():
    model, x = frozen(Mlp()), bounded(4, IN)
    assert explain(model, (x,)) == explain(model, (x,))


def test_explaining_many_times_in_one_process():
    for call in range(12):
        model, x = frozen(Mlp()), bounded(4, IN)
        assert explain(model, (x,)).totals.rewritten == 2, f"call {call}"


def test_explaining_one_model_many_times():
    model, x = frozen(Mlp()), bounded(4, IN)
    for threshold in range(12):
        report = explain(model, (x,), options={"threshold": float(threshold)})
        assert report.totals.rewritten == 2 and report.threshold == threshold


def test_compiling_a_model_afterwards_still_compiles_it():
    model, x, graphs = frozen(Mlp()), bounded(4, IN), []
    for _ in range(9):
        explain(model, (x,))

    def backend(graph_module, example_inputs):
        graphs.append(graph_module)
        return graph_module.forward

    torch.compile(model, backend=backend)(x)
    assert len(graphs) == 1


def test_report_of_a_model_can_be_written_as_json():
    x = bounded(4, IN)
    x[0, 3] = 30.0
    report = explain(frozen(Mlp()), (x,))
    document = json.loads(report.to_json())
    assert isinstance(report, Report)
    assert document["totals"]["linears"] == 2
    assert document["rows"][0]["module"] == "up" and document["rows"][0]["outlier_columns"] == [3]
    assert document["rows"][0]["weight_shape"] == [HIDDEN, IN]
