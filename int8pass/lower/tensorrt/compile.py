"""Two ways to an engine: the lowering of torch.compile, and a converted program that can be saved."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from int8pass import ops
from int8pass.errors import EngineError, Int8PassError
from int8pass.graph import namespace
from int8pass.lower.tensorrt.freeze_weights import freeze_weights
from int8pass.lower.tensorrt.linear_form import building, linear_form
from int8pass.lower.tensorrt.package import import_torch_tensorrt, settings
from int8pass.program import Program


def lower(program: Program, example_inputs: list) -> Callable:
    """Build engines with torch-tensorrt. Returns a callable over the graph's flat inputs, CUDA tensors.

    Raises MissingDependencyError, EngineError (no GPU, a failed build, weights that have changed since), ConfigError.
    """
    import_torch_tensorrt()
    from torch_tensorrt.dynamo.backend import torch_tensorrt_backend

    options = settings(program.config.tensorrt)
    frozen = freeze_weights(program)
    inputs = [example_inputs[position] for position in frozen.users]
    _require_cuda(inputs)
    form = linear_form(program.config.tensorrt)
    run = _built(form, lambda: torch_tensorrt_backend(frozen.graph_module, inputs, options=options))
    return lambda *args: run(*frozen.user_inputs(args))


def compile_program(
    program: ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    tensorrt: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """Compile what `int8pass.convert` made of a torch.export program; `torch_tensorrt.save` takes the result.

    args, kwargs: CUDA tensors, or torch_tensorrt.Inputs, whose shapes may be ranges. tensorrt: as the option of that
    name. Raises MissingDependencyError, EngineError, ConfigError. Not yet run on a GPU.
    """
    torch_tensorrt = import_torch_tensorrt()
    options = settings(tensorrt or {})
    given = dict(kwargs or {})
    _require_cuda([*args, *given.values()])
    compiler = torch_tensorrt.dynamo.compile
    form = linear_form(tensorrt or {})
    return _built(form, lambda: compiler(program, arg_inputs=tuple(args), kwarg_inputs=given, **options))


def _built(form: str, build: Callable[[], fx.GraphModule]) -> fx.GraphModule:
    """What torch-tensorrt builds. Raises EngineError where it fails, or leaves an int8 Linear out of the engines."""
    try:
        with building(form):
            module = build()
    except Int8PassError:
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # what failed conversions and builds raise
        raise EngineError(f"torch-tensorrt could not build an engine: {error}") from error
    left = int8pass_ops_left(module)
    if left:
        raise EngineError(f"torch-tensorrt left operations of int8 Linears out of its engines: {', '.join(left)}")
    return module


def int8pass_ops_left(module: torch.nn.Module) -> list[str]:
    """Names of the nodes that still call ops of int8pass, in the graphs of a compiled module."""
    graphs = (child.graph for child in module.modules() if isinstance(child, fx.GraphModule))
    return [node.name for graph in graphs for node in graph.nodes if namespace(node) == ops.NAMESPACE]


def _require_cuda(inputs: Sequence[Any]) -> None:
    for value in inputs:
        if isinstance(value, torch.Tensor) and value.device.type != "cuda":
            raise EngineError(
                f"lowering='tensorrt' runs on CUDA tensors, and an input is on {value.device}: move model and inputs "
                "with .cuda()"
            )
