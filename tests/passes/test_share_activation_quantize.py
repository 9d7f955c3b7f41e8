"""Linears that read the same activation quantize it once, unless something may have written to it in between."""

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from int8pass import ops
from int8pass.passes.share_activation_quantize import share_activation_quantize
from int8pass.pipeline import PASSES
from tests.graphs import compiled, exported, holder, program_of, signs, text_of, with_outliers

ACTIVATION_OPS = ("outlier_mask", "scale_per_token", "quantize_per_token")
THREE = dict(q=(6, 16), k=(6, 16), v=(10, 16))


def projections(m, x):
    return F.linear(x, m.q), F.linear(x, m.k), F.linear(x, m.v)


def before_sharing(call, *inputs, **options):
    """The program as it reaches the pass."""
    program = program_of(call, *inputs, **options)
    for step in PASSES:
        if step.apply is share_activation_quantize:
            return program
        step.apply(program)
    raise AssertionError("the pass is not in PASSES")


@pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
@pytest.mark.parametrize("outliers", ("column", "token"))
def test_projections_share(outliers, capture):
    module, x = holder(projections, **THREE), with_outliers(signs(2, 3, 16))
    result = capture(module, x, outliers=outliers)
    assert [result.operations[name] for name in (*ACTIVATION_OPS, "int8_mm", "outlier_mm")] == [1, 1, 1, 3, 3]
    for actual, expected in zip(result.output, module(x), strict=True):
        assert torch.equal(actual, expected)


def test_count():
    module, x = holder(projections, **THREE), signs(4, 16)
    assert share_activation_quantize(before_sharing(module, x)) == 6
    assert share_activation_quantize(before_sharing(module, x, threshold=0.0)) == 4
    assert share_activation_quantize(before_sharing(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), x)) == 0


def test_different_activations_stay_apart():
    module = holder(lambda m, x: F.linear(x, m.q) + F.linear(x * 2, m.k), q=(6, 16), k=(6, 16))
    assert compiled(module, signs(4, 16)).operations["scale_per_token"] == 2


def test_gradient_reaches_a_shared_activation():
    module = holder(projections, **THREE)
    x = signs(4, 16).requires_grad_()
    result = compiled(module, x, grad=True)
    assert [result.operations[name] for name in ACTIVATION_OPS] == [1, 1, 1]
    assert result.operations["detach"] == 1
    sum(y.sum() for y in result.output).backward()
    actual, x.grad = x.grad, None
    sum(y.sum() for y in module(x)).backward()
    torch.testing.assert_close(actual, x.grad)


library = torch.library.Library("int8pass_tests", "DEF")
library.define("triple(Tensor(a!) x) -> ()")


@torch.library.impl(library, "triple", "CompositeExplicitAutograd")
def triple(x):
    x.mul_(3)


@torch.library.register_fake("int8pass_tests::triple", lib=library)
def triple_fake(x):
    return None


def set_item(x):
    x[0] = 5.0


def augmented(x):
    x += 1


def in_view(x):
    x[0].mul_(3)


WRITES = {
    "mul_": lambda x: x.mul_(3),
    "+=": augmented,
    "__iadd__": lambda x: x.__iadd__(1),
    "setitem": set_item,
    "write to a view": in_view,
    "copy_": lambda x: x.copy_(x.flip(0)),
    "out=": lambda x: torch.add(x, 1, out=x),
    "F.relu(inplace=True)": lambda x: F.relu(x, inplace=True),
    "F.relu(x, True)": lambda x: F.relu(x, True),
    "nn.ReLU(inplace=True)": nn.ReLU(inplace=True),
    "nn.Hardtanh(inplace=True)": nn.Hardtanh(-0.1, 0.1, inplace=True),
    "nn.SiLU(inplace=True)": nn.SiLU(inplace=True),
    "F.threshold(inplace=True)": lambda x: F.threshold(x, 0.5, 3.0, True),
    "torch.relu_": torch.relu_,
    "aten.mul_": lambda x: torch.ops.aten.mul_.Tensor(x, 3),
    "custom op": lambda x: torch.ops.int8pass_tests.triple.default(x),
    "custom op, by packet": lambda x: torch.ops.int8pass_tests.triple(x),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_in_between_ends_sharing(name):
    def call(m, x):
        q = F.linear(x, m.q)
        WRITES[name](x)
        return q, F.linear(x, m.k)

    module = holder(call, q=(6, 16), k=(6, 16))
    x = signs(4, 16) * torch.tensor([1.0, 2.0, 0.5, 4.0])[:, None]
    result = compiled(module, x.clone())
    assert result.operations["scale_per_token"] == 2
    for actual, expected in zip(result.output, module(x.clone()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_a_write_before_both_does_not_matter():
    def call(m, x):
        x = x + 1
        x.mul_(3)
        return F.linear(x, m.q), F.linear(x, m.k)

    assert compiled(holder(call, q=(6, 16), k=(6, 16)), signs(4, 16)).operations["scale_per_token"] == 1


def test_other_arguments_stay_apart():
    program = before_sharing(holder(projections, **THREE), signs(4, 16))
    masks = [node for node in program.graph.nodes if node.target is ops.outlier_mask]
    masks[1].args = (masks[1].args[0], 3.0, "column")
    assert share_activation_quantize(program) == 3


class TestText(expecttest.TestCase):
    def test_two(self):
        module = holder(lambda m, x: (F.linear(x, m.q), F.linear(x, m.k)), q=(6, 16), k=(6, 16))
        program = before_sharing(module, signs(4, 16))
        before = text_of(program)
        share_activation_quantize(program)
        self.assertExpectedInline(
            f"{before}\n{text_of(program)}",
            """\
%outlier_mask : bool[16] = int8pass.outlier_mask(%x, 6.0, 'column')
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %q_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %q)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %q_scale, %outlier_mm, None, float32)
%outlier_mask_1 : bool[16] = int8pass.outlier_mask(%x, 6.0, 'column')
%scale_per_token_1 : f32[4] = int8pass.scale_per_token(%x, %outlier_mask_1)
%quantize_per_token_1 : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token_1, %outlier_mask_1)
%int8_mm_1 : i32[4, 6] = int8pass.int8_mm(%quantize_per_token_1, %k_codes)
%outlier_mm_1 : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask_1, %k)
%dequantize_1 : f32[4, 6] = int8pass.dequantize(%int8_mm_1, %scale_per_token_1, %k_scale, %outlier_mm_1, None, float32)
return (%dequantize, %dequantize_1)

%outlier_mask : bool[16] = int8pass.outlier_mask(%x, 6.0, 'column')
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %q_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %q)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %q_scale, %outlier_mm, None, float32)
%int8_mm_1 : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %k_codes)
%outlier_mm_1 : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %k)
%dequantize_1 : f32[4, 6] = int8pass.dequantize(%int8_mm_1, %scale_per_token, %k_scale, %outlier_mm_1, None, float32)
return (%dequantize, %dequantize_1)
""",
        )
