"""int8pass.convert: exported programs, graph modules and modules in, the same kind out."""

import pytest
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

import int8pass.notices
from int8pass import Int8Linear, Int8MixedConfig, convert
from int8pass.errors import CaptureError, ConfigError
from tests import reference
from tests.linear_models import IN, OUT, Mlp, activation, exported, frozen, op_counts, relative_error, reloaded, saved

OUTLIER_WEIGHTS = ("original", "dequantized")


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    """Each test starts with the same seed, without compiled code and without warnings that were given already."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(int8pass.notices, "_warned", set())


def compiled(model, *args, **options):
    with torch.no_grad():
        return torch.compile(model, backend="int8mixed", options={"lowering": "eager", **options})(*args)


# --- kinds of input


@pytest.mark.parametrize("outlier_weights", OUTLIER_WEIGHTS)
def test_exported_program_gives_an_exported_program(outlier_weights):
    model, x = frozen(Mlp()), activation(4)
    original = exported(model, x)
    converted = convert(original, options={"outlier_weights": outlier_weights})
    assert type(converted) is ExportedProgram
    assert op_counts(converted)["int8_mm"] == 2 and op_counts(converted)["linear"] == 0
    assert torch.equal(converted.module()(x), compiled(model, x, outlier_weights=outlier_weights))


@pytest.mark.parametrize("options", (None, {"threshold": 0.0}, {"outliers": "token"}, Int8MixedConfig(threshold=2.0)))
def test_result_follows_the_reference(options):
    linear, x = frozen(nn.Linear(IN, OUT)), activation(6)
    config = Int8MixedConfig.from_options(options)
    y = convert(linear, (x,), options=options)(x)
    weight, bias = linear.weight.numpy(), linear.bias.numpy()
    expected, magnitude = reference.linear(
        x.numpy(), weight, bias, threshold=config.threshold, outliers=config.outliers
    )
    bound = reference.tolerance(expected, magnitude, IN, torch.finfo(torch.float32).eps)
    assert (abs(y.double().numpy() - expected) <= bound).all()


def test_module_gives_a_graph_module():
    model, x = frozen(Mlp()), activation(4)
    converted = convert(model, (x,))
    assert isinstance(converted, fx.GraphModule)
    assert torch.equal(converted(x), convert(exported(model, x)).module()(x))


@pytest.mark.parametrize("capture", (fx.symbolic_trace, lambda model: exported(model, activation(4)).module()))
def test_graph_module_gives_a_graph_module(capture):
    model, x = frozen(Mlp()), activation(4)
    converted = convert(capture(model), (x,))
    assert isinstance(converted, fx.GraphModule)
    assert op_counts(converted)["int8_mm"] == 2
    assert torch.equal(converted(x), convert(model, (x,))(x))


def test_inputs_by_keyword():
    class Named(Mlp):
        def forward(self, x, *, scale):
            return super().forward(x) * scale

    model, x, scale = frozen(Named()), activation(4), torch.tensor(2.0)
    converted = convert(model, (x,), {"scale": scale})
    assert torch.equal(converted(x, scale=scale), 2 * convert(model, (x,), {"scale": torch.tensor(1.0)})(x, scale=1.0))
    assert torch.equal(converted(x, scale=scale), convert(model, None, {"x": x, "scale": scale})(x=x, scale=scale))


def test_already_decomposed_program():
    model, x = frozen(Mlp()), activation(4)
    decomposed = exported(model, x).run_decompositions()
    assert op_counts(decomposed)["linear"] == 0
    converted = convert(decomposed)
    assert op_counts(converted)["int8_mm"] == 2 and op_counts(converted)["addmm"] == 0
    assert torch.equal(converted.module()(x), convert(exported(model, x)).module()(x))


def test_converted_program_can_be_decomposed():
    model, x = frozen(Mlp()), activation(4)
    converted = convert(exported(model, x))
    decomposed = converted.run_decompositions()
    assert op_counts(decomposed)["int8_mm"] == 2
    assert torch.equal(decomposed.module()(x), converted.module()(x))


def test_dynamic_shapes():
    linear = frozen(nn.Linear(IN, OUT))
    shapes = ({0: Dim("batch", min=2, max=64), 1: Dim("length", min=2, max=64)},)
    converted = convert(linear, (activation(3, 5),), dynamic_shapes=shapes)
    for leading in ((2, 7), (9, 2), (3, 5)):
        x = activation(*leading)
        rows = x.reshape(-1, IN).numpy()
        expected, magnitude = reference.linear(rows, linear.weight.numpy(), linear.bias.numpy())
        bound = reference.tolerance(expected, magnitude, IN, torch.finfo(torch.float32).eps)
        assert converted(x).shape == (*leading, OUT)
        assert (abs(converted(x).reshape(-1, OUT).double().numpy() - expected) <= bound).all()


# --- files


@pytest.mark.parametrize("outlier_weights", OUTLIER_WEIGHTS)
def test_save_and_load_give_equal_results(outlier_weights):
    x = activation(4)
    converted = convert(exported(frozen(Mlp()), x), options={"outlier_weights": outlier_weights})
    again = reloaded(converted)
    assert torch.equal(again.module()(x), converted.module()(x))
    assert again.state_dict.keys() == converted.state_dict.keys()


def test_saved_program_keeps_its_dynamic_shapes():
    x = activation(3)
    program = exported(frozen(Mlp()), x, dynamic_shapes=({0: Dim("batch", max=64)},))
    converted = convert(program)
    longer = activation(11)
    assert torch.equal(reloaded(converted).module()(longer), converted.module()(longer))


def test_unread_float_weights_are_left_out():
    program = exported(frozen(Mlp()), activation(4))
    converted = convert(program, options={"outlier_weights": "dequantized"})
    assert sorted(converted.state_dict) == [
        "down.bias",
        "down.weight_codes",
        "down.weight_scale",
        "up.bias",
        "up.weight_codes",
        "up.weight_scale",
    ]
    assert sorted(program.state_dict) == ["down.bias", "down.weight", "up.bias", "up.weight"]


def test_file_is_a_quarter_of_the_float_file():
    model = frozen(nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)))
    program = exported(model, activation(4, columns=512))
    converted = convert(program, options={"outlier_weights": "dequantized"})
    assert len(saved(converted)) < 0.27 * len(saved(program))


@pytest.mark.inductor
@pytest.mark.parametrize("outlier_weights", OUTLIER_WEIGHTS)
def test_aot_inductor_package_gives_equal_results(outlier_weights, tmp_path):
    x = activation(4)
    converted = convert(exported(frozen(Mlp()), x), options={"outlier_weights": outlier_weights})
    package = torch._inductor.aoti_compile_and_package(converted, package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    for _ in range(2):
        assert relative_error(loaded(x), converted.module()(x)) < 1e-6
        x = activation(4)


# --- converting again


@pytest.mark.parametrize("outlier_weights", OUTLIER_WEIGHTS)
def test_converting_twice_quantizes_once(outlier_weights):
    x, options = activation(4), {"outlier_weights": outlier_weights}
    once = convert(exported(frozen(Mlp()), x), options=options)
    twice = convert(once, options=options)
    assert op_counts(twice) == op_counts(once)
    assert twice.state_dict.keys() == once.state_dict.keys()
    assert torch.equal(twice.module()(x), once.module()(x))


def test_converting_a_converted_module_quantizes_once():
    model, x = frozen(Mlp()), activation(4)
    once = convert(model, (x,))
    assert torch.equal(convert(once, (x,))(x), once(x))
    assert op_counts(convert(once, (x,)))["int8_mm"] == 2


def test_int8_linear_stays_and_the_rest_is_rewritten():
    model, x = frozen(Mlp()), activation(4)
    model.up = Int8Linear.from_linear(model.up)
    converted = convert(model, (x,))
    assert op_counts(converted)["int8_mm"] == 2 and op_counts(converted)["linear"] == 0
    assert relative_error(converted(x), model(x)) < 0.03


def test_options_select_what_is_rewritten():
    converted = convert(frozen(Mlp()), (activation(4),), options={"skip_modules": ("down",)})
    assert op_counts(converted)["int8_mm"] == 1 and op_counts(converted)["linear"] == 1


# --- refusals


def test_module_without_example_inputs_is_refused():
    with pytest.raises(CaptureError, match="example inputs"):
        convert(frozen(Mlp()))


@pytest.mark.parametrize("model", (None, "model", torch.zeros(2), Mlp, lambda x: x))
def test_other_types_are_refused(model):
    with pytest.raises(CaptureError, match=r"expected an nn\.Module"):
        convert(model, (activation(4),))


def test_model_that_export_cannot_capture_is_refused_with_advice():
    class Branches(Mlp):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"torch\.compile"):
        convert(frozen(Branches()), (activation(4),))


def test_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'threshold'"):
        convert(frozen(Mlp()), (activation(4),), options={"treshold": 1.0})


def test_warns_where_nothing_is_rewritten():
    with pytest.warns(UserWarning, match="rewrote nothing"):
        convert(frozen(Mlp()), (activation(4),), options={"skip_modules": ("*",)})
