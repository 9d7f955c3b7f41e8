"""The TensorRT lowering as far as it goes without TensorRT: graphs, options, errors."""

import sys

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import int8pass
from int8pass import ops
from int8pass.errors import ConfigError, EngineError, MissingDependencyError
from int8pass.inspection.text import graph_text
from int8pass.kernels.cuda import fused
from int8pass.lower.tensorrt import compile_program
from int8pass.lower.tensorrt.compile import int8pass_ops_left
from int8pass.lower.tensorrt.freeze_weights import freeze_weights
from int8pass.lower.tensorrt.linear_form import building, linear_form, lower_linears
from int8pass.pipeline import run
from tests.graphs import program_of, short_text
from tests.linear_models import activation, exported, frozen, op_counts

WITHOUT_BRANCH = {"lowering": "tensorrt", "threshold": 0.0}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 8)

    def forward(self, x, scale):
        return self.fc(x) * scale


@pytest.fixture
def layer(fresh_compiler):
    return frozen(nn.Linear(32, 8))


@pytest.fixture
def x(fresh_compiler):
    return activation(4)


def converted(layer, x, **options):
    """A converted program's graph, with constants, as torch-tensorrt's passes see it."""
    if options.pop("profiled", False):
        options["profile"] = int8pass.calibrate(layer, [x], progress=False)
    return int8pass.convert(exported(layer, x), options=options).module()


@pytest.mark.parametrize("outlier_weights", ("original", "dequantized"))
def test_the_pass_keeps_the_result(layer, x, outlier_weights):
    graph = converted(layer, x, profiled=True, outlier_weights=outlier_weights)
    before = graph(x)
    after = lower_linears(graph)(x)
    counts = op_counts(graph)
    assert torch.allclose(after, before, rtol=1e-6, atol=1e-6)
    assert counts["scaled_int8_mm"] == counts["column_mm"] == 1
    assert not {"int8_mm", "dequantize", "outlier_mm"} & counts.keys()


def test_the_pass_leaves_no_scale_of_zero(layer, x):
    layer.weight[2] = 0.0
    graph = converted(layer, x, threshold=0.0)
    before = graph(x)
    after = lower_linears(graph)
    (linear,) = [node for node in graph.graph.nodes if node.target is ops.scaled_int8_mm]
    assert (getattr(graph, linear.args[3].target) > 0).all() and getattr(graph, linear.args[2].target).shape == (32, 8)
    assert torch.equal(after(x), before)


def test_the_graph_after_the_pass(layer, x):
    graph = lower_linears(converted(layer, x, profiled=True))
    lines = [line for line in graph_text(graph.graph, {}).splitlines() if "int8pass." in line]
    assert lines == [
        "%column_mask : bool[32] = int8pass.column_mask(%input_1, (3, 7))",
        "%scale_per_token : f32[4] = int8pass.scale_per_token(%input_1, %column_mask)",
        "%quantize_per_token : i8[4, 32] = int8pass.quantize_per_token(%input_1, %scale_per_token, %column_mask)",
        "%column_mm : f32[4, 8] = int8pass.column_mm(%input_1, [3, 7], %int8pass_constant0)",
        "%scaled_int8_mm : f32[4, 8] = int8pass.scaled_int8_mm(%quantize_per_token, %scale_per_token, "
        "%int8pass_constant1, %int8pass_constant2, %column_mm, %bias, float32)",
    ]


PLUGIN = {
    "found in each call": ({}, "%weight, None, 6.0, False, float32)"),
    "of each token": ({"outliers": "token"}, "%weight, None, 6.0, True, float32)"),
    "dequantized": ({"outlier_weights": "dequantized"}, "None, None, 6.0, False, float32)"),
    "of a profile": ({"profiled": True}, "%weight, None, 0.0, False, float32, (3, 7))"),
    "none": ({"threshold": 0.0}, "None, None, 0.0, False, float32)"),
}


@pytest.mark.parametrize("name", PLUGIN)
def test_the_plugin_form(layer, x, name):
    """One op for all of a Linear, and nothing else of int8pass is left."""
    options, end = PLUGIN[name]
    with building("plugin"):
        graph = lower_linears(converted(layer, x, **options))
    lines = [line for line in graph_text(graph.graph, {}).splitlines() if "int8pass." in line]
    begin = "%cuda_int8_linear : f32[4, 8] = int8pass.cuda_int8_linear(%input_1, %weight_codes, %weight_scale, %bias, "
    assert lines == [begin + end]


def test_a_program_on_the_cpu_asks_nothing_of_the_gpu_beside_it(monkeypatch, layer, x):
    graph = converted(layer, x)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused, "require_device", pytest.fail)
    with building("plugin"):
        assert op_counts(lower_linears(graph))["cuda_int8_linear"] == 1


@pytest.mark.parametrize(
    "form, ops_of",
    [
        ("auto", ("cuda_int8_linear", "scaled_int8_mm", "scaled_int8_mm")),
        ("plugin", ("cuda_int8_linear", "cuda_int8_linear", "cuda_int8_linear")),
        ("native", (None, "scaled_int8_mm", "scaled_int8_mm")),
    ],
)
def test_the_form_of_a_linear(layer, x, form, ops_of):
    """By the rule, or as the setting says: outliers found in each call, of a profile, and no outlier branch."""
    for options, expected in zip(({}, {"profiled": True}, {"threshold": 0.0}), ops_of, strict=True):
        graph = converted(layer, x, **options)
        with building(form):
            if expected is None:
                with pytest.raises(ConfigError, match="TensorRT's own layers find no outlier columns in a call"):
                    lower_linears(graph)
            else:
                counts = op_counts(lower_linears(graph))
                assert counts[expected] == 1 and {"dequantize", "int8_mm", "outlier_mm"}.isdisjoint(counts)


def test_the_setting_of_the_form():
    assert linear_form({}) == "auto" and linear_form({"linear_form": "plugin"}) == "plugin"
    with pytest.raises(ConfigError, match=r"linear_form must be one of \('auto', 'native', 'plugin'\), not 'fused'"):
        linear_form({"linear_form": "fused"})


@pytest.mark.parametrize("form", ("native", "plugin"))
def test_a_weight_that_is_computed_is_refused(layer, x, form):
    """An engine holds weights; one that is computed in the graph would be none."""
    graph = converted(layer, x, threshold=0.0)
    (codes,) = [node for node in graph.graph.find_nodes(op="get_attr") if node.target == "weight_codes"]
    with graph.graph.inserting_after(codes):
        moved = graph.graph.call_function(torch.ops.aten.roll.default, (codes, [1]))
    moved.meta = dict(codes.meta)
    codes.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)
    with building(form), pytest.raises(EngineError, match="is no constant: the weight of an int8 Linear"):
        lower_linears(graph)


def test_every_weight_becomes_a_constant(fresh_compiler):
    model, x = frozen(TwoInputs()), activation(4)
    program = run(program_of(model, x, torch.ones(8), threshold=0.0))
    graph = freeze_weights(program)
    names = [node.name for node in graph.graph_module.graph.find_nodes(op="placeholder")]
    assert names == ["l_x_", "l_scale_"] and len(graph.weights) == 4  # the float weight is an input that nothing reads
    assert "constant" not in short_text(graph_text(program.graph, program.labels))
    args = [_tensor(program, node.name, x) for node in program.graph.find_nodes(op="placeholder")]
    assert graph.user_inputs(args) == [x, x]
    model.fc.bias.add_(1)
    with pytest.raises(EngineError, match=r"fc\.bias has changed, or belongs to another layer"):
        graph.user_inputs(args)


def _tensor(program, name, otherwise):
    if name in program.weight_inputs:
        wanted = program.weight_inputs[name]
        return getattr(program.quantized(wanted.expression), wanted.field)
    return program.tensors[name].tensor if name in program.tensors else otherwise


def test_ops_that_are_left_out_of_the_engines_are_found(layer, x):
    graph = converted(layer, x, threshold=0.0)
    assert int8pass_ops_left(graph) == ["scale_per_token", "quantize_per_token", "int8_mm", "dequantize"]
    assert int8pass_ops_left(nn.Sequential(graph)) == int8pass_ops_left(graph)
    assert int8pass_ops_left(exported(layer, x).module()) == []


@pytest.mark.parametrize("missing", ("tensorrt", "torch_tensorrt"))
def test_a_missing_package_is_one_error_that_names_the_extra(missing, layer, x, monkeypatch):
    class Present:
        __version__ = "11.0"

    monkeypatch.setitem(sys.modules, "tensorrt", Present)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendCompilerFailed) as failure, torch.no_grad():
        torch.compile(layer, backend="int8mixed", options=WITHOUT_BRANCH)(x)
    error = failure.value.inner_exception
    assert isinstance(error, MissingDependencyError) and "pip install 'int8pass[tensorrt]'" in str(error)
    with pytest.raises(MissingDependencyError, match=r"int8pass\[tensorrt\]"):
        compile_program(exported(layer, x), [x])


def test_without_a_gpu_is_one_error(layer, x, monkeypatch):
    class Present:
        __version__ = "11.0"

    monkeypatch.setitem(sys.modules, "tensorrt", Present)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", Present)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"torch\.cuda\.is_available\(\) is False"):
        compile_program(exported(layer, x), [x])
