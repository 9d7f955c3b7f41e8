"""Fused attention calls are opened, and compute what they did, within the error of the quantized Linears."""

import itertools
import re

import expecttest
import pytest
import torch
from torch import nn

from int8pass.passes.canonicalize_linear import canonicalize_linear
from int8pass.passes.expand_fused_attention import expand_fused_attention
from tests.graphs import compiled, exported, holder, program_of, text_of

WIDTH, HEADS, BATCH, LENGTH, OTHER_LENGTH = 16, 4, 2, 5, 7
EXACT = {"skip_modules": ("*",)}  # expanded, and left in float

PRODUCTS = "activation x activation, no weight"
captures = pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def frozen(module):
    """The module in eval mode, with weights that depend on nothing but their shapes."""
    for parameter in module.parameters():
        parameter.data.copy_(normal(*parameter.shape) / 4)
    return module.eval().requires_grad_(False)


def attention(**options):
    return frozen(nn.MultiheadAttention(WIDTH, HEADS, **options))


def first(result):
    return result[0] if isinstance(result, tuple) else result


def assert_equal(call, *inputs, rewritten, products=0):
    """Expanded alone it is equal up to rounding; rewritten it is near; `products` are attention's own matmuls."""
    expected = first(call(*inputs))
    plain = compiled(call, *inputs, **EXACT)
    torch.testing.assert_close(first(plain.output), expected, rtol=1e-4, atol=1e-5)
    result = compiled(call, *inputs)
    assert result.reasons == {"rewritten": rewritten} | ({PRODUCTS: products} if products else {})
    torch.testing.assert_close(first(result.output), expected, rtol=0, atol=0.03 * float(expected.abs().max()))
    return result


def sequence(length=LENGTH, width=WIDTH, batch_first=True, seed=0):
    x = normal(BATCH, length, width, seed=seed)
    return x if batch_first else x.transpose(0, 1).contiguous()


PADDING = torch.arange(LENGTH).expand(BATCH, LENGTH) >= torch.tensor([[3], [5]])
CAUSAL = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "float padding": {"key_padding_mask": PADDING.float() * -10},
    "causal": {"attn_mask": CAUSAL},
    "float": {"attn_mask": normal(LENGTH, LENGTH)},
    "each head": {"attn_mask": normal(BATCH * HEADS, LENGTH, LENGTH)},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
    "is_causal": {"attn_mask": CAUSAL, "is_causal": True},
}


@pytest.mark.parametrize(
    "need_weights, batch_first",
    ((True, False), (False, True)),
    ids=("weights, batch second", "no weights, batch first"),
)
@pytest.mark.parametrize("mask", MASKS)
def test_self_attention(mask, need_weights, batch_first):
    module = attention(batch_first=batch_first)
    x = sequence(batch_first=batch_first)
    options = MASKS[mask] | {"need_weights": need_weights}
    result = assert_equal(lambda x: module(x, x, x, **options), x, rewritten=2, products=2 * need_weights)
    assert result.operations["multi_head_attention_forward"] == 0
    if need_weights:
        _, expected = module(x, x, x, **options)
        torch.testing.assert_close(result.output[1], expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("need_weights, average", ((True, True), (True, False), (False, True)))
def test_cross_attention(need_weights, average):
    module = attention(batch_first=True)
    options = dict(need_weights=need_weights, average_attn_weights=average)
    x, memory = sequence(), sequence(OTHER_LENGTH)
    # of the packed projection, the query's third, and the third and last for key and value as one
    result = assert_equal(
        lambda x, memory: module(x, memory, memory, **options), x, memory, rewritten=3, products=2 * need_weights
    )
    if need_weights:
        assert result.output[1].shape == module(x, memory, memory, **options)[1].shape


def test_separate_key_and_value():
    module = attention()
    q, k, v = (sequence(batch_first=False, seed=seed) for seed in range(3))
    assert_equal(lambda q, k, v: module(q, k, v, need_weights=False), q, k, v, rewritten=4)


@pytest.mark.parametrize("extra", ({}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}), ids=str)
def test_other_widths_of_key_and_value(extra):
    module = attention(kdim=12, vdim=20, batch_first=True, **extra)
    inputs = sequence(), sequence(OTHER_LENGTH, 12), sequence(OTHER_LENGTH, 20)
    assert_equal(lambda q, k, v: module(q, k, v, need_weights=False), *inputs, rewritten=4)


def test_unbatched():
    module = attention()
    assert_equal(lambda x: module(x, x, x, need_weights=False), normal(LENGTH, WIDTH), rewritten=4)


def test_dynamic_shapes():
    module, x = attention(batch_first=True), sequence()
    result = compiled(lambda x: module(x, x, x, need_weights=False), x, dynamic=True)
    assert result.reasons == {"rewritten": 2}
    expected = module(x, x, x)[0]
    torch.testing.assert_close(result.output[0], expected, rtol=0, atol=0.03 * float(expected.abs().max()))


def test_gradient_of_the_activation():
    module, x = attention(batch_first=True), sequence().requires_grad_()
    result = compiled(lambda x: module(x, x, x, need_weights=False)[0], x, grad=True)
    assert result.reasons == {"rewritten": 2}
    (result.output**2).sum().backward()
    actual, x.grad = x.grad, None
    (module(x, x, x, need_weights=False)[0] ** 2).sum().backward()
    torch.testing.assert_close(actual, x.grad, rtol=0, atol=0.1 * float(x.grad.abs().max()))


def encoder_layer(**options):
    return frozen(nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, **options))


@pytest.mark.parametrize("norm_first, activation", ((False, "relu"), (True, "gelu")))
@pytest.mark.parametrize(
    "masks",
    (
        {},
        {"src_key_padding_mask": PADDING},
        {"src_mask": CAUSAL},
        {"src_mask": CAUSAL, "src_key_padding_mask": PADDING},
    ),
    ids=lambda masks: " and ".join(masks) or "no mask",
)
def test_encoder_layer(masks, activation, norm_first):
    layer = encoder_layer(norm_first=norm_first, activation=activation)
    call = lambda x: layer(x, **masks)  # noqa: E731
    assert "_transformer_encoder_layer_fwd" in text_of(program_of(call, sequence()))
    assert_equal(call, sequence(), rewritten=4)


@captures
def test_encoder_layer_of_either_dialect(capture):
    layer, x = encoder_layer(), sequence()
    result = capture(layer, x)
    assert result.reasons == {"rewritten": 4}
    torch.testing.assert_close(result.output, layer(x), rtol=0, atol=0.05)


def test_encoder_layer_names_its_modules():
    decisions = compiled(encoder_layer(), sequence()).program.decisions
    assert [decision.module for decision in decisions] == ["self_attn", "self_attn.out_proj", "linear1", "linear2"]


def test_encoder_stack():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True)
    model = frozen(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    assert_equal(lambda x: model(x, src_key_padding_mask=PADDING), sequence(), rewritten=8)


def test_encoder_layer_in_training_mode():
    layer = encoder_layer(dropout=0.0).train()
    assert_equal(layer, sequence(), rewritten=4)


@pytest.mark.parametrize(
    "need_weights, average, mask_type", (*itertools.product((True, False), (True, False), (None,)), (True, True, 1))
)
def test_native_attention(need_weights, average, mask_type):
    mask = PADDING if mask_type == 1 else None

    def call(m, x):
        return torch._native_multi_head_attention(
            x, x, x, WIDTH, HEADS, m.qkv, m.qkv_bias, m.out, m.out_bias, mask, need_weights, average, mask_type
        )

    shapes = dict(qkv=(3 * WIDTH, WIDTH), qkv_bias=(3 * WIDTH,), out=(WIDTH, WIDTH), out_bias=(WIDTH,))
    module, x = holder(call, **shapes), sequence()
    for name in shapes:
        getattr(module, name).copy_(normal(*shapes[name]) / 4)
    assert_equal(module, x, rewritten=2, products=2 * need_weights)
    if need_weights:
        result = compiled(module, x, **EXACT)
        torch.testing.assert_close(result.output[1], module(x)[1], rtol=1e-4, atol=1e-5)


def test_a_graph_without_attention():
    program = program_of(holder(lambda m, x: x @ m.w, w=(WIDTH, 3)), sequence())
    before = text_of(program)
    assert expand_fused_attention(program) == 0
    assert text_of(program) == before


def test_count():
    module = attention(batch_first=True)
    program = program_of(lambda x: module(module(x, x, x)[0], x, x)[0], sequence())
    assert expand_fused_attention(program) == 2
    program.graph.lint()


class TestText(expecttest.TestCase):
    def lines_of(self, call, *inputs):
        """The lines that compute with weights or attend; expanded graphs are long."""
        program = program_of(call, *inputs)
        self.assertEqual(expand_fused_attention(program), 1)
        canonicalize_linear(program)
        words = ("linear(", "attention(", "chunk(", "softmax", "bmm(", "layer_norm(", "relu(")
        lines = [line for line in text_of(program).splitlines() if any(word in line for word in words)]
        # PyTorch versions differ in the views between
        lines = [re.sub(r"linear\(%(view_\d+|reshape), ", "linear(%flat, ", line) for line in lines]
        return "\n".join(re.sub(r"%view(_\d+)?\b", "%view", line) for line in lines) + "\n"

    def test_self_attention(self):
        module = attention()
        self.assertExpectedInline(
            self.lines_of(lambda x: module(x, x, x, need_weights=False), sequence(batch_first=False)),
            """\
%linear : f32[5, 2, 48] = aten.linear(%x, %in_proj_weight, %in_proj_bias)
%scaled_dot_product_attention : f32[2, 4, 5, 4] = aten.scaled_dot_product_attention(%view, %view, %view)
%linear_1 : f32[10, 16] = aten.linear(%flat, %out_proj.weight, %out_proj.bias)
""",
        )

    def test_cross_attention(self):
        module = attention()
        inputs = sequence(batch_first=False), sequence(OTHER_LENGTH, batch_first=False)
        self.assertExpectedInline(
            self.lines_of(lambda x, y: module(x, y, y), *inputs),
            """\
%linear : f32[5, 2, 16] = aten.linear(%x, %getitem, %getitem_2)
%linear_1 : f32[7, 2, 32] = aten.linear(%x1, %getitem_1, %getitem_3)
%bmm : f32[8, 5, 7] = aten.bmm(%mul, %transpose_4)
%softmax : f32[8, 5, 7] = aten.softmax.int(%bmm, -1)
%bmm_1 : f32[8, 5, 4] = aten.bmm(%softmax, %transpose_3)
%linear_2 : f32[10, 16] = aten.linear(%flat, %out_proj.weight, %out_proj.bias)
%view : f32[2, 4, 5, 7] = aten.view(%softmax, [2, 4, 5, 7])
""",
        )

    def test_encoder_layer(self):
        self.assertExpectedInline(
            self.lines_of(encoder_layer(), sequence()),
            """\
%linear : f32[5, 2, 48] = aten.linear(%transpose, %self_attn.in_proj_weight, %self_attn.in_proj_bias)
%scaled_dot_product_attention : f32[2, 4, 5, 4] = aten.scaled_dot_product_attention(%view, %view, %view)
%linear_1 : f32[10, 16] = aten.linear(%flat, %self_attn.out_proj.weight, %self_attn.out_proj.bias)
%layer_norm : f32[2, 5, 16] = aten.layer_norm(%add, [16], %norm1.weight, %norm1.bias)
%linear_2 : f32[2, 5, 24] = aten.linear(%layer_norm, %linear1.weight, %linear1.bias)
%relu : f32[2, 5, 24] = aten.relu(%linear_2)
%linear_3 : f32[2, 5, 16] = aten.linear(%relu, %linear2.weight, %linear2.bias)
%layer_norm_1 : f32[2, 5, 16] = aten.layer_norm(%add_1, [16], %norm2.weight, %norm2.bias)
""",
        )
