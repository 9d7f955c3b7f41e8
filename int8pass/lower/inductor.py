"""Inductor: a Linear becomes calls of fused kernels, on the CPU or on CUDA; other ops are opened for Inductor to fuse.

before:
    %scale : f32[4] = int8pass.scale_per_token(%x, %mask)
after:
    %abs_1 = abs(%to)
    ...
    %amax = amax(%masked_fill, -1)
"""

import os
from collections.abc import Callable

import torch
from torch import fx

from int8pass import torch_private
from int8pass.config import Int8MixedConfig
from int8pass.errors import CompilerNotFoundError
from int8pass.graph import keep_provenance, value_of
from int8pass.lower.fuse_cpu_linear import fuse_cpu_linear
from int8pass.lower.fuse_cuda_linear import fuse_cuda_linear
from int8pass.lower.fuse_cuda_norm import fuse_cuda_norm
from int8pass.ops import DECOMPOSITIONS
from int8pass.pipeline import Pass
from int8pass.program import Program


def lower(program: Program, example_inputs: list) -> Callable:
    """Compile with Inductor. Returns a callable over the graph's flat inputs.

    Raises CompilerNotFoundError where Inductor would find no C++ compiler for CPU code.
    """
    _require_compiler(example_inputs)
    return torch_private.inductor_compile(program.graph_module, example_inputs, inductor_options(program.config))


def inductor_options(config: Int8MixedConfig) -> dict:
    """Inductor's options as torch.compile would set them for a mode, with `inductor` on top.

    Without the checks of sizes and strides at every call: Dynamo's guards have checked the inputs, and an input that is
    added for each part of an int8 weight would make them many (4 of 35 µs for a 768x768 Linear and one token).
    """
    checks = {"size_asserts": bool(os.environ.get("INT8PASS_VERIFY"))}
    mode = {} if config.mode in (None, "default") else torch_private.inductor_mode_options(config.mode)
    return {**checks, **mode, **config.inductor}


def decompose_ops(program: Program) -> int:
    """Replace each op that has a decomposition by plain operations. Returns how many there were."""
    graph = program.graph
    found = [node for node in graph.nodes if node.target in DECOMPOSITIONS]
    tracer = fx.proxy.GraphAppendingTracer(graph)
    for node in found:
        with graph.inserting_before(node):
            before = node.prev
            result = DECOMPOSITIONS[node.target](*fx.node.map_arg(node.args, lambda arg: fx.Proxy(arg, tracer)))
        created = before.next
        while created is not node:
            keep_provenance(created, node)
            created = created.next
        result.node.meta["val"] = value_of(node)
        node.replace_all_uses_with(result.node)
        graph.erase_node(node)
    return len(found)


# Fuse what the kernels of the device take, and open the rest for Inductor to fuse.
PASSES: tuple[Pass, ...] = (
    Pass("fuse_cpu_linear", fuse_cpu_linear),
    Pass("fuse_cuda_linear", fuse_cuda_linear),
    Pass("fuse_cuda_norm", fuse_cuda_norm),
    Pass("decompose_ops", decompose_ops),
)


def _require_compiler(example_inputs: list) -> None:
    on_cpu = any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in example_inputs)
    if on_cpu and (reason := torch_private.cxx_compiler_error()):
        raise CompilerNotFoundError(
            f"Inductor needs a C++ compiler for CPU code ({reason.strip()}). Install g++ (Debian and Ubuntu: "
            "`apt-get install g++`), or pass options={'lowering': 'eager'} to run without one."
        )
