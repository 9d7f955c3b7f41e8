"""torch.compile(model, backend="int8mixed"): graphs, dtypes, gradients, changed weights, freed weights, regions."""

import concurrent.futures
import copy
import functools
import io
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import int8pass.notices
import int8pass.weights
from int8pass import int8mixed, pipeline
from int8pass.errors import ConfigError, FreedWeightError
from int8pass.weights import FreedParameter, requantize
from tests import reference

IN, HIDDEN, OUT = 32, 48, 24
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """Each test starts without compiled code and without warnings that were given already."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(int8pass.notices, "_warned", set())
    yield
    torch._dynamo.reset()


@pytest.fixture
def programs(monkeypatch):
    """Every program that the pipeline rewrites, in order."""
    seen = []

    original = pipeline.run

    def run(*args, **keywords):
        seen.append(original(*args, **keywords))
        return seen[-1]

    monkeypatch.setattr(pipeline, "run", run)
    return seen


@pytest.fixture
def quantized_shapes(monkeypatch):
    """The shape of every weight that is quantized, in order."""
    seen = []

    def quantize(weight, quantize=int8pass.weights.quantize_weight):
        seen.append(tuple(weight.shape))
        return quantize(weight)

    monkeypatch.setattr(int8pass.weights, "quantize_weight", quantize)
    return seen


class Counted:
    """A backend that counts the graphs it compiles."""

    def __init__(self, backend):
        self.backend = backend
        self.graphs = 0

    def __call__(self, graph_module, example_inputs):
        self.graphs += 1
        return self.backend(graph_module, example_inputs)


def counted_int8mixed(**options):
    return Counted(functools.partial(int8mixed, options={"lowering": "eager", **options}))


def compiled(model, *, options=None, **keywords):
    """The model compiled by name, on the eager lowering unless options say otherwise."""
    return torch.compile(model, backend="int8mixed", options={"lowering": "eager", **(options or {})}, **keywords)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(IN, HIDDEN)
        self.down = nn.Linear(HIDDEN, OUT)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def frozen(model):
    return model.eval().requires_grad_(False)


def activation(*leading, columns=IN):
    """Standard normal values with two outlier features, drawn anew for each shape."""
    x = torch.randn(*leading, columns)
    if x.numel():
        x[..., 3] *= 20
        x[..., 7] -= 15
    return x


def linear_reference(linear, x, **options):
    """The reference's result of one Linear and its tolerance, for x of any rank: two float64 tensors."""
    bias = None if linear.bias is None else linear.bias.detach().float().numpy()
    rows = x.detach().reshape(-1, x.shape[-1]).float().numpy()
    weight = linear.weight.detach().float().numpy()
    y, magnitude = reference.linear(rows, weight, bias, **options)
    bound = reference.tolerance(y, magnitude, x.shape[-1], torch.finfo(x.dtype).eps)
    shape = (*x.shape[:-1], y.shape[-1])
    return torch.from_numpy(y).reshape(shape), torch.from_numpy(bound).reshape(shape)


def assert_follows_reference(result, linear, x, **options):
    expected, bound = linear_reference(linear, x, **options)
    assert result.shape == expected.shape and result.dtype == x.dtype
    assert ((result.double() - expected).abs() <= bound).all()


def relative_error(result, expected):
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def assert_close_to_float(result, model, *args):
    """Equal to the float model up to int8's rounding, and not equal to it."""
    with torch.no_grad():
        error = relative_error(result.detach(), model(*args).detach())
    assert 0 < error < 0.03


# --- graphs and recompiles


def test_dynamic_batch_and_length_share_one_graph():
    model, backend = frozen(Mlp()), counted_int8mixed()
    run = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for batch, length in ((2, 3), (5, 7), (3, 11)):
        x = activation(batch, length)
        assert_close_to_float(run(x), model, x)
    assert backend.graphs == 1


def test_dynamic_shapes_follow_the_reference():
    model = frozen(nn.Linear(IN, OUT))
    run = compiled(model, dynamic=True, fullgraph=True)
    for leading in ((2, 3), (5, 7), (4, 2)):
        x = activation(*leading)
        assert_follows_reference(run(x), model, x)


def grow_and_shrink(run):
    for shape in ((4, IN), (4, IN), (6, IN), (9, IN), (1, IN), (2, 5, IN), (3, 5, IN), (3, 8, IN), (IN,), (4, IN)):
        run(torch.randn(shape))


def switch_grad_modes(run):
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.enable_grad, torch.no_grad):
        with mode():
            run(torch.randn(4, IN))


def switch_autocast(run):
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            run(torch.randn(4, IN))


def change_weights(run):
    linear = run._orig_mod.up
    for change in (lambda weight: weight.add_(0.1), lambda weight: weight.copy_(torch.randn(HIDDEN, IN))):
        run(torch.randn(4, IN))
        with torch.no_grad():
            change(linear.weight)
    run(torch.randn(4, IN))
    linear.weight = nn.Parameter(torch.randn(HIDDEN, IN), requires_grad=False)
    run(torch.randn(4, IN))


SCENARIOS = (grow_and_shrink, switch_grad_modes, switch_autocast, change_weights)


def graphs_compiled(scenario, backend):
    torch.manual_seed(0)
    torch._dynamo.reset()
    scenario(torch.compile(frozen(Mlp()), backend=backend))
    return backend.graphs


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("free_weights", (False, True))
def test_recompiles_as_often_as_without_the_pass(scenario, free_weights):
    if free_weights and scenario is change_weights:
        pytest.skip("freed weights cannot be changed")
    plain = graphs_compiled(scenario, Counted(lambda graph_module, example_inputs: graph_module.forward))
    assert graphs_compiled(scenario, counted_int8mixed(free_weights=free_weights)) == plain >= 1


@pytest.mark.inductor
@pytest.mark.parametrize("scenario", (grow_and_shrink, switch_grad_modes))
def test_inductor_recompiles_as_often_as_plain_inductor(scenario):
    from torch._inductor.compile_fx import compile_fx

    plain = graphs_compiled(scenario, Counted(compile_fx))
    assert graphs_compiled(scenario, counted_int8mixed(lowering="inductor")) == plain >= 1


# --- graph breaks


class Broken(nn.Module):
    """Two graphs, both of which read `shared`; `first` and `second` are read by one each."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(IN, IN)
        self.shared = nn.Linear(IN, IN)
        self.second = nn.Linear(IN, OUT)

    def forward(self, x):
        x = self.shared(self.first(x))
        torch._dynamo.graph_break()
        return self.second(self.shared(x))


class Nested(nn.Module):
    """Dynamo names what follows the inner graph break relative to `inner`."""

    def __init__(self):
        super().__init__()
        self.inner = Broken()
        self.head = nn.Linear(OUT, OUT)

    def forward(self, x):
        return self.head(self.inner(x))


def test_weights_are_quantized_once_over_all_graphs(quantized_shapes, programs):
    model = frozen(Broken())
    run = compiled(model)
    for rows in (4, 4, 6, 8):
        x = activation(rows)
        assert_close_to_float(run(x), model, x)
    assert len(programs) >= 2
    assert sorted(quantized_shapes) == [(OUT, IN), (IN, IN), (IN, IN)]


def compile_by_function(model, backend):
    return torch.compile(model, backend=backend)


def compile_by_method(model, backend):
    model.compile(backend=backend)
    return model


@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
@pytest.mark.parametrize("compile_model", (compile_by_function, compile_by_method))
@pytest.mark.parametrize(
    ("skip_modules", "skipped"),
    (
        (("inner.second",), {"inner.second"}),
        (("inner.shared", "head"), {"inner.shared", "head"}),
        (("inner",), {"inner.first", "inner.shared", "inner.second"}),
        (("second",), set()),
        (("re:.*second",), {"inner.second"}),
        (("*.shared",), {"inner.shared"}),
    ),
)
def test_skip_modules_hold_after_a_graph_break(compile_model, skip_modules, skipped, programs):
    compile_model(frozen(Nested()), counted_int8mixed(skip_modules=skip_modules))(activation(4))
    decisions = [decision for program in programs for decision in program.decisions]
    assert {decision.module for decision in decisions} == {"inner.first", "inner.shared", "inner.second", "head"}
    assert {decision.module for decision in decisions if not decision.rewritten} == skipped
    assert all("skip_modules" in decision.reason for decision in decisions if not decision.rewritten)


class BrokenLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(IN, IN)
        self.second = nn.Linear(IN, IN)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


class Layers(nn.Module):
    """Equal layers, each broken, so that Dynamo lets them share graphs. Returns the input and output of each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(BrokenLayer() for _ in range(3))

    def forward(self, x):
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


def layer_errors(model, states):
    return [
        relative_error(after, layer(before))
        for layer, before, after in zip(model.layers, states, states[1:], strict=False)
    ]


def test_layers_that_share_a_graph_use_their_own_weights():
    model, backend = frozen(Layers()), counted_int8mixed()
    states = torch.compile(model, backend=backend)(activation(4))
    assert backend.graphs == 2
    assert all(0 < error < 0.03 for error in layer_errors(model, states))


@pytest.mark.parametrize("skipped", (0, 1, 2))
@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_skip_of_one_layer_holds_where_layers_share_a_graph(skipped):
    model = frozen(Layers())
    states = compiled(model, options={"skip_modules": (f"layers.{skipped}",)})(activation(4))
    assert [error == 0 for error in layer_errors(model, states)] == [number == skipped for number in range(3)]


def test_names_are_those_of_the_outermost_of_two_nested_compilations(programs):
    model = frozen(nn.Sequential(Mlp(), nn.Linear(OUT, OUT)))
    model[0].compile(backend=counted_int8mixed())
    compiled(model)(activation(4))
    names = {decision.module for program in programs for decision in program.decisions}
    assert names == {"0.up", "0.down", "1"}


# --- dtypes and modes


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_output_keeps_the_dtype_of_the_model(dtype):
    model = frozen(nn.Linear(IN, OUT)).to(dtype)
    x = activation(5).to(dtype)
    assert_follows_reference(compiled(model)(x), model, x)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_output_dtype_under_autocast(dtype):
    model = frozen(Mlp())
    run, x = compiled(model), activation(5)
    with torch.autocast("cpu", dtype):
        result, expected = run(x), model(x)
    assert result.dtype == expected.dtype == dtype
    assert relative_error(result, expected) < 0.03
    assert run(x).dtype == torch.float32


def test_autocast_inside_the_model():
    class Casting(Mlp):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    model, x = frozen(Casting()), activation(5)
    result = compiled(model, fullgraph=True)(x)
    assert result.dtype == model(x).dtype == torch.bfloat16
    assert relative_error(result, model(x)) < 0.03


def test_modes_in_sequence_give_one_result():
    model, x = frozen(Mlp()), activation(5)
    run = compiled(model)
    modes = (torch.no_grad, torch.inference_mode, torch.enable_grad, torch.inference_mode, torch.no_grad)
    results = []
    for mode in modes:
        with mode():
            results.append(run(x).clone())
            assert results[-1].is_inference() == (mode is torch.inference_mode)
    assert_close_to_float(results[0], model, x)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_weight_quantized_in_inference_mode_serves_a_backward_pass():
    model = frozen(nn.Linear(IN, OUT))
    run = compiled(model)
    with torch.inference_mode():
        run(activation(5))
    x = activation(5).requires_grad_()
    run(x).sum().backward()
    assert x.grad.shape == x.shape and x.grad.isfinite().all()


def test_model_built_in_inference_mode():
    with torch.inference_mode():
        model = frozen(nn.Linear(IN, OUT))
        x = activation(5)
        result = compiled(model)(x)
        assert_follows_reference(result.clone(), model, x)


def test_empty_batch():
    run = compiled(frozen(Mlp()))
    assert run(torch.empty(0, IN)).shape == (0, OUT)
    assert run(torch.empty(2, 0, IN)).shape == (2, 0, OUT)


def test_rank_one():
    model, x = frozen(nn.Linear(IN, OUT)), activation()
    assert_follows_reference(compiled(model)(x), model, x)


def test_rank_four():
    model, x = frozen(nn.Linear(IN, OUT)), activation(2, 3, 4)
    assert_follows_reference(compiled(model)(x), model, x)


@pytest.mark.inductor
@pytest.mark.parametrize("leading", ((0,), (), (2, 3)))
def test_any_rank_under_inductor(leading):
    model, x = frozen(nn.Linear(IN, OUT)), activation(*leading)
    assert_follows_reference(compiled(model, options={"lowering": "inductor"})(x), model, x)


def test_plain_function():
    linear = frozen(nn.Linear(IN, OUT))
    x = activation(5)
    run = compiled(lambda x: linear(x))
    assert_follows_reference(run(x), linear, x)


def test_dynamo_graph_is_left_as_it_was():
    graphs = []

    def backend(graph_module, example_inputs):
        before = graph_module.code
        run = int8mixed(graph_module, example_inputs, options={"lowering": "eager"})
        graphs.append((before, graph_module.code))
        return run

    torch.compile(frozen(Mlp()), backend=backend)(activation(4))
    ((before, after),) = graphs
    assert before == after


# --- gradients


def dequantized(linear):
    codes, scale = reference.quantize_weight(linear.weight.detach().numpy())
    return torch.from_numpy(codes * scale[:, None].astype(np.float64))


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
@pytest.mark.parametrize("outlier_weights", ("original", "dequantized"))
def test_gradients_go_through_the_dequantized_weights(lowering, outlier_weights):
    model = nn.Sequential(nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, OUT))
    for linear in model:
        linear.weight.requires_grad_(False)
    x, gradient = activation(2, 5).requires_grad_(), torch.randn(2, 5, OUT)
    options = {"lowering": lowering, "outlier_weights": outlier_weights}
    result = compiled(model, options=options)(x)
    assert_close_to_float(result, model, x)
    result.backward(gradient)

    hidden = gradient.double() @ dequantized(model[1])
    torch.testing.assert_close(x.grad.double(), hidden @ dequantized(model[0]), rtol=1e-4, atol=1e-4)
    for linear, expected in zip(model, (hidden, gradient.double()), strict=True):
        torch.testing.assert_close(linear.bias.grad.double(), expected.sum((0, 1)), rtol=1e-4, atol=1e-4)
        assert linear.weight.grad is None


def test_gradient_of_half_precision_input_keeps_its_dtype():
    model = frozen(nn.Linear(IN, OUT)).bfloat16()
    x = activation(5).bfloat16().requires_grad_()
    compiled(model)(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    expected = dequantized(copy.deepcopy(model).float()).sum(0).expand(5, IN)
    torch.testing.assert_close(x.grad.double(), expected, rtol=0.02, atol=0.02)


class Lora(nn.Module):
    """A frozen base with a trained low-rank addition."""

    def __init__(self, rank=4):
        super().__init__()
        self.base = nn.Linear(IN, OUT).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, IN) / IN**0.5)
        self.up = nn.Parameter(torch.zeros(OUT, rank))

    def forward(self, x):
        return self.base(x) + x @ self.down.t() @ self.up.t()


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
@pytest.mark.filterwarnings("ignore:int8mixed left")
def test_lora_adapter_trains_over_a_frozen_base(lowering, programs):
    model = nn.Sequential(Lora(), nn.Tanh(), nn.Linear(OUT, OUT).requires_grad_(False))
    base = copy.deepcopy(model[0].base.weight)
    x, target = torch.randn(64, IN), torch.randn(64, OUT)
    run = compiled(model, options={"lowering": lowering})
    optimizer = torch.optim.Adam((model[0].down, model[0].up), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(run(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(model[0].base.weight, base)
    rewritten = {decision.module for program in programs for decision in program.decisions if decision.rewritten}
    assert rewritten == {"0.base", "2"}
    assert len(programs) == 1


def test_trained_weights_are_left_alone_with_one_warning():
    model, x = Mlp(), activation(4)
    run = compiled(model)
    with pytest.warns(UserWarning, match="int8mixed left Linears in float") as caught:
        result = run(x)
        run(activation(9))
        run(activation(3, 7))
    ours = [entry for entry in caught if "int8mixed" in str(entry.message)]
    assert len(ours) == 1
    assert "torch.no_grad()" in str(ours[0].message) and "requires_grad_(False)" in str(ours[0].message)
    torch.testing.assert_close(result, model(x), rtol=0, atol=0)
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_trained_weights_are_rewritten_under_no_grad():
    model, x = Mlp(), activation(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            result = compiled(model)(x)
    assert_close_to_float(result, model, x)


# --- nothing to do


def test_warns_once_with_reasons_where_nothing_was_rewritten():
    run = compiled(frozen(Mlp()), options={"skip_modules": ("up", "re:down")})
    with pytest.warns(UserWarning, match="int8mixed rewrote nothing") as caught:
        for rows in (4, 6, 8):
            run(activation(rows))
    (warning,) = (str(entry.message) for entry in caught if "int8mixed" in str(entry.message))
    assert "skip_modules ('up')" in warning and "skip_modules ('re:down')" in warning


def test_no_warning_where_something_was_rewritten_or_nothing_is_linear():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(frozen(Mlp()), options={"skip_modules": ("up",)})(activation(4))
        compiled(nn.ReLU())(activation(4))


# --- weights that change after compilation


def in_place_copy(model, new):
    with torch.no_grad():
        model.weight.copy_(new.weight)
        model.bias.copy_(new.bias)


def in_place_add(model, new):
    with torch.no_grad():
        model.weight.add_(new.weight)
        model.bias.sub_(new.bias)


def load_state(model, new):
    model.load_state_dict(new.state_dict())


def assign_state(model, new):
    model.load_state_dict(new.state_dict(), assign=True)


def replaced_parameter(model, new):
    model.weight = nn.Parameter(new.weight.detach().clone(), requires_grad=False)


def moved_storage(model, new):
    model.weight.data = new.weight.detach().clone()


CHANGES = (in_place_copy, in_place_add, load_state, assign_state, replaced_parameter, moved_storage)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_output_follows_a_changed_weight(change, lowering):
    model, new, x = frozen(nn.Linear(IN, OUT)), frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model, options={"lowering": lowering})
    before = run(x)
    change(model, new)
    after = run(x)
    assert relative_error(after, before) > 0.1
    assert_follows_reference(after, model, x)


def test_cast_model_is_quantized_again():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model)
    run(x)
    model.to(torch.bfloat16)
    assert_follows_reference(run(x.bfloat16()), model, x.bfloat16())


def test_edits_through_data_are_noticed_after_requantize():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model, options={"outlier_weights": "dequantized"})
    before = run(x)
    model.weight.data.mul_(-2)
    assert torch.equal(run(x), before)
    requantize(model)
    assert_follows_reference(run(x), model, x, outlier_weights="dequantized")


def test_requantize_takes_a_compiled_model():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model)
    run(x)
    model.weight.data.mul_(-2)
    requantize(run)
    assert_follows_reference(run(x), model, x)


def test_weight_that_becomes_nan_is_float_until_it_is_finite_again():
    model, x = frozen(nn.Linear(IN, OUT)), activation(5)
    run = compiled(model)
    run(x)
    model.weight.fill_(torch.nan)
    assert run(x).isnan().all() and run(x).isnan().all()
    model.weight.fill_(0.5)
    assert_follows_reference(run(x), model, x)


def test_weight_that_is_nan_from_the_start_is_left_alone():
    model, x = frozen(Mlp()), activation(5)
    model.up.weight[0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(model)(x).isnan().all()


def test_weights_follow_a_change_of_grad_requirement():
    model, x = Mlp().eval(), activation(5)
    run = compiled(model)
    with torch.no_grad():
        run(x)
    frozen(model)
    assert_close_to_float(run(x), model, x)
    model.requires_grad_(True)
    with pytest.warns(UserWarning, match="int8mixed left Linears in float"):
        torch.testing.assert_close(run(x), model(x), rtol=0, atol=0)


def test_weight_dies_with_its_model():
    model = frozen(nn.Linear(IN, OUT))
    run = compiled(model)
    run(activation(5))
    codes = weakref.ref(int8pass.weights.WEIGHTS.get(model.weight, "", lambda weight: weight).quantized.codes)
    assert codes() is not None
    del model, run
    torch._dynamo.reset()
    assert codes() is None


# --- free_weights


class Embedder(nn.Module):
    """An embedding, a rewritten Linear, a Linear to skip, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, IN)
        self.body = nn.Linear(IN, IN)
        self.kept = nn.Linear(IN, IN)
        self.lm_head = nn.Linear(IN, 16, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.lm_head(self.kept(torch.relu(self.body(self.embedding(tokens)))))


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_freed_weights_give_the_result_of_dequantized_outlier_weights(lowering):
    model, x = frozen(Mlp()), activation(5)
    expected = compiled(copy.deepcopy(model), options={"lowering": lowering, "outlier_weights": "dequantized"})(x)
    run = compiled(model, options={"lowering": lowering, "free_weights": True})
    for _ in range(2):
        torch.testing.assert_close(run(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_freeing_releases_rewritten_weights_only(lowering):
    model = frozen(Embedder())
    storages = {name: parameter.untyped_storage() for name, parameter in model.named_parameters()}
    body = weakref.ref(storages.pop("body.weight"))
    sizes = {name: storage.nbytes() for name, storage in storages.items()}
    run = compiled(model, options={"lowering": lowering, "free_weights": True, "skip_modules": ("kept",)})
    run(torch.arange(6))

    with torch._C.DisableTorchFunctionSubclass():
        assert model.body.weight.untyped_storage().nbytes() == 0
    assert body() is None, "something still holds the float weight"
    assert {name: storage.nbytes() for name, storage in storages.items()} == sizes
    assert not any(isinstance(module.weight, FreedParameter) for module in (model.kept, model.embedding))
    assert run(torch.arange(6)).isfinite().all()


def freed_model():
    model = frozen(Mlp())
    run = compiled(model, options={"free_weights": True})
    run(activation(5))
    return model, run


READS = {
    "state_dict": lambda model: model.state_dict(),
    "eager forward": lambda model: model(activation(5)),
    "save the state": lambda model: torch.save(model.state_dict(), io.BytesIO()),
    "save the model": lambda model: torch.save(model, io.BytesIO()),
    "save the weight": lambda model: torch.save(model.up.weight, io.BytesIO()),
    "arithmetic": lambda model: model.up.weight + 1,
    "reflected arithmetic": lambda model: 1 - model.up.weight,
    "beside another tensor": lambda model: torch.ones(HIDDEN, IN) + model.up.weight,
    "matrix product": lambda model: activation(5) @ model.up.weight.t(),
    "write": lambda model: model.up.weight.copy_(torch.zeros(HIDDEN, IN)),
    "write through data": lambda model: model.up.weight.data.zero_(),
    "fill": lambda model: nn.init.zeros_(model.up.weight),
    "load_state_dict": lambda model: model.load_state_dict(Mlp().state_dict()),
    "item": lambda model: model.up.weight[0, 0].item(),
    "numpy": lambda model: model.up.weight.numpy(),
    "list": lambda model: model.up.weight.tolist(),
    "deepcopy": lambda model: copy.deepcopy(model),
    "cast": lambda model: model.to(torch.bfloat16),
    "clone": lambda model: model.up.weight.clone(),
    "detach": lambda model: model.up.weight.detach(),
    "storage": lambda model: model.up.weight.untyped_storage(),
    "address": lambda model: model.up.weight.data_ptr(),
    "iteration": lambda model: list(model.up.weight),
    "equality": lambda model: torch.equal(model.up.weight, torch.zeros(HIDDEN, IN)),
    "from another tensor": lambda model: torch.zeros(HIDDEN, IN).copy_(model.up.weight),
    "norm": lambda model: nn.utils.get_total_norm(model.parameters()),
}


@pytest.mark.parametrize("read", READS)
def test_reading_a_freed_weight_raises(read):
    model, _ = freed_model()
    with pytest.raises((FreedWeightError, RuntimeError), match=r"released by free_weights=True"):
        READS[read](model)


def test_metadata_of_a_freed_weight_can_be_read():
    model, _ = freed_model()
    weight = model.up.weight
    assert isinstance(weight, nn.Parameter)
    assert weight.shape == weight.size() == (HIDDEN, IN) and weight.dim() == weight.ndim == 2
    assert weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() == HIDDEN * IN
    assert weight.stride() == (IN, 1) and weight.element_size() == 4 and weight.is_floating_point()
    assert not weight.requires_grad and weight.is_leaf and weight.grad is None
    assert len(weight) == HIDDEN and weight in {weight}
    assert f"({HIDDEN}, {IN})" in repr(weight) and "float32" in repr(weight)
    assert "in_features=32" in repr(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == HIDDEN * IN + HIDDEN + OUT * HIDDEN + OUT


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_freed_weights_survive_recompiles(lowering, quantized_shapes, programs):
    model = frozen(Mlp())
    twin = compiled(copy.deepcopy(model), options={"outlier_weights": "dequantized"})
    run = compiled(model, options={"lowering": lowering, "free_weights": True})
    first = [activation(*leading) for leading in ((5,), (9,), (2, 3), (4, 7))]
    results = [run(x) for x in first]
    assert len(programs) >= 3
    assert len(quantized_shapes) == 2
    for x, result in zip(first, results, strict=True):
        torch.testing.assert_close(result, twin(x), rtol=1e-4, atol=1e-4)


def test_storage_shared_with_another_tensor_stays():
    fused = torch.randn(2 * OUT, IN)
    kept = fused.clone()
    first, second = frozen(nn.Linear(IN, OUT)), frozen(nn.Linear(IN, OUT))
    first.weight = nn.Parameter(fused[:OUT], requires_grad=False)
    second.weight = nn.Parameter(fused[OUT:], requires_grad=False)
    compiled(first, options={"free_weights": True})(activation(5))
    assert isinstance(first.weight, FreedParameter)
    assert torch.equal(fused, kept) and torch.equal(second.weight, kept[OUT:])


class TiedOverBreak(nn.Module):
    """A table that one graph looks up and the next one multiplies with."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, IN), requires_grad=False)

    def forward(self, tokens):
        x = torch.nn.functional.embedding(tokens, self.table)
        torch._dynamo.graph_break()
        return torch.nn.functional.linear(torch.relu(x), self.table)


TIED_OVER_BREAK = """
import sys, torch
from tests.test_backend import TiedOverBreak
options = {"free_weights": True, "skip_modules_default": False, "lowering": sys.argv[1]}
run = torch.compile(TiedOverBreak(), backend="int8mixed", options=options)
first = run(torch.arange(6))
try:
    second = run(torch.arange(6))
except Exception as error:
    assert "released by free_weights=True" in str(error), error
else:
    assert torch.equal(first, second)
"""


@pytest.mark.parametrize("lowering", ("eager", pytest.param("inductor", marks=pytest.mark.inductor)))
def test_weight_that_another_graph_reads_in_float_stays_or_raises(lowering):
    command = [sys.executable, "-c", TIED_OVER_BREAK, lowering]  # a wrong read would kill this process
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_original_outlier_weights_cannot_be_freed():
    with pytest.raises(BackendCompilerFailed, match="ConfigError: outlier_weights='original'") as caught:
        compiled(frozen(Mlp()), options={"free_weights": True, "outlier_weights": "original"})(activation(5))
    assert isinstance(caught.value.inner_exception, ConfigError)


def test_trained_weights_are_not_freed():
    model = Mlp()
    with pytest.warns(UserWarning, match="int8mixed left Linears"):
        compiled(model, options={"free_weights": True})(activation(5)).sum().backward()
    assert not any(isinstance(parameter, FreedParameter) for parameter in model.parameters())


def test_two_compiled_models_share_one_quantized_weight(quantized_shapes):
    first, second = frozen(nn.Linear(IN, OUT)), frozen(nn.Sequential(nn.ReLU(), nn.Linear(IN, OUT)))
    second[1].weight = first.weight
    x = activation(5)
    assert_follows_reference(compiled(first)(x), first, x)
    assert_follows_reference(compiled(second)(x), second[1], torch.relu(x))
    assert quantized_shapes == [(OUT, IN)]


# --- regional compilation: each block compiled on its own


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
