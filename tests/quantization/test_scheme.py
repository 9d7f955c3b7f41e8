"""Schemes are data: what may be declared, which names there are, and which options go with them."""

import dataclasses

import pytest

import int8pass.quantization
from int8pass import Int8MixedConfig, Profile
from int8pass.errors import ConfigError
from int8pass.quantization import SCHEMES, ActivationQuantization, Scheme, WeightQuantization

NAMES = (
    "absmax",
    "zeropoint",
    "absmax-rowwise",
    "absmax-vectorwise",
    "zeropoint-vectorwise",
    "llm.int8",
    "llm.int8-zeropoint",
)
DECOMPOSED = ("llm.int8", "llm.int8-zeropoint")


def test_names():
    assert tuple(SCHEMES) == NAMES
    assert [name for name, scheme in SCHEMES.items() if scheme.decomposition] == list(DECOMPOSED)
    assert all(scheme.name == name for name, scheme in SCHEMES.items())
    assert int8pass.quantization.__all__ == ["SCHEMES", "ActivationQuantization", "Scheme", "WeightQuantization"]


def test_granularities_are_those_of_the_paper():
    found = {name: (each.activations.granularity, each.weights.granularity) for name, each in SCHEMES.items()}
    per_tensor, vectorwise = ("per_tensor", "per_tensor"), ("per_token", "per_channel")
    assert found.pop("absmax") == found.pop("zeropoint") == per_tensor
    assert found.pop("absmax-rowwise") == ("per_token", "per_tensor")
    assert set(found.values()) == {vectorwise}
    assert {name for name, each in SCHEMES.items() if not each.activations.symmetric} == {
        name for name in NAMES if "zeropoint" in name
    }


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: ActivationQuantization("per_row"), "granularity of activations must be one of .*'per_token'"),
        (lambda: ActivationQuantization(symmetric="yes"), "symmetric must be one of"),
        (lambda: WeightQuantization("per_token"), "granularity of weights must be one of .*'per_channel'"),
        (lambda: WeightQuantization(estimator="kl"), "estimator must be one of .*'percentile'"),
        (lambda: WeightQuantization(percentile=0.0), "percentile must be above 0 and at most 100"),
        (lambda: WeightQuantization(percentile="99"), "percentile must be above 0 and at most 100"),
        (lambda: Scheme(3), "name of a scheme must be a str"),
        (lambda: Scheme("mine", activations="per_token"), "activations of a scheme must be a ActivationQuantization"),
        (lambda: Scheme("mine", weights=None), "weights of a scheme must be a WeightQuantization"),
        (lambda: Scheme("mine", decomposition="no"), "decomposition must be one of"),
    ),
)
def test_illegal_declarations(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    "unknown, nearest",
    (("absmx", "absmax"), ("llm.int-8", "llm.int8"), ("vectorwise", "absmax-vectorwise"), ("zero-point", "zeropoint")),
)
def test_unknown_name_names_the_nearest(unknown, nearest):
    with pytest.raises(ConfigError, match=f"unknown scheme '{unknown}'; did you mean '{nearest}'") as caught:
        Int8MixedConfig(scheme=unknown)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("unknown", (None, 3, ["absmax"]))
def test_what_is_no_name_is_refused(unknown):
    with pytest.raises(ConfigError, match="unknown scheme"):
        Int8MixedConfig(scheme=unknown)


@pytest.mark.parametrize("name", NAMES)
def test_threshold_that_nobody_gave_is_the_schemes_own(name):
    config = Int8MixedConfig(scheme=name)
    assert config.scheme is SCHEMES[name]
    assert config.threshold == (6.0 if name in DECOMPOSED else 0.0)
    assert config == Int8MixedConfig(scheme=SCHEMES[name], threshold=None)
    assert Int8MixedConfig.from_options(config, mode="default").threshold == config.threshold
    assert Int8MixedConfig(scheme=name, threshold=0.0).threshold == 0.0
    assert config.scheme.has_default_form == (name in ("absmax-rowwise", "absmax-vectorwise", "llm.int8"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DECOMPOSED])
@pytest.mark.parametrize(
    "options",
    (
        {"threshold": 6.0},
        {"outliers": "token"},
        {"outlier_weights": "dequantized"},
        {"profile": Profile((), 6.0, 1)},
    ),
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_outlier_branch_need_one(name, options):
    (option,) = options
    with pytest.raises(ConfigError, match=f"scheme '{name}' has no outlier branch, which {option} would need"):
        Int8MixedConfig(scheme=name, **options)
    changed = dataclasses.replace(Int8MixedConfig(scheme="llm.int8-zeropoint"), **options)
    assert getattr(changed, option) == options[option]


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if not scheme.has_default_form])
def test_tensorrt_refuses_what_it_cannot_lower(name):
    message = "takes schemes 'absmax-rowwise', 'absmax-vectorwise', 'llm.int8' with activations='dynamic'"
    with pytest.raises(ConfigError, match=message):
        Int8MixedConfig(scheme=name, threshold=0.0, lowering="tensorrt")


def test_another_scheme_in_place_of_one():
    config = dataclasses.replace(Int8MixedConfig(), scheme="absmax", threshold=None)
    assert (config.scheme.name, config.threshold) == ("absmax", 0.0)
    with pytest.raises(ConfigError, match="threshold would need"):
        dataclasses.replace(Int8MixedConfig(), scheme="absmax")
