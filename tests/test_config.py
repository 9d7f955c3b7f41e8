"""Int8MixedConfig: every option is checked, an unknown one names the nearest, and both ways in read the same list."""

import collections
import dataclasses
import inspect
import math
import pathlib

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from int8pass.config import Int8MixedConfig
from int8pass.convert import convert
from int8pass.errors import ConfigError, Int8PassError
from int8pass.quantization import SCHEMES

DEFAULTS = dict(
    scheme=dataclasses.asdict(SCHEMES["llm.int8"]),
    activations="dynamic",
    threshold=6.0,
    outliers="column",
    outlier_weights=None,
    profile=None,
    skip_modules=(),
    skip_modules_default=True,
    free_weights=False,
    break_even="off",
    lowering="inductor",
    mode=None,
    inductor={},
    tensorrt={},
    dump_dir=None,
)


def test_defaults_are_those_of_the_paper():
    assert dataclasses.asdict(Int8MixedConfig()) == DEFAULTS


def test_docstring_explains_every_option():
    text = inspect.getdoc(Int8MixedConfig)
    assert [name for name in DEFAULTS if f"\n{name}: " not in text] == []


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Int8MixedConfig().threshold = 3.0


@pytest.mark.parametrize(
    "options",
    (
        {"threshold": 0.0},
        {"threshold": 3},
        {"threshold": math.inf},
        {"outliers": "token"},
        {"outlier_weights": "original"},
        {"outlier_weights": "dequantized"},
        {"skip_modules": ("a.b", "*.c", "re:d.*")},
        {"skip_modules_default": False},
        {"free_weights": True},
        {"free_weights": True, "outlier_weights": "dequantized"},
        {"lowering": "eager"},
        {"mode": "default"},
        {"mode": "reduce-overhead"},
        {"mode": "max-autotune"},
        {"mode": "max-autotune-no-cudagraphs"},
        {"inductor": {"max_autotune": True}},
        {"dump_dir": "folder"},
    ),
    ids=str,
)
def test_legal_options(options):
    config = Int8MixedConfig.from_options(options)
    assert dataclasses.asdict(config) == {**DEFAULTS, **options}
    assert Int8MixedConfig(**options) == config


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"threshold": -1.0}, "threshold must be a number >= 0"),
        ({"threshold": math.nan}, "threshold must be a number >= 0"),
        ({"threshold": "6"}, "threshold must be a number >= 0"),
        ({"threshold": True}, "threshold must be a number >= 0"),
        ({"outliers": "row"}, r"outliers must be one of \('column', 'token'\), not 'row'"),
        ({"outliers": None}, "outliers must be one of"),
        ({"outliers": ["token"]}, "outliers must be one of"),
        ({"outlier_weights": "float"}, "outlier_weights must be one of .*'original', 'dequantized'"),
        ({"skip_modules": "lm_head"}, r"skip_modules must be a sequence of names: write \('lm_head',\)"),
        ({"skip_modules": 3}, "skip_modules must be a sequence of names"),
        ({"skip_modules": None}, "skip_modules must be a sequence of names"),
        ({"skip_modules": (3,)}, "skip_modules must be a sequence of names"),
        ({"skip_modules": ("re:(",)}, r"skip_modules.*re:\("),
        ({"skip_modules_default": 1}, "skip_modules_default must be True or False, not 1"),
        ({"free_weights": "yes"}, "free_weights must be True or False, not 'yes'"),
        ({"break_even": "on"}, "break_even must be one of"),
        ({"lowering": "cuda"}, "lowering must be one of .*'inductor', 'eager', 'tensorrt'"),
        ({"lowering": "tensorrt", "scheme": "absmax"}, "one symmetric scale for each row of activations"),
        ({"lowering": "tensorrt", "threshold": 0.0, "break_even": "measured"}, "times Inductor's Linears"),
        ({"tensorrt": "fast"}, "tensorrt must be a mapping of torch-tensorrt's options"),
        ({"mode": "fast"}, "mode must be one of .*'reduce-overhead'"),
        ({"inductor": "max_autotune"}, "inductor must be a mapping"),
        ({"inductor": None}, "inductor must be a mapping"),
        ({"dump_dir": 3}, "dump_dir must be"),
        ({"free_weights": True, "outlier_weights": "original"}, "outlier_weights='original' needs the float weights"),
    ),
    ids=str,
)
def test_illegal_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Int8MixedConfig.from_options(options)
    with pytest.raises(ConfigError, match=message):
        Int8MixedConfig(**options)


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    (
        ("treshold", "threshold"),
        ("outlier", "outliers"),
        ("outlier_weight", "outlier_weights"),
        ("skip_module", "skip_modules"),
        ("skip_default", "skip_modules_default"),
        ("free_weight", "free_weights"),
        ("lower", "lowering"),
        ("dump", "dump_dir"),
    ),
)
def test_unknown_option_names_the_nearest(unknown, nearest):
    with pytest.raises(ConfigError, match=f"unknown option '{unknown}'; did you mean '{nearest}'") as caught:
        Int8MixedConfig.from_options({unknown: 1})
    assert all(name in str(caught.value) for name in DEFAULTS)


@pytest.mark.parametrize("unknown", ("max_autotune", "x", "", 3))
def test_any_unknown_option_is_an_error(unknown):
    with pytest.raises(ConfigError, match=r"unknown option .*Options of Inductor go into 'inductor'"):
        Int8MixedConfig.from_options({unknown: True})


@pytest.mark.parametrize("options", (5, "threshold", [("threshold", 6.0)]))
def test_options_must_be_a_mapping(options):
    with pytest.raises(ConfigError, match="options must be a mapping"):
        Int8MixedConfig.from_options(options)


def test_errors_can_be_caught_as_value_errors():
    assert issubclass(ConfigError, ValueError) and issubclass(ConfigError, Int8PassError)


def test_any_mapping_and_none_are_taken():
    assert Int8MixedConfig.from_options(None) == Int8MixedConfig.from_options({}) == Int8MixedConfig()
    assert Int8MixedConfig.from_options(collections.ChainMap({"threshold": 3})).threshold == 3.0


def test_given_mapping_is_left_as_it_is():
    options = {"threshold": 3, "skip_modules": ["a"]}
    config = Int8MixedConfig.from_options(options, mode="default")
    assert options == {"threshold": 3, "skip_modules": ["a"]}
    assert config.skip_modules == ("a",) and isinstance(config.threshold, float)


def test_a_config_is_taken_and_overridden():
    config = Int8MixedConfig(threshold=3.0)
    assert Int8MixedConfig.from_options(config) == config
    assert Int8MixedConfig.from_options(config, mode="default") == Int8MixedConfig(threshold=3.0, mode="default")
    assert Int8MixedConfig.from_options(config, mode=None) == config
    with pytest.raises(ConfigError, match="mode must be one of"):
        Int8MixedConfig.from_options(config, mode="fast")


def test_path_of_the_dump_folder_becomes_text():
    assert Int8MixedConfig(dump_dir=pathlib.Path("a") / "b").dump_dir == str(pathlib.Path("a") / "b")


@pytest.mark.parametrize(
    ("options", "original"),
    (
        ({}, True),
        ({"free_weights": True}, False),
        ({"outlier_weights": "original"}, True),
        ({"outlier_weights": "dequantized"}, False),
        ({"outlier_weights": "dequantized", "free_weights": True}, False),
    ),
    ids=str,
)
def test_which_weights_outliers_meet(options, original):
    assert Int8MixedConfig(**options).keeps_original_weights is original


# --- the ways in


def linear():
    torch._dynamo.reset()
    return nn.Linear(8, 8).requires_grad_(False), torch.randn(2, 8)


def test_torch_compile_reports_an_unknown_option():
    model, x = linear()
    with pytest.raises(BackendCompilerFailed, match="did you mean 'threshold'") as caught:
        torch.compile(model, backend="int8mixed", options={"treshold": 3.0})(x)
    assert isinstance(caught.value.inner_exception, ConfigError)


def test_torch_compile_passes_its_mode(monkeypatch):
    from int8pass.lower import inductor

    seen = []
    monkeypatch.setattr(inductor, "lower", lambda program, *_: seen.append(program.config) or program.graph_module)
    model, x = linear()
    torch.compile(model, backend="int8mixed", mode="max-autotune-no-cudagraphs")(x)
    assert seen == [Int8MixedConfig(mode="max-autotune-no-cudagraphs")]


def test_torch_compile_takes_mode_among_options_and_a_threshold(monkeypatch):
    from int8pass.lower import inductor

    seen = []
    monkeypatch.setattr(inductor, "lower", lambda program, *_: seen.append(program.config) or program.graph_module)
    model, x = linear()
    torch.compile(model, backend="int8mixed", options={"mode": "reduce-overhead", "threshold": 3.0})(x)
    assert seen == [Int8MixedConfig(mode="reduce-overhead", threshold=3.0)]


def test_mode_and_inductor_options_reach_inductor(monkeypatch):
    from int8pass.lower.inductor import inductor_options

    monkeypatch.delenv("INT8PASS_VERIFY", raising=False)
    unchecked, listed = {"size_asserts": False}, torch._inductor.list_mode_options
    assert inductor_options(Int8MixedConfig()) == unchecked
    assert inductor_options(Int8MixedConfig(mode="default")) == unchecked
    without_graphs = "max-autotune-no-cudagraphs"
    assert inductor_options(Int8MixedConfig(mode=without_graphs)) == {**unchecked, **listed(without_graphs)}
    chosen = {"max_autotune": False, "size_asserts": True, "a": 1}
    overridden = inductor_options(Int8MixedConfig(mode="max-autotune", inductor=chosen))
    assert overridden == {**listed("max-autotune"), **chosen}
    monkeypatch.setenv("INT8PASS_VERIFY", "1")
    assert inductor_options(Int8MixedConfig()) == {"size_asserts": True}


def test_convert_takes_options_and_a_config():
    model, x = linear()
    for options in ({"threshold": 0.0}, Int8MixedConfig(threshold=0.0)):
        targets = {str(node.target) for node in convert(model, (x,), options=options).graph.nodes}
        assert "int8pass.int8_mm.default" in targets and "int8pass.outlier_mask.default" not in targets
    with pytest.raises(ConfigError, match="did you mean 'threshold'"):
        convert(model, (x,), options={"treshold": 3.0})
