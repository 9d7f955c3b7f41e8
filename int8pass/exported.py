"""torch.export's programs: into a `Program`, and back with the int8 weights as buffers."""

import copy

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from int8pass.capture import copy_graph
from int8pass.config import Int8MixedConfig
from int8pass.program import ModuleTensor, Program

_WEIGHT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER)


def program_from_exported(exported: ExportedProgram, config: Int8MixedConfig) -> Program:
    """Wrap a copy of an exported graph; its parameters and buffers are the weights. Grad mode counts as off."""
    return Program(copy_graph(exported.graph_module), _weights(exported), config)


def _weights(exported: ExportedProgram) -> dict[str, ModuleTensor]:
    found = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind in _WEIGHT_KINDS:
            tensor = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
            found[spec.arg.name] = ModuleTensor(spec.target, tensor)
    return found


def exported_from_program(program: Program, original: ExportedProgram) -> ExportedProgram:
    """A new ExportedProgram of the rewritten graph. Weights that nothing reads any more are left out of it."""
    state, constants = dict(original.state_dict), dict(original.constants)
    specs = {spec.arg.name: spec for spec in original.graph_signature.input_specs}
    rewritten = program.rewritten_tensors
    for node in program.unread_weights():
        if id(program.tensors[node.name].tensor) in rewritten:
            program.remove_input(node)
            target = specs.pop(node.name).target
            state.pop(target, None)
            constants.pop(target, None)
    _move_added_inputs(program, specs)
    for name in program.weight_inputs:
        specs[name], tensor = _buffer(program, name, state)
        state[specs[name].target] = tensor
    for name, tensor in program.constants.items():
        specs[name] = InputSpec(InputKind.BUFFER, TensorArgument(name), name, persistent=True)
        state[name] = tensor
    inputs = [specs[node.name] for node in program.graph.find_nodes(op="placeholder")]
    signature = ExportGraphSignature(inputs, _output_specs(program.graph, original))
    program.graph_module.recompile()
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=signature,
        state_dict=state,
        range_constraints=original.range_constraints,
        module_call_graph=original.module_call_graph,
        example_inputs=original.example_inputs,
        constants=constants,
        verifiers=[original.verifier],
    )


def _move_added_inputs(program: Program, specs: dict[str, InputSpec]) -> None:
    """Weights come before constants and user inputs in an exported graph."""
    placeholders = program.graph.find_nodes(op="placeholder")
    anchor = next((node for node in placeholders if node.name in specs and not _is_weight(specs[node.name])), None)
    for node in placeholders:
        if anchor is not None and (node.name in program.weight_inputs or node.name in program.constants):
            anchor.prepend(node)


def _is_weight(spec: InputSpec) -> bool:
    return spec.kind in _WEIGHT_KINDS


def _buffer(program: Program, name: str, state: dict[str, torch.Tensor]) -> tuple[InputSpec, torch.Tensor]:
    wanted = program.weight_inputs[name]
    target = f"{program.tensors[wanted.expression.root].name}_{wanted.field}"
    views = sum(taken.startswith(target) for taken in state)
    target = f"{target}_{views}" if views else target
    tensor = getattr(program.quantized(wanted.expression), wanted.field)
    return InputSpec(InputKind.BUFFER, TensorArgument(name), target, persistent=True), tensor


def _output_specs(graph: fx.Graph, original: ExportedProgram) -> list:
    """The original outputs, under the names that their nodes have now."""
    results = graph.find_nodes(op="output")[0].args[0]
    specs = [copy.copy(spec) for spec in original.graph_signature.output_specs]
    for spec, result in zip(specs, results, strict=True):
        if isinstance(result, fx.Node):
            spec.arg = type(spec.arg)(result.name)
    return specs
