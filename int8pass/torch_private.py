"""Every private name of PyTorch that int8pass relies on, each with its reason.

tests/test_torch_private.py fails when one of them changes.
"""

import ast
import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import fx, nn

# What an fx node may call: an op, an op before overload resolution, a region (cond, checkpoint). Public through
# torch.ops only as instances, not as the classes that isinstance needs.
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

# PyTorch's own pytree: the one whose flattening order torch.export's inputs have.
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

__all__ = ["HigherOrderOperator", "OpOverload", "OpOverloadPacket", "tree_flatten", "tree_leaves", "tree_unflatten"]

# Where Python finds the builtins that Dynamo writes into graphs, such as `linear`.
BUILTIN_FUNCTIONS = torch._C._nn

# Runs a function on a tensor subclass as if it were a plain tensor; what Tensor.__torch_function__ itself uses.
as_plain_tensors = torch._C.DisableTorchFunctionSubclass


def qualified_name(target: OpOverload | OpOverloadPacket) -> str:
    """ "aten::linear". Why private: the schema of an op is its only full name, and says whether it writes."""
    return target._schema.name if isinstance(target, OpOverload) else target._qualified_op_name


def is_mutable(target: OpOverload | OpOverloadPacket) -> bool:
    """Whether an op's schema says that it writes to an argument; of a packet, whether any overload's does."""
    if isinstance(target, OpOverload):
        return target._schema.is_mutable
    return any(getattr(target, name)._schema.is_mutable for name in target.overloads())


@functools.cache
def shape_function(target: Callable) -> Callable | None:
    """The fake implementation of a custom op; None where it has none in Python.

    Why private: an op called on fake tensors runs it too, after a dispatch that takes three times as long.
    """
    if not isinstance(target, OpOverload):
        return None
    registered = torch._library.simple_registry.singleton.find(qualified_name(target)).fake_impl.kernel
    return None if registered is None else registered.func


def storage_id(tensor: torch.Tensor) -> int:
    """What tells two tensors' storages apart. Why private: fake tensors have no address, and addresses are reused."""
    return tensor.untyped_storage()._cdata


def int8_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """int8[M, K] @ int8[K, N] in int32. Why private: PyTorch has no public integer matrix product on the CPU."""
    return torch._int_mm(x, weight)


def has_int8_instructions() -> bool:
    """Whether this CPU has VNNI. Why private: without it PyTorch's integer product is a plain loop, 40 times slower
    than float32, or one whose sums saturate, and nothing public tells."""
    return torch.cpu._is_vnni_supported()


def inductor_mode_options(mode: str) -> dict:
    """Inductor's options for a mode. Why private: torch.compile applies them only to its own "inductor" backend."""
    return torch._inductor.list_mode_options(mode)


def source_name(placeholder: fx.Node) -> str:
    """How Dynamo reached a graph input: "L['self']._modules['fc']._parameters['weight']"; "" if not from Dynamo.

    Why private: `node._dynamo_source` is the only link from a Dynamo input to the attribute behind it.
    """
    source = getattr(placeholder, "_dynamo_source", None)
    name = getattr(source, "name", "")
    return name() if callable(name) else name


def module_attribute(source: str) -> str:
    """The dotted parameter or buffer name in a source name; "" where it is not a module's parameter or buffer.

    Why private: Dynamo spells module attributes as lookups in `_modules`, `_parameters` and `_buffers`.
    """
    if not re.search(r"\._(parameters|buffers)\['[^']*'\]$", source):
        return ""
    return ".".join(re.findall(r"\._(?:modules|parameters|buffers)\['([^']*)'\]", source))


def lazy_graph_module(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A GraphModule that generates its code when it is first run, if made while Dynamo compiles.

    Why private: the public class generates code at each `recompile`, of which a compilation has several.
    """
    return torch.fx._lazy_graph_module._make_graph_module(root, graph)


def mark_added_input(placeholder: fx.Node) -> None:
    """Make a graph input that Dynamo did not create acceptable to AOTAutograd, as one whose address does not change.

    Why private: AOTAutograd reads `_dynamo_source` of every input of a Dynamo graph (None is allowed), and takes an
    input as static, which CUDA graphs need for weights, by the mark in `tensor_dict`.
    """
    placeholder._dynamo_source = None
    placeholder.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}


def compiled_module() -> nn.Module | None:
    """The module whose compilation is under way, found on the call stack; None for a compiled plain function.

    Why private: Dynamo does not tell a backend what was compiled, and after a graph break the names it gives are
    relative to an inner module. `OptimizedModule._orig_mod` and `Module._compiled_call_impl` mark the compiled one.
    """
    for owner in _callers():
        if isinstance(owner, torch._dynamo.eval_frame.OptimizedModule):
            return owner._orig_mod
        if isinstance(owner, nn.Module) and owner._compiled_call_impl is not None:
            return owner
    return None


class CompiledFrame(NamedTuple):
    """The code under compilation. number: Dynamo's, the same for all graphs of it; earlier: how many there are."""

    number: int
    earlier: int


def compiled_frame() -> CompiledFrame | None:
    """What Dynamo compiles now; None outside of it.

    Why private: Dynamo numbers compilations by frame, and tells a backend only through the compile context.
    """
    compile_id = torch._guards.CompileContext.current_compile_id()
    if compile_id is None or compile_id.frame_id is None:
        return None
    return CompiledFrame(compile_id.frame_id, compile_id.frame_compile_id)


def is_tracing() -> bool:
    """Whether Dynamo is tracing. Why private: torch.compiler.is_compiling is True only in the code that is traced."""
    return torch._guards.TracingContext.try_get() is not None


def size_hint(size: int | torch.SymInt) -> int | None:
    """The value that a dynamic size has in the call that is compiled for; None where it depends on data.

    Why private: `int(size)` would make the graph one for this size alone.
    """
    return size.node.hint if isinstance(size, torch.SymInt) else size


def fake_tensor_mode() -> torch._subclasses.FakeTensorMode:
    """A mode of fake tensors of its own. Why private: graphs that no front end captured have no public way to one."""
    return torch._subclasses.FakeTensorMode()


def without_fake_tensors() -> contextlib.AbstractContextManager:
    """A block in which real tensors stay real. Why private: torch-tensorrt runs its passes under a fake tensor mode."""
    return torch.fx.experimental.proxy_tensor.unset_fake_temporarily()


def outside_of_tracing() -> contextlib.AbstractContextManager:
    """A block whose compilations do not see the one that is under way.

    Why private: AOTAutograd looks for a tracing context, and would take fake tensors and inputs of that one.
    """
    return torch._guards.tracing(None)


def _callers() -> Iterator[object]:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            yield frame.f_locals.get("self")
        frame = frame.f_back


def cxx_compiler_error() -> str:
    """Why Inductor finds no C++ compiler; "" if it finds one.

    Why private: Inductor's own search decides what it will use, and fails late and deep inside a compilation.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        return str(error)
    return ""


def cxx_compiler() -> str:
    """The C++ compiler that Inductor uses. Why private: as above; to be called once that search has succeeded."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    return get_cpp_compiler()


def inductor_compile(graph_module: fx.GraphModule, example_inputs: list, patches: dict):
    """Compile a graph with Inductor, under its options `patches`.

    Why private: `torch._inductor.compile` takes no fake inputs for the tensors that the pass added.
    """
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph_module, example_inputs, config_patches=patches)


@contextlib.contextmanager
def compiled_apart(model: Callable, backend: Callable, dynamic: bool | None = None) -> Iterator[Callable]:
    """A compiled model that does not count against the recompile limit of its other compilations.

    Why private: up to PyTorch 2.12 nothing public raises the limit for one call; `reset` then drops what was compiled.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        yield torch.compile(model, backend=backend, dynamic=dynamic, isolate_recompiles=True)
        return
    with torch._dynamo.config.patch(recompile_limit=sys.maxsize, accumulated_recompile_limit=sys.maxsize):
        yield torch.compile(model, backend=backend, dynamic=dynamic)
    torch.compiler.reset()


@contextlib.contextmanager
def unwrapped(kind: type[Exception]) -> Iterator[None]:
    """Raise what a backend raised, where it is of this kind.

    Why private: Dynamo raises an exception of its own in its place, and only that class tells what the backend's was.
    """
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if isinstance(error.inner_exception, kind):
            raise error.inner_exception from None
        raise


# What torch.export calls the module of a node that it added outside of any. Why private: it stands among real names.
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def onnx_module_path(metadata: Mapping[str, str]) -> str | None:
    """The dotted name of the module that a node of torch.onnx.export comes from; None where it does not say.

    Why private: torch.onnx documents no key of its nodes' metadata, and no other way from a node to its module.
    """
    scopes = ast.literal_eval(metadata.get("pkg.torch.onnx.name_scopes", "[]"))  # the root, modules, and the node
    if not scopes:
        return None
    return scopes[-2] if len(scopes) > 1 and scopes[-2] != NO_MODULE else ""


def onnx_operation(metadata: Mapping[str, str], namespace: str) -> str:
    """The op of a namespace that a node of torch.onnx.export was written for; "" where it was another's.

    Why private: torch.onnx documents no key of its nodes' metadata, and no other way from a node to its op.
    """
    found = re.search(rf"target=torch\.ops\.{namespace}\.(\w+)\.", metadata.get("pkg.torch.onnx.fx_node", ""))
    return found[1] if found else ""
