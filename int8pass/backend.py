"""The torch.compile backend: capture, passes, lowering, and the call that feeds the int8 weights in."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from int8pass import pipeline
from int8pass.binding import InputBinding
from int8pass.capture import ModuleNames, program_from_dynamo
from int8pass.config import Int8MixedConfig
from int8pass.decision_guard import DecisionGuard
from int8pass.freed_parameter import is_freed
from int8pass.inspection.dump import Dump
from int8pass.notices import warn_where_nothing_happened
from int8pass.program import Program
from int8pass.torch_private import compiled_frame, compiled_module


def int8mixed(
    graph_module: fx.GraphModule,
    example_inputs: list,
    *,
    options: Mapping[str, Any] | Int8MixedConfig | None = None,
    mode: str | None = None,
) -> Callable:
    """The backend behind `torch.compile(model, backend="int8mixed", options={...})`.

    graph_module: a Dynamo graph; example_inputs: its real inputs. options: see Int8MixedConfig; mode: Inductor's.
    Returns a callable over the same inputs. Raises ConfigError, FreedWeightError, CompilerNotFoundError.
    """
    config = Int8MixedConfig.from_options(options, mode=mode)
    names = ModuleNames(compiled_module())
    program = program_from_dynamo(graph_module, example_inputs, config, names)
    program.frees_at_calls = _frees_at_calls(config)
    run = _compile(program, example_inputs, config.lowering)
    _remember_what_was_freed(program)
    weights = {program.input_names.index(name): program.tensors[name] for name in program.linear_inputs}
    compile_eager = functools.partial(_compile, lowering_name="eager")
    return DecisionGuard(graph_module, config, weights, names, run, compile_eager)


_FRAMES_THAT_FREED: set[int] = set()


def _frees_at_calls(config: Int8MixedConfig) -> bool:
    """Whether the code that Dynamo compiles was compiled before, and weights freed.

    Blocks of a model, each compiled on its own, share code but not weights. Guards must hold for fresh and for freed
    ones: the first compilation frees at once and guards on freed weights, a later one on fresh ones, freed at calls.
    """
    frame = compiled_frame()
    if frame is not None and not frame.earlier:
        _FRAMES_THAT_FREED.discard(frame.number)  # numbers begin anew after torch._dynamo.reset()
    return config.free_weights and frame is not None and frame.number in _FRAMES_THAT_FREED


def _remember_what_was_freed(program: Program) -> None:
    frame = compiled_frame()
    if frame is not None and any(is_freed(source.tensor) for source in program.tensors.values()):
        _FRAMES_THAT_FREED.add(frame.number)


def _compile(program: Program, example_inputs: list, lowering_name: str) -> Callable:
    tap = Dump.for_config(program.config.dump_dir)
    pipeline.run(program, tap)
    warn_where_nothing_happened(program)
    lowering = importlib.import_module(f"int8pass.lower.{lowering_name}")
    pipeline.run(program, tap, lowering.PASSES)
    inputs = InputBinding(program)
    run = lowering.lower(program, inputs.example_inputs(example_inputs))
    return lambda *args: run(*inputs(args))
