"""Attention calls that hide their Linears are opened: multi_head_attention_forward, and the encoder layer's fast path.

before:
    %y : (f32[5, 2, 8], None) = multi_head_attention_forward(%x, %x, %x, 8, 2, %in_proj_weight, ...)
after:
    %linear : f32[5, 2, 24] = aten.linear(%x, %in_proj_weight, %in_proj_bias)
    ...
    %attention : f32[2, 2, 5, 4] = aten.scaled_dot_product_attention(%q, %k, %v)
    ...
    %linear_1 : f32[10, 8] = aten.linear(%flat, %out_proj_weight, %out_proj_bias)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from int8pass.graph import fake_mode_of, in_dtype_of, is_torch_call, keep_provenance, operation, replace, value_of
from int8pass.program import Program
from int8pass.torch_private import tree_flatten, tree_unflatten


def expand_fused_attention(program: Program) -> int:
    """Replace each fused attention call by the operations it stands for. Returns how many there were."""
    found = [node for node in program.graph.nodes if operation(node) in _EXPANSIONS and is_torch_call(node)]
    for node in found:
        _expand(node, _EXPANSIONS[operation(node)])
    return len(found)


def _expand(node: fx.Node, function: Callable) -> None:
    flat, spec = tree_flatten((node.args, dict(node.kwargs)))
    leaves = node.all_input_nodes  # each once, so that self-attention keeps seeing that query is key is value

    def call(*values):
        given = dict(zip(leaves, values, strict=True))
        arguments = [given[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in flat]
        args, kwargs = tree_unflatten(arguments, spec)
        return function(*args, **kwargs)

    values = [value_of(leaf) for leaf in leaves]
    with fake_mode_of(node.all_input_nodes), torch.set_grad_enabled(_needs_gradient(values)):
        body = make_fx(call, pre_dispatch=True)(*values)
        if torch.is_grad_enabled():
            _mark_differentiable(body)
    _inline(node, body, leaves)


def _mark_differentiable(body: fx.GraphModule) -> None:
    """make_fx keeps detached values; the rewrite reads from them where a gradient has to pass."""
    for node in body.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            node.meta["val"] = value.detach().requires_grad_()


def _needs_gradient(values: list) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in values) and torch.is_grad_enabled()


def _inline(node: fx.Node, body: fx.GraphModule, leaves: list[fx.Node]) -> None:
    copies = dict(zip(body.graph.find_nodes(op="placeholder"), leaves, strict=True))
    with node.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op in ("placeholder", "output"):
                continue
            copy = copies[inner] = node.graph.node_copy(inner, copies.__getitem__)
            copy.meta = {"val": inner.meta.get("val")}
            keep_provenance(copy, node)
    result = next(iter(body.graph.find_nodes(op="output"))).args[0]
    if isinstance(result, fx.Node):
        replace(node, in_dtype_of(node, copies[result]))
    else:
        _replace_items(node, [copies[item] if isinstance(item, fx.Node) else item for item in result])


def _replace_items(node: fx.Node, items: list) -> None:
    """Let the items of a tuple result stand for the getitem nodes that read them."""
    for user in list(node.users):
        item = items[user.args[1]]
        if isinstance(item, fx.Node):
            user.replace_all_uses_with(in_dtype_of(user, item))
        else:  # None, for attention weights that were not asked for
            _replace_by_constant(user, item)
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _replace_by_constant(node: fx.Node, constant: object) -> None:
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda argument: constant if argument is node else argument)


def _encoder_layer(
    x: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    linear1_weight: Tensor,
    linear1_bias: Tensor,
    linear2_weight: Tensor,
    linear2_bias: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """torch._transformer_encoder_layer_fwd in plain operations. x: [B, S, E]."""

    def norm1(tensor: Tensor) -> Tensor:
        return F.layer_norm(tensor, (embed_dim,), norm1_weight, norm1_bias, eps)

    def norm2(tensor: Tensor) -> Tensor:
        return F.layer_norm(tensor, (embed_dim,), norm2_weight, norm2_bias, eps)

    def attention(tensor: Tensor) -> Tensor:
        weights = (qkv_weight, qkv_bias, out_weight, out_bias)
        return _self_attention(tensor, embed_dim, num_heads, *weights, mask, mask_type)

    def feed_forward(tensor: Tensor) -> Tensor:
        activation = F.gelu if use_gelu else F.relu
        return F.linear(activation(F.linear(tensor, linear1_weight, linear1_bias)), linear2_weight, linear2_bias)

    if norm_first:
        x = x + attention(norm1(x))
        return x + feed_forward(norm2(x))
    x = norm1(x + attention(x))
    return norm2(x + feed_forward(x))


def _native_multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """torch._native_multi_head_attention in plain operations. query, key, value: [B, S, E]."""
    query_first = query.transpose(0, 1)
    key_first = query_first if key is query else key.transpose(0, 1)
    value_first = key_first if value is key else value.transpose(0, 1)
    output, weights = F.multi_head_attention_forward(
        query_first, key_first, value_first,
        embed_dim, num_heads, qkv_weight, qkv_bias, None, None, False, 0.0, proj_weight, proj_bias,
        training=False, need_weights=need_weights, average_attn_weights=average_attn_weights,
        **_mask_arguments(mask, mask_type, num_heads),
    )  # fmt: skip
    return output.transpose(0, 1), weights


def _self_attention(
    x: Tensor, embed_dim: int, num_heads: int, qkv_weight: Tensor, qkv_bias: Tensor,
    out_weight: Tensor, out_bias: Tensor, mask: Tensor | None, mask_type: int | None,
) -> Tensor:  # fmt: skip
    weights = (qkv_weight, qkv_bias, out_weight, out_bias)
    return _native_multi_head_attention(
        x, x, x, embed_dim, num_heads, *weights, mask, need_weights=False, mask_type=mask_type
    )[0]


def _mask_arguments(mask: Tensor | None, mask_type: int | None, num_heads: int) -> dict[str, Tensor]:
    """The mask as multi_head_attention_forward takes it: type 0 is [S, S], 1 key padding [B, S], 2 [B, H, S, S]."""
    if mask is None:
        return {}
    if mask_type == 1:
        return {"key_padding_mask": mask}
    return {"attn_mask": mask.flatten(0, 1) if mask.dim() == 4 else mask}


_EXPANSIONS: dict[str, Callable] = {
    "multi_head_attention_forward": F.multi_head_attention_forward,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_native_multi_head_attention": _native_multi_head_attention,
}
