"""Layers that share one compiled graph, while what is skipped is decided layer by layer."""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.errors import WeightError
from int8pass.freed_parameter import is_freed
from int8pass.passes.select_linear import GRADIENT_REASON, name_refusal
from int8pass.program import ModuleTensor, Program
from int8pass.quantization.profile import weight_fingerprint
from int8pass.torch_private import compiled_module

logger = logging.getLogger(__name__)


class DecisionGuard:
    """Runs a compiled graph, and keeps to each layer's own decisions.

    Dynamo may call one graph with the weights of several layers or models, while `skip_modules`, tied embeddings,
    gradients (up to PyTorch 2.11 its guards miss requires_grad), profiles and non-finite values decide by weight.
    Weights that were decided otherwise than those the graph was compiled for get a variant of it, made by
    `compile_eager(program, inputs)`, which runs op by op.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        config: Int8MixedConfig,
        weights: dict[int, ModuleTensor],
        names: ModuleNames,
        run: Callable,
        compile_eager: Callable[[Program, list], Callable],
    ) -> None:
        self._graph_module = graph_module
        self._config = config
        self._defaults = {position: source.name for position, source in weights.items()}
        self._compile_eager = compile_eager
        self._lock = threading.Lock()
        tensors = tuple(source.tensor for source in weights.values())
        self._runs = {self._decisions(tensors, names): run}
        self._seen = {tuple(map(id, tensors)): _Choice(tensors, run)}

    def __call__(self, *args: Any) -> Any:
        weights = tuple(args[position] for position in self._defaults)
        choice = self._seen.get(tuple(map(id, weights)))
        if choice is None or not choice.holds(weights):
            choice = self._choose(args, weights)
        for run in filter(None, (choice.run, choice.without_bad_weights)):
            try:
                return run(*args)
            except WeightError as error:  # raised before anything ran, as long as a weight is not finite
                reason = str(error)  # not the error: a log record would keep its traceback, and so the inputs, alive
        logger.warning("%s: while it does, its graph runs op by op, and its Linear in float", reason)
        choice.without_bad_weights = self._variant(args, ModuleNames(compiled_module()))
        return choice.without_bad_weights(*args)

    def _choose(self, args: tuple, weights: tuple[Tensor, ...]) -> "_Choice":
        names = ModuleNames(compiled_module())
        decisions = self._decisions(weights, names)
        with self._lock:
            if decisions not in self._runs:
                logger.warning("layers that share a compiled graph differ in what is done to them: one runs op by op")
                self._runs[decisions] = self._variant(args, names)
        return self._remember(weights, self._runs[decisions])

    def _remember(self, weights: tuple[Tensor, ...], run: Callable) -> "_Choice":
        with self._lock:
            dead = [ids for ids, choice in self._seen.items() if not choice.is_alive]
            for ids in dead:
                del self._seen[ids]
            choice = self._seen[tuple(map(id, weights))] = _Choice(weights, run)
        return choice

    def _variant(self, args: tuple, names: ModuleNames) -> Callable:
        program = program_from_dynamo(self._graph_module, list(args), self._config, names)
        return self._compile_eager(program, list(args))

    def _decisions(self, weights: tuple[Tensor, ...], names: ModuleNames) -> tuple[tuple[str, str], ...]:
        """For each weight, why it is skipped, and which layer of the profile it is."""
        found = []
        for weight, default in zip(weights, self._defaults.values(), strict=True):
            source = ModuleTensor(names.of(weight, default), weight)
            by_gradient = GRADIENT_REASON if torch.is_grad_enabled() and weight.requires_grad else ""
            refusal = name_refusal(self._config, source, names.embeddings) or by_gradient
            found.append((refusal, self._profiled(source)))
        return tuple(found)

    def _profiled(self, source: ModuleTensor) -> str:
        profile = self._config.profile
        if profile is None or not profile.names(source.name) or is_freed(source.tensor):
            return ""
        return f"{source.name} {weight_fingerprint(source.tensor)}"


class _Choice:
    """What runs for a set of weights. Weak references tell them from later tensors that are given the same ids."""

    __slots__ = ("_require_grad", "_weights", "run", "without_bad_weights")

    def __init__(self, weights: tuple[Tensor, ...], run: Callable) -> None:
        self._weights = tuple(map(weakref.ref, weights))
        self._require_grad = [weight.requires_grad for weight in weights]
        self.run = run
        self.without_bad_weights: Callable | None = None

    def holds(self, weights: tuple[Tensor, ...]) -> bool:
        same = all(reference() is weight for reference, weight in zip(self._weights, weights, strict=True))
        return same and self._require_grad == [weight.requires_grad for weight in weights]

    @property
    def is_alive(self) -> bool:
        return all(reference() is not None for reference in self._weights)
