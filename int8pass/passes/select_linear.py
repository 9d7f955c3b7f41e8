"""Decide which canonical Linears are rewritten; each refusal is recorded with its reason.

before and after: the same graph; program.linears holds only what will be rewritten.
"""

import fnmatch
import re

import torch
from torch import fx, nn

from int8pass.config import Int8MixedConfig
from int8pass.freed_parameter import is_freed
from int8pass.graph import is_mutation, is_tensor, node_argument, operation, value_of
from int8pass.program import ModuleTensor, Program
from int8pass.quantization.absmax import INT8_MAX
from int8pass.quantization.scheme import Scheme
from int8pass.torch_private import storage_id, tree_leaves
from int8pass.weight_expression import WeightExpression

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
DEFAULT_SKIPS = ("lm_head", "*.lm_head")
# beyond this many products of two codes an int32 sum could overflow
LARGEST_K = torch.iinfo(torch.int32).max // INT8_MAX**2


def select_linear(program: Program) -> int:
    """Remove from program.linears what is skipped. Returns how many are left."""
    grad_modes = _grad_modes(program)
    written = _storages_written(program)
    tied = program.embeddings | _embeddings_in(program)
    for node, expression in list(program.linears.items()):
        source = program.tensors[expression.root]
        reason = (
            kind_refusal(source)
            or name_refusal(program.config, source, tied)
            or _skip_by_dtype_and_shape(node, program.config.scheme)
            or _skip_by_gradient(source, grad_modes[node])
            or ("the weight is written to in the graph" if storage_id(source.tensor) in written else "")
            or _skip_by_time(program, node, expression)
        )
        if reason:
            program.skip(node, reason, expression)
            del program.linears[node]
    return len(program.linears)


def kind_refusal(source: ModuleTensor) -> str:
    """Why a weight cannot be quantized for what kind of tensor it is; "" if it can."""
    kind = type(source.tensor)
    if kind not in (torch.Tensor, nn.Parameter, nn.Buffer) and not is_freed(source.tensor):
        return f"already quantized, or a tensor subclass of its own ({kind.__name__})"
    if not source.tensor.dtype.is_floating_point:
        return f"already quantized ({str(source.tensor.dtype).removeprefix('torch.')} weight)"
    if source.tensor.is_sparse or source.tensor.is_mkldnn or source.tensor.is_meta:
        return f"the weight's storage is {source.tensor.layout}, on {source.tensor.device}"
    return ""


def name_refusal(config: Int8MixedConfig, source: ModuleTensor, tied: frozenset[int]) -> str:
    """Why a weight is skipped by its name, or as an embedding table at one of the addresses `tied`; "" if it is not."""
    for pattern in config.skip_modules:
        if matches(pattern, source.name):
            return f"named in skip_modules ({pattern!r})"
    if config.skip_modules_default:
        if any(matches(pattern, source.name) for pattern in DEFAULT_SKIPS):
            return "lm_head (skip_modules_default)"
        if _address(source) in tied:
            return "tied to an embedding (skip_modules_default)"
    return ""


def matches(pattern: str, name: str) -> bool:
    """Whether a skip pattern covers a dotted name: the name itself or one above it, a `*` glob, or `re:...`."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    if "*" in pattern:
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
    return name == pattern or name.startswith(f"{pattern}.")


def _address(source: ModuleTensor) -> int:
    return 0 if is_freed(source.tensor) or source.tensor.is_meta else source.tensor.data_ptr()


def _embeddings_in(program: Program) -> frozenset[int]:
    """Data pointers of the tables that the graph looks tokens up in."""
    found = set()
    for node in program.graph.nodes:
        if operation(node) in ("embedding", "embedding_bag"):
            for table in node.all_input_nodes:
                if table.name in program.tensors and value_of(table).dim() == 2:
                    found.add(_address(program.tensors[table.name]))
    return frozenset(found - {0})


def _skip_by_dtype_and_shape(node: fx.Node, scheme: Scheme) -> str:
    x, weight, output = value_of(node.args[0]), value_of(node.args[1]), value_of(node)
    for role, tensor in (("input", x), ("weight", weight), ("output", output)):
        if tensor.dtype not in DTYPES:
            return f"the {role} is {str(tensor.dtype).removeprefix('torch.')}, not float16, bfloat16 or float32"
    if 0 in weight.shape:
        return "the weight is empty"
    largest = LARGEST_K * INT8_MAX // scheme.activations.largest_difference
    if weight.shape[1] > largest:
        return f"K = {weight.shape[1]} is too large for an int32 sum (at most {largest})"
    return ""


def _skip_by_gradient(source: ModuleTensor, grad_enabled: bool) -> str:
    return GRADIENT_REASON if grad_enabled and source.tensor.requires_grad else ""


def _skip_by_time(program: Program, node: fx.Node, expression: WeightExpression) -> str:
    if program.config.break_even == "off" or is_freed(program.tensors[expression.root].tensor):
        return ""
    from int8pass.break_even.refusal import slower_in_int8  # it runs lowerings, which import the pipeline

    return slower_in_int8(program, node, expression)


GRADIENT_REASON = "the weight needs a gradient and grad mode is on"


def _storages_written(program: Program) -> frozenset[int]:
    """Addresses of the weights' memory that the graph writes to, through whichever view or alias."""
    written = set()
    for node in program.graph.nodes:
        if is_mutation(node):
            targets = tree_leaves((node_argument(node, 0, ""), node.kwargs.get("out")))
            written |= {storage_id(value_of(target)) for target in targets if is_tensor(target)}
    roots = {node.name: node for node in program.graph.nodes if node.name in program.tensors}
    changed = (program.tensors[name].tensor for name, node in roots.items() if storage_id(value_of(node)) in written)
    return frozenset(map(storage_id, changed))


def _grad_modes(program: Program) -> dict[fx.Node, bool]:
    """Grad mode at each node: Dynamo writes a change of it into the graph."""
    modes, enabled = {}, program.grad_enabled
    for node in program.graph.nodes:
        if operation(node) == "_set_grad_enabled":
            enabled = bool(node.args[0])
        modes[node] = enabled
    return modes
