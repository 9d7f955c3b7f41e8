"""Graphs for tests: small models, what the passes make of them, and their text in short names."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from int8pass import convert, pipeline
from int8pass.binding import InputBinding
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.exported import program_from_exported
from int8pass.graph import operation
from int8pass.inspection.dump import Dump
from int8pass.inspection.text import graph_text
from int8pass.program import Program
from int8pass.torch_private import compiled_module


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
        return Counter(operation(node) for node in self.program.graph.nodes if operation(node))

    def text(self, stage: str) -> str:
        """The computation of a stage, as `short_text` gives it."""
        return short_text(self.stages[stage])


class Holder(nn.Module):
    """A module of named tensors whose forward is a function of the module and its inputs."""

    def __init__(self, call: Callable, **tensors: Tensor) -> None:
        super().__init__()
        self.call = call
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                setattr(self, name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self, *inputs)


def signs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """+-127/128, whose int8 form is exact in every row and column of every view: results equal the float Linear's."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(dtype) * 127 / 128


def with_outliers(x: Tensor) -> Tensor:
    """x with 8.0 as its first feature, which the outlier branch computes exactly as well."""
    x = x.clone()
    x[..., 0] = 8.0
    return x


def parameter(*shape: int, **keywords: Any) -> nn.Parameter:
    """A frozen parameter of `signs`."""
    return nn.Parameter(signs(*shape, **keywords), requires_grad=False)


def holder(call: Callable, **shapes: tuple[int, ...]) -> Holder:
    """A Holder of parameters of these shapes."""
    return Holder(call, **{name: parameter(*shape) for name, shape in shapes.items()})


def program_of(call: Callable, *inputs: Any, grad: bool = False, dynamic: bool = False, **options: Any) -> Program:
    """The Program of a call as Dynamo captures it, before any pass."""
    programs = []

    def backend(graph_module, example_inputs):
        config = Int8MixedConfig.from_options(options)
        programs.append(program_from_dynamo(graph_module, example_inputs, config, ModuleNames(compiled_module())))
        return graph_module.forward

    _run(call, inputs, backend, grad, dynamic)
    (program,) = programs
    return program


def compiled(call: Callable, *inputs: Any, grad: bool = False, dynamic: bool = False, **options: Any) -> Compiled:
    """Run a call's Dynamo graph through all passes, checked after each, and execute the ops as they are."""
    found = []

    def backend(graph_module, example_inputs):
        dump = Dump(None)
        config = Int8MixedConfig.from_options(options)
        program = pipeline.run(
            program_from_dynamo(graph_module, example_inputs, config, ModuleNames(compiled_module())), dump
        )
        binding = InputBinding(program)
        found.append((program, dict(dump.stages)))
        return lambda *args: program.graph_module(*binding(args))

    output = _run(call, inputs, backend, grad, dynamic)
    ((program, stages),) = found
    return Compiled(program, stages, output)


def exported(module: nn.Module, *inputs: Any, **options: Any) -> Compiled:
    """The same through torch.export."""
    program = torch.export.export(module, inputs)
    dump = Dump(None)
    rewritten = pipeline.run(program_from_exported(program, Int8MixedConfig.from_options(options)), dump)
    with torch.no_grad():
        output = convert(program, options=options).module()(*inputs)
    return Compiled(rewritten, dict(dump.stages), output)


def _run(call: Callable, inputs: tuple, backend: Callable, grad: bool, dynamic: bool) -> Any:
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        return torch.compile(call, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)


def text_of(program: Program) -> str:
    """The computation of a program, as `short_text` gives it."""
    return short_text(graph_text(program.graph, program.labels))


def short_text(text: str) -> str:
    """A dump without its input lines; weights go by their own names and other inputs by x, x1, ..."""
    names: dict[str, str] = {}
    lines, inputs = [], 0
    for line in text.splitlines():
        found = re.fullmatch(r"%(\w+) (?:: .*)?= (input|weight '(.*)')", line)
        if not found:
            lines.append(line)
        elif found[3]:
            names[found[1]] = found[3]
        else:
            names[found[1]] = f"x{inputs or ''}"
            inputs += 1
    renamed = re.sub(r"%(\w+)", lambda match: f"%{names.get(match[1], match[1])}", "\n".join(lines))
    return "\n".join(line for line in renamed.splitlines() if " = int8 " not in line) + "\n"
