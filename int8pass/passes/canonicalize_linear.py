"""Every spelling of a Linear whose weight is a parameter becomes `aten.linear(x, w, bias)` with w [N, K].

before:
    %y : f32[4, 32] = addmm(%bias, %x, %w)                 # w [K, N]
after:
    %t : f32[32, 16] = aten.t(%w)
    %linear : f32[4, 32] = aten.linear(%x, %t, %bias)
"""

from collections.abc import Callable

import torch
from torch import fx

from int8pass.graph import (
    in_dtype_of,
    insert,
    insert_linear,
    is_canonical_linear,
    is_mutation,
    is_tensor,
    is_torch_call,
    keep_provenance,
    namespace,
    node_argument,
    operation,
    replace,
    subgraphs,
    value_of,
)
from int8pass.passes.einsum_to_linear import einsum_to_linear
from int8pass.passes.select_linear import kind_refusal
from int8pass.program import Program, Skip

aten = torch.ops.aten

_QUANTIZED_LIBRARIES = ("bitsandbytes", "torchao", "quantized", "onednn", "mkldnn", "fbgemm")


def canonicalize_linear(program: Program) -> int:
    """Collect every Linear into program.linears; record what looks like one and is not. Returns how many there are."""
    for node in list(program.graph.nodes):
        rewrite = _REWRITES.get(operation(node))
        if _is_quantized_linear(node):
            program.skip(node, f"already quantized by {namespace(node)}")
        elif "grouped_mm" in operation(node):  # torch's own, and transformers' fallback for it
            _canonicalize(program, node, _stacked)
        elif _is_pointwise_convolution(node):
            _canonicalize(program, node, lambda _, found: Skip(found, "a convolution of width 1"))
        elif rewrite is not None and is_torch_call(node) and is_tensor(node):
            _canonicalize(program, node, rewrite)
    for name, child in subgraphs(program.graph_module):
        for node in child.graph.nodes:
            if operation(node) in _REWRITES and is_torch_call(node):
                program.skip(node, f"inside the higher-order region {name}")
    return len(program.linears)


def _canonicalize(program: Program, node: fx.Node, rewrite: Callable) -> None:
    result = Skip(node, "writes to out=") if "out" in node.kwargs else rewrite(program, node)
    if isinstance(result, Skip):
        operands = [program.expression(operand) for operand in node.all_input_nodes]
        program.skip(node, result.reason, next((found for found in operands if found), None))
    else:
        program.linears[result] = program.expression(result.args[1])


def _is_quantized_linear(node: fx.Node) -> bool:
    return namespace(node) in _QUANTIZED_LIBRARIES and any(
        word in operation(node) for word in ("linear", "mm", "matmul", "gemm")
    )


def _is_pointwise_convolution(node: fx.Node) -> bool:
    if operation(node) != "conv1d" or not is_torch_call(node):
        return False
    weight = value_of(node_argument(node, 1, "weight"))
    return weight is not None and weight.shape[-1] == 1


def _linear(program: Program, node: fx.Node) -> fx.Node | Skip:
    x, weight = node_argument(node, 0, "input"), node_argument(node, 1, "weight")
    if (refusal := _refuse_weight(program, node, weight)) is not None:
        return refusal
    bias = node_argument(node, 2, "bias")
    if bias is not None and not _fits(bias, value_of(weight).shape[0]):
        return _with_addition(node, insert_linear(node, x, weight, None), bias)
    if is_canonical_linear(node):
        return node
    return _finish(node, insert_linear(node, x, weight, bias))


def _inner(program: Program, node: fx.Node) -> fx.Node | Skip:
    x, weight = node_argument(node, 0, "input"), node_argument(node, 1, "other")
    return _refuse_weight(program, node, weight) or _finish(node, insert_linear(node, x, weight, None))


def _fits(bias: fx.Node, outputs: int) -> bool:
    """Whether a bias is [N]: a broadcast one is added after the Linear."""
    return value_of(bias).dim() == 1 and value_of(bias).shape[0] == outputs


def _with_addition(node: fx.Node, linear: fx.Node, bias: fx.Node) -> fx.Node:
    replace(node, in_dtype_of(node, insert(node, aten.add.Tensor, linear, bias)))
    return linear


def _matmul(program: Program, node: fx.Node) -> fx.Node | Skip:
    left, right = node_argument(node, 0, "input"), node_argument(node, 1, "other") or node.kwargs.get("mat2")
    if program.expression(right) is None and program.expression(left) is not None:
        return _weight_on_the_left(program, node, left, right)
    if (refusal := _refuse_weight(program, node, right)) is not None:
        return refusal
    linear = insert_linear(node, left, insert(node, aten.t.default, right), None)
    return _absorb_bias(_finish(node, linear))


def _weight_on_the_left(program: Program, node: fx.Node, weight: fx.Node, x: fx.Node) -> fx.Node | Skip:
    if (refusal := _refuse_weight(program, node, weight)) is not None:
        return refusal
    if value_of(x).dim() == 1:
        return _finish(node, insert_linear(node, x, weight, None))
    linear = insert_linear(node, insert(node, aten.transpose.int, x, -2, -1), weight, None)
    replace(node, insert(node, aten.transpose.int, linear, -2, -1))
    return linear


def _addmm(program: Program, node: fx.Node) -> fx.Node | Skip:
    bias, x, weight = (node_argument(node, i, name) for i, name in enumerate(("input", "mat1", "mat2")))
    if (refusal := _refuse_weight(program, node, weight)) is not None:
        return refusal
    if node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1:
        return Skip(node, "addmm with alpha or beta other than 1")
    transposed = insert(node, aten.t.default, weight)
    if _fits(bias, value_of(transposed).shape[0]):
        return _finish(node, insert_linear(node, x, transposed, bias))
    return _with_addition(node, insert_linear(node, x, transposed, None), bias)


def _einsum(program: Program, node: fx.Node) -> fx.Node | Skip:
    result = einsum_to_linear(program, node)
    if isinstance(result, Skip):
        return result
    linear, output = result
    replace(node, output)
    return linear


def _stacked(program: Program, node: fx.Node) -> Skip:
    if any(program.expression(operand) for operand in node.all_input_nodes):
        return Skip(node, "stacked weights (one matrix a batch entry or expert)")
    return Skip(node, "activation x activation, no weight")


_REWRITES: dict[str, Callable] = {
    "linear": _linear,
    "inner": _inner,
    "tensordot": lambda program, node: Skip(node, "tensordot is not matched: write it as matmul"),
    "matmul": _matmul,
    "__matmul__": _matmul,
    "__rmatmul__": lambda program, node: Skip(node, "reflected matmul"),
    "imatmul": _matmul,  # `x @= w` binds x anew: tensors have no in-place matmul
    "mm": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
    "bmm": _stacked,
    "baddbmm": _stacked,
}


def _refuse_weight(program: Program, node: fx.Node, weight: fx.Node) -> Skip | None:
    expression = program.expression(weight)
    if expression is None:
        return Skip(node, _why_no_weight(program, weight))
    if reason := kind_refusal(program.tensors[expression.root]):  # a subclass may override this very spelling
        return Skip(node, reason)
    rank = value_of(weight).dim()
    if rank == 1:
        return Skip(node, "the weight is a vector, not a matrix")
    if rank > 2:
        return Skip(node, "stacked weights (one matrix a batch entry or expert)")
    return None


def _why_no_weight(program: Program, weight: fx.Node) -> str:
    if not isinstance(weight, fx.Node):
        return "the weight is not a tensor of the graph"
    if weight.op in ("placeholder", "get_attr"):
        return "the weight is an input, not a parameter or buffer"
    roots = set(program.tensors)
    ancestors, queue = set(), [weight]
    while queue:
        node = queue.pop()
        for producer in node.all_input_nodes:
            if producer not in ancestors:
                ancestors.add(producer)
                queue.append(producer)
    inputs = {node for node in ancestors if node.op in ("placeholder", "get_attr") and is_tensor(node)}
    if inputs and all(node.name in roots for node in inputs):
        return "the weight is computed in the graph"
    return "activation x activation, no weight"


def _finish(node: fx.Node, linear: fx.Node) -> fx.Node:
    replace(node, linear)
    return linear


_ADDITIONS = frozenset({"add", "__add__", "__radd__", "iadd", "add_"})


def _absorb_bias(linear: fx.Node) -> fx.Node:
    """Fold a following `+ bias`, bias [N], into the Linear, so that it is added before the one rounding."""
    users = list(linear.users)
    if len(users) != 1 or operation(users[0]) not in _ADDITIONS or len(users[0].args) != 2 or users[0].kwargs:
        return linear
    (addition,) = users
    bias = addition.args[1] if addition.args[0] is linear else addition.args[0]
    if not _is_bias(bias, linear) or (is_mutation(addition) and addition.args[0] is not linear):
        return linear
    if _differs_between(linear, addition):
        return linear
    with_bias = insert_linear(addition, *linear.args[:2], bias)
    keep_provenance(with_bias, linear)
    replace(addition, with_bias)
    return with_bias


_MODE_CHANGES = frozenset({"_set_grad_enabled", "_enter_autocast", "_exit_autocast"})


def _differs_between(first: fx.Node, last: fx.Node) -> bool:
    """Whether a write, or a change of grad mode or autocast, separates two nodes."""
    node = first.next
    while node is not last and not is_mutation(node) and operation(node) not in _MODE_CHANGES:
        node = node.next
    return node is not last


def _is_bias(bias: object, linear: fx.Node) -> bool:
    if bias is linear or not is_tensor(bias) or bias.op not in ("placeholder", "get_attr"):
        return False
    return _fits(bias, value_of(linear).shape[-1]) and value_of(bias).dtype == value_of(linear).dtype
