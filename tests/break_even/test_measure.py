"""What is timed is the Linear as the lowering makes it; one test with the real clock."""

import dataclasses
import logging

import pytest
import torch

from int8pass import Profile
from int8pass.bench.measure import Unavailable
from int8pass.bench.timing import median, ratio
from int8pass.break_even import measure
from int8pass.break_even.case import Case
from int8pass.config import Int8MixedConfig
from int8pass.kernels.cpu import fused
from int8pass.quantization import SCHEMES
from tests.linear_models import relative_error

F32, BF16 = torch.float32, torch.bfloat16
SMALL = Case(8, 64, 32, F32, F32, F32, F32, torch.device("cpu"))
SCHEME = {"scheme": "zeropoint-vectorwise", "threshold": None}
EAGER = Int8MixedConfig(break_even="measured", lowering="eager")


@pytest.mark.parametrize(
    "change",
    (
        {}, {"bias": None}, {"input": BF16, "weight": BF16, "output": BF16, "bias": BF16}, {"output": BF16},
        {"differentiable": True}, {"profiled": 3}, {"profiled": 0}, {"rows": 1},
    ),
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "options", ({}, {"threshold": 0.0}, {"outliers": "token"}, {"free_weights": True}, SCHEME), ids=str
)
def test_both_contestants_compute_the_linear(change, options, fake_stopwatch):
    case = dataclasses.replace(SMALL, **change)
    measure.measure(case, dataclasses.replace(EAGER, **options))
    ((floats,), (codes,)) = (fake_stopwatch.results[0][name] for name in ("float", "int8"))
    assert floats.dtype == codes.dtype == case.output and floats.shape == codes.shape == (case.rows, 32)
    assert 0 < relative_error(codes, floats) < 0.03


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("static", (False, True), ids=("dynamic", "static"))
def test_every_scheme_is_timed(scheme, static, fake_stopwatch):
    options = {"activations": "static", "profile": Profile((), 0.0, 1)} if static else {}
    case = dataclasses.replace(SMALL, profiled=3) if static else SMALL
    measure.measure(case, Int8MixedConfig(scheme=scheme, break_even="measured", lowering="eager", **options))
    ((floats,), (codes,)) = (fake_stopwatch.results[0][name] for name in ("float", "int8"))
    assert 0 < relative_error(codes, floats) < 0.05


def test_the_data_has_outliers_only_below_a_threshold():
    x = measure._tensors(SMALL, 6.0)["x"]
    assert (x.abs() >= 6.0).any(0).sum() == 6 and (x.abs() < 4.81).sum() == 8 * (64 - 6)
    assert (measure._tensors(dataclasses.replace(SMALL, profiled=2), 6.0)["x"].abs() >= 6.0).any(0).sum() == 2
    assert measure._tensors(SMALL, 0.0)["x"].abs().max() < 6.0


def test_the_users_random_state_is_left_alone(fake_stopwatch):
    before = torch.get_rng_state()
    measure.measure(SMALL, EAGER)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.inductor
def test_with_the_real_clock_on_the_fused_kernel(monkeypatch, fresh_compiler):
    operations, seconds = [], []
    original = measure.stopwatch

    def stopwatch(case, calls):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            calls["int8"]()
        operations.append({event.name for event in profile.events()})
        seconds.append(original(case, calls))
        return seconds[-1]

    monkeypatch.setattr(measure, "stopwatch", stopwatch)
    config = Int8MixedConfig(break_even="measured")
    for features in (8, 4096):
        speedup = measure.measure(dataclasses.replace(SMALL, in_features=features, out_features=features), config)
        assert speedup == ratio(seconds[-1]["float"], seconds[-1]["int8"]) > 0
    tiny, large = seconds
    assert all(median(large[name]) > 3 * median(tiny[name]) for name in ("float", "int8"))
    if fused.is_available():
        assert all("int8pass::cpu_int8_linear" in each for each in operations)


@pytest.mark.parametrize(
    "options, graphs",
    (({}, False), ({"mode": "default"}, False), ({"mode": "reduce-overhead"}, True), ({"mode": "max-autotune"}, True),
     ({"mode": "max-autotune-no-cudagraphs"}, False), ({"inductor": {"triton.cudagraphs": True}}, True),
     ({"mode": "reduce-overhead", "inductor": {"triton.cudagraphs": False}}, False),
     ({"mode": "reduce-overhead", "lowering": "eager"}, False)),
    ids=str,
)  # fmt: skip
def test_which_models_replay_cuda_graphs(options, graphs):
    config = Int8MixedConfig(**options)
    assert measure._replays_graphs(torch.device("cuda"), config) == graphs
    assert not measure._replays_graphs(torch.device("cpu"), config)


@pytest.mark.inductor
def test_graphs_are_captured_around_all_weights_and_not_by_inductor(monkeypatch, fresh_compiler):
    lowered, captured, called = [], [], []
    monkeypatch.setattr(measure, "_replays_graphs", lambda device, config: True)
    monkeypatch.setattr(measure, "copies_needed", lambda *sizes: 3)
    monkeypatch.setattr(measure, "captured", lambda call, device: captured.append(call) or call)
    monkeypatch.setattr(measure, "stopwatch", lambda case, calls: called.append({k: v() for k, v in calls.items()}) or {
        name: [1.0] for name in calls})  # fmt: skip
    lower = measure.inductor_options
    monkeypatch.setattr(
        "int8pass.lower.inductor.inductor_options", lambda config: lowered.append(lower(config)) or lowered[-1]
    )
    measure.measure(SMALL, Int8MixedConfig(break_even="measured", mode="reduce-overhead"))
    assert [options["triton.cudagraphs"] for options in lowered] == [False, False]
    assert len(captured) == 2
    for results in called[0].values():
        assert len(results) == 3 and results[0][0].shape == (8, 32)


def test_what_no_graph_can_hold_is_timed_by_calls(monkeypatch, fake_stopwatch, caplog):
    def captured(call, device):
        raise Unavailable("no CUDA graph can hold it: it waits")

    monkeypatch.setattr(measure, "_replays_graphs", lambda device, config: True)
    monkeypatch.setattr(measure, "captured", captured)
    with caplog.at_level(logging.WARNING, "int8pass"):
        measure.measure(SMALL, EAGER)
    assert "by calls from the host: no CUDA graph can hold it: it waits" in caplog.text
    assert [len(result) for result in fake_stopwatch.results[0].values()] == [1, 1]
