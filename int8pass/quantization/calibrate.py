"""`calibrate`: run a model in float on batches, and record which features of each Linear's input are outliers."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from int8pass import ops, pipeline, torch_private
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.errors import CaptureError, ConfigError
from int8pass.exported import program_from_exported
from int8pass.inspection.float_run import copied, flat_inputs
from int8pass.program import ModuleTensor, Program
from int8pass.quantization.profile import Profile, ProfiledLayer, weight_fingerprint


def calibrate(
    model_or_program: nn.Module | ExportedProgram,
    batches: Iterable[Any],
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    min_batches: int = 1,
    progress: bool = True,
) -> Profile:
    """Return a Profile of the model: for each Linear the largest |x| and the outlier columns that the batches show.

    batches: what the model is called with: mappings of keyword arguments, tuples of arguments, pairs (arguments,
    keyword arguments), or single tensors.
    options: `threshold` and what is skipped, as in Int8MixedConfig. A feature is an outlier column if |x| reaches the
    threshold in at least `min_batches` batches. progress: a bar on standard error. The model computes in float and is
    not changed. Raises CaptureError, ConfigError.
    """
    config = Int8MixedConfig.from_options(options, break_even="off")  # a profile is for any machine
    if config.profile is not None:
        raise ConfigError("calibrate makes a profile; leave 'profile' out of its options")
    if not isinstance(min_batches, int) or min_batches < 1:
        raise ConfigError(f"min_batches must be a positive int, not {min_batches!r}")
    statistics = _Statistics(config.threshold)
    with torch.no_grad(), _runner(model_or_program, config, statistics) as run:
        for batch in _shown(batches, progress):
            run(*_call_arguments(batch))
            statistics.batches += 1
    if not statistics.batches:
        raise ConfigError("there was no batch to calibrate on")
    return Profile(tuple(statistics.layers(min_batches)), config.threshold, statistics.batches)


@dataclass
class _Input:
    """What the Linears that read one weight through (N, K) met: batches by column, and the largest |x|."""

    source: ModuleTensor
    shape: tuple[int, int]
    absmax: float = 0.0
    last: dict[int, int] = field(default_factory=dict)  # column -> number of the last batch that it was counted in
    batches: Counter = field(default_factory=Counter)


class _Statistics:
    """By weight and K, what was met."""

    def __init__(self, threshold: float) -> None:
        self.batches = 0
        self._threshold = threshold
        self._inputs: dict[tuple[str, int], _Input] = {}

    def observe(self, source: ModuleTensor, weight: Tensor, x: Tensor) -> None:
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        found = self._inputs.setdefault((source.name, shape[1]), _Input(source, shape))
        finite = x.detach().float().nan_to_num(0.0, 0.0, 0.0).abs()
        found.absmax = max(found.absmax, float(finite.max()) if finite.numel() else 0.0)
        if not self._threshold:
            return
        for column in ops.outlier_mask(x, self._threshold, "column").nonzero().flatten().tolist():
            if found.last.get(column) != self.batches:
                found.last[column] = self.batches
                found.batches[column] += 1

    def layers(self, min_batches: int) -> Iterator[ProfiledLayer]:
        for (name, _), found in self._inputs.items():
            columns = sorted(column for column, count in found.batches.items() if count >= min_batches)
            fingerprint = weight_fingerprint(found.source.tensor)
            yield ProfiledLayer(name, found.shape, found.absmax, tuple(columns), fingerprint)


class _Observer(fx.Interpreter):
    """Runs one captured graph in float and shows the inputs of the Linears to be rewritten to the statistics."""

    def __init__(self, program: Program, statistics: _Statistics) -> None:
        pipeline.run(program, passes=pipeline.FLOAT_PASSES)
        super().__init__(fx.GraphModule(program.graph_module, copied(program.graph)))
        self._statistics = statistics
        self._sources = {node.name: program.tensors[expression.root] for node, expression in program.linears.items()}

    def run_node(self, node: fx.Node) -> Any:
        if node.name in self._sources:
            x, weight = self.fetch_args_kwargs_from_env(node)[0][:2]
            self._statistics.observe(self._sources[node.name], weight, x)
        return super().run_node(node)


@contextlib.contextmanager
def _runner(model: Any, config: Int8MixedConfig, statistics: _Statistics) -> Iterator[Callable[[tuple, dict], Any]]:
    """A function that calls the model under observation."""
    if isinstance(model, ExportedProgram):
        observer = _Observer(program_from_exported(model, config), statistics)
        yield lambda args, kwargs: observer.run(*flat_inputs(model, args, kwargs))
        return
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected an nn.Module or an ExportedProgram, not {type(model).__name__}")
    names = ModuleNames(model)

    def backend(graph_module: fx.GraphModule, example_inputs: list) -> Callable:
        return _Observer(program_from_dynamo(graph_module, example_inputs, config, names), statistics).run

    with torch_private.compiled_apart(model, backend) as compiled:
        yield lambda args, kwargs: compiled(*args, **kwargs)


def _call_arguments(batch: Any) -> tuple[tuple, dict]:
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], tuple) and isinstance(batch[1], Mapping):
        return batch[0], dict(batch[1])
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    raise ConfigError(
        f"a batch is a mapping of keyword arguments, a tuple of arguments or a tensor, not {type(batch).__name__}"
    )


def _shown(batches: Iterable[Any], progress: bool) -> Iterator[Any]:
    if not progress:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track

    total = len(batches) if hasattr(batches, "__len__") else None
    yield from track(batches, "calibrating", total=total, console=Console(file=sys.stderr))
