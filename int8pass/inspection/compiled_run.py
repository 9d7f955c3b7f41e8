"""A model compiled with the pass's options and run once, with what each of its rewritten Linears returned."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from int8pass import ops, pipeline, torch_private
from int8pass.binding import InputBinding
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.errors import Int8PassError
from int8pass.program import Program, WeightInput

_RESULTS = (ops.dequantize, ops.dequantize_asymmetric)


def run_compiled(
    model_or_program: nn.Module | ExportedProgram,
    args: tuple | None,
    kwargs: Mapping[str, Any] | None,
    config: Int8MixedConfig,
) -> tuple[Any, list[tuple[str, Tensor]]]:
    """What the compiled model returns, and for each rewritten Linear its module and output, in the order of the run.

    config: without free_weights, since the model stays as it is. The graph that is compiled has these outputs beside
    its own, and is otherwise that of the backend. Raises CompilerNotFoundError.
    """
    model = model_or_program.module() if isinstance(model_or_program, ExportedProgram) else model_or_program
    if isinstance(model_or_program, ExportedProgram) and args is None and kwargs is None:
        args, kwargs = model_or_program.example_inputs
    names, linears = ModuleNames(model if isinstance(model, nn.Module) else None), []

    def backend(graph_module: fx.GraphModule, example_inputs: list) -> Callable:
        program = program_from_dynamo(graph_module, example_inputs, config, names)
        return _compiled(program, example_inputs, linears)

    with torch.no_grad(), torch_private.compiled_apart(model, backend) as compiled:
        with torch_private.unwrapped(Int8PassError):
            return compiled(*(args or ()), **(kwargs or {})), linears


def _compiled(program: Program, example_inputs: list, linears: list[tuple[str, Tensor]]) -> Callable:
    lowering = importlib.import_module(f"int8pass.lower.{program.config.lowering}")
    pipeline.run(program)
    modules = _return_linears_too(program)
    pipeline.run(program, passes=lowering.PASSES)
    inputs = InputBinding(program)
    run = lowering.lower(program, inputs.example_inputs(example_inputs))

    def call(*args: Any) -> list:
        results = list(run(*inputs(args)))
        own = len(results) - len(modules)
        linears.extend(zip(modules, results[own:], strict=True))
        return results[:own]

    return call


def _return_linears_too(program: Program) -> list[str]:
    """Append every rewritten Linear's result to the graph's outputs. Returns their modules."""
    results = [node for node in program.graph.nodes if node.target in _RESULTS and _weight(program, node)]
    output = program.graph.output_node()
    output.args = ((*output.args[0], *results),)
    return [program.tensors[_weight(program, node).expression.root].module for node in results]


def _weight(program: Program, result: fx.Node) -> WeightInput | None:
    """The codes that a Linear's result was made with; None for an Int8Linear of the model's own."""
    _, codes = result.args[0].args
    return program.weight_inputs.get(codes.name)
