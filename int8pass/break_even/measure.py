"""Time one Linear in int8 and in float, each as the lowering makes it, on random data."""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

import torch
from torch import Tensor, fx, nn

from int8pass import pipeline, torch_private
from int8pass.bench.gpu_graphs import captured, device_clock
from int8pass.bench.linear_case import OUTLIER_COLUMNS, copies_needed
from int8pass.bench.measure import Unavailable
from int8pass.bench.timing import SHORT_PAUSE_SECONDS, Seconds, interleave, ratio
from int8pass.binding import InputBinding
from int8pass.break_even.case import Case
from int8pass.config import Int8MixedConfig
from int8pass.graph import insert
from int8pass.lower.inductor import inductor_options
from int8pass.program import ModuleTensor, Program
from int8pass.quantization.scheme import DEFAULT_THRESHOLD
from int8pass.quantization.static import StaticScale, static_scale
from int8pass.weight_expression import WeightExpression

logger = logging.getLogger(__name__)

ROUNDS = 5
BATCH_SECONDS = 2e-3
FEWEST_COPIES, LARGEST_COPIES = 2, 16
_REWRITE = pipeline.PASSES[len(pipeline.FLOAT_PASSES) :]
_GRAPHS = "triton.cudagraphs"  # Inductor's option
_OUTLIER, _INSIDE = 1.5, 0.8  # in units of the threshold, outliers and the limit of other features

Call = Callable[[], object]
Round = list[Call]  # a call with each weight


def stopwatch(case: Case, calls: Mapping[str, Call]) -> Mapping[str, Seconds]:
    """Seconds a call of each, one a round. Tests put a fake one in its place."""
    return interleave(calls, ROUNDS, BATCH_SECONDS, clock=device_clock(case.device), longest_pause=SHORT_PAUSE_SECONDS)


def measure(case: Case, config: Int8MixedConfig) -> float:
    """How many times faster the Linear is in int8 than in float: below 1, int8 makes it slower.

    Both are compiled as the lowering compiles them, alone; q, k and v, which share their quantization in a model, count
    it each. Weights go round, so that they come from memory as those of a model do. Where the mode replays CUDA graphs,
    both are captured here: graphs of Dynamo's hold a model's weights where they lie, and would copy these, which are
    inputs. Takes about a second.
    """
    kept = {"outlier_weights": "original" if config.keeps_original_weights else "dequantized"}
    branch = kept if config.scheme.decomposition else {}
    profile = config.profile and dataclasses.replace(config.profile, rounded=None)  # the weights here are random
    config = dataclasses.replace(config, break_even="off", free_weights=False, dump_dir=None, profile=profile, **branch)
    graphs = _replays_graphs(case.device, config)
    if graphs:
        config = dataclasses.replace(config, inductor={**config.inductor, _GRAPHS: False})
    with _outside_of_the_model(case.device):
        tensors = _tensors(case, config.threshold)
        weight = tensors.pop("weight")
        copies = copies_needed(case.in_features, case.out_features, LARGEST_COPIES, FEWEST_COPIES)
        weights = [weight, *(nn.Parameter(weight.clone(), False) for _ in range(copies - 1))]
        rounds = {
            "float": _float_rounds(case, config, tensors, weights),
            "int8": _int8_rounds(case, config, tensors, weights),
        }
        seconds = stopwatch(case, _calls(rounds, case.device, graphs))
    return ratio(seconds["float"], seconds["int8"])


class _Alone(Program):
    """A graph of one Linear, whose profile, if it has one, names the first columns and the range of the others."""

    columns: tuple[int, ...] | None = None

    def profiled_columns(self, expression: WeightExpression, node: fx.Node) -> tuple[int, ...] | None:
        return self.columns

    def static_scale(self, expression: WeightExpression, node: fx.Node) -> StaticScale | None:
        if self.config.activations == "dynamic":
            return None
        limit = _INSIDE * (self.config.threshold or DEFAULT_THRESHOLD)
        return static_scale(-limit, limit, self.config.scheme.activations.symmetric)


def _program(case: Case, config: Int8MixedConfig, tensors: Mapping[str, Tensor], weight: Tensor) -> _Alone:
    """The Linear, to be rewritten. Inputs: x, bias where there is one, weight."""
    graph = fx.Graph()
    mode = torch_private.fake_tensor_mode()
    nodes = {name: graph.placeholder(name) for name in (*tensors, "weight")}
    for name, tensor in (*tensors.items(), ("weight", weight)):
        nodes[name].meta["val"] = mode.from_tensor(tensor)
    arguments = (nodes["x"], nodes["weight"], nodes.get("bias"))
    linear = graph.create_node("call_function", torch.ops.aten.linear.default, arguments, name="linear")
    with mode:
        value = torch.empty((case.rows, case.out_features), dtype=case.output, device=case.device)
        linear.meta["val"] = value.requires_grad_(case.differentiable)
    graph.output((linear,))
    program = _Alone(fx.GraphModule({}, graph), {"weight": ModuleTensor("weight", weight)}, config)
    program.linears[linear] = WeightExpression("weight")
    program.columns = None if case.profiled is None else tuple(range(case.profiled))
    return program


def _int8_rounds(case: Case, config: Int8MixedConfig, tensors: Mapping[str, Tensor], weights: list[Tensor]) -> Round:
    program, lowering = _program(case, config, tensors, weights[0]), _lowering(config)
    pipeline.run(program, passes=(*_REWRITE, *lowering.PASSES))
    binding = InputBinding(program)
    arguments = [binding((*tensors.values(), weight)) for weight in weights]
    run = lowering.lower(program, arguments[0])
    return [functools.partial(run, *each) for each in arguments]


def _float_rounds(case: Case, config: Int8MixedConfig, tensors: Mapping[str, Tensor], weights: list[Tensor]) -> Round:
    program, lowering = _program(case, config, tensors, weights[0]), _lowering(config)
    (linear,) = program.linears
    for argument in linear.all_input_nodes:  # an autocast region casts what is of another dtype
        if argument.meta["val"].dtype != case.output:
            linear.replace_input_with(argument, insert(linear, torch.ops.aten.to.dtype, argument, case.output))
    program.graph_module.recompile()
    arguments = [[*tensors.values(), weight] for weight in weights]
    run = lowering.lower(program, arguments[0])
    return [functools.partial(run, *each) for each in arguments]


def _replays_graphs(device: torch.device, config: Int8MixedConfig) -> bool:
    """Whether a model that is compiled so runs as CUDA graphs."""
    return device.type == "cuda" and config.lowering == "inductor" and bool(inductor_options(config).get(_GRAPHS))


def _calls(rounds: Mapping[str, Round], device: torch.device, graphs: bool) -> dict[str, Call]:
    """Calls that go round the weights: one weight at each, or, as the replay of one CUDA graph, all of them."""
    if graphs:
        try:
            return {name: captured(lambda calls=calls: [call() for call in calls], device)
                    for name, calls in rounds.items()}  # fmt: skip
        except Unavailable as error:
            logger.warning("break-even is measured by calls from the host: %s", error)
    return {name: _cycle(calls) for name, calls in rounds.items()}


def _cycle(calls: Round) -> Call:
    cycle = itertools.cycle(calls)
    return lambda: next(cycle)()


def _lowering(config: Int8MixedConfig) -> ModuleType:
    return importlib.import_module(f"int8pass.lower.{config.lowering}")


def _tensors(case: Case, threshold: float) -> dict[str, Tensor]:
    """x with a few outlier columns if there is a threshold, bias if there is one, weight of standard deviation 0.02."""
    generator = torch.Generator(case.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=case.device)

    x = normal(case.rows, case.in_features)
    if threshold:
        x.mul_(threshold / 4).clamp_(-_INSIDE * threshold, _INSIDE * threshold)
        x[:, : OUTLIER_COLUMNS if case.profiled is None else case.profiled] = _OUTLIER * threshold
    tensors = {"x": x.to(case.input)}
    if case.bias is not None:
        tensors["bias"] = normal(case.out_features).to(case.bias)
    weight = normal(case.out_features, case.in_features).mul_(0.02)
    return {**tensors, "weight": nn.Parameter(weight.to(case.weight), False)}


@contextlib.contextmanager
def _outside_of_the_model(device: torch.device) -> Iterator[None]:
    """The compilation that asks, and the modes that it is under, do not reach what is timed."""
    with (
        torch_private.outside_of_tracing(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
