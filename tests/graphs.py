"""Graphs for tests: compile a callable, and keep the Program and the text of every stage."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from int8pass import pipeline
from int8pass.backend import InputBinding
from int8pass.capture import program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.graph import operation
from int8pass.inspection.dump import Dump
from int8pass.program import Program


@dataclass(frozen=True)
class Compiled:
    """What became of one compiled call: program after all passes; stages: stage name -> text; output of the call."""

    program: Program
    stages: dict[str, str]
    output: Any

    @property
    def reasons(self) -> dict[str, int]:
        """How often each skip reason, or "rewritten", occurs."""
        return dict(self.program.counts())

    @property
    def operations(self) -> Counter:
        """How often each operation occurs in the rewritten graph."""
        return operations(self.program)


def operations(program: Program) -> Counter:
    """How often each operation occurs in a graph."""
    return Counter(operation(node) for node in program.graph.nodes if operation(node))


def program_of(call: Callable, *inputs: Any, grad: bool = False, dynamic: bool = False, **options: Any) -> Program:
    """The Program of a call as it is captured, before any pass."""
    programs = []

    def backend(graph_module, example_inputs):
        config = Int8MixedConfig.from_options(options)
        programs.append(program_from_dynamo(graph_module, example_inputs, config))
        return graph_module.forward

    _call(call, inputs, backend, grad, dynamic)
    (program,) = programs
    return program


def compiled(call: Callable, *inputs: Any, grad: bool = False, dynamic: bool = False, **options: Any) -> Compiled:
    """Run a call through all passes, checking the graph after each, and execute the ops as they are."""
    found = []

    def backend(graph_module, example_inputs):
        dump = Dump(None)
        config = Int8MixedConfig.from_options(options)
        program = pipeline.run(program_from_dynamo(graph_module, example_inputs, config), dump)
        binding = InputBinding(program, example_inputs)
        found.append((program, dict(dump.stages)))
        return lambda *args: program.graph_module(*binding(args))

    output = _call(call, inputs, backend, grad, dynamic)
    ((program, stages),) = found
    return Compiled(program, stages, output)


def _call(call: Callable, inputs: tuple, backend: Callable, grad: bool, dynamic: bool) -> Any:
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        return torch.compile(call, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
