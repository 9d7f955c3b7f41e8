"""Texts of graphs before and after canonicalize_linear, and the decisions it records."""

import functools

import expecttest
import torch
import torch.nn.functional as F

from int8pass.passes.canonicalize_linear import canonicalize_linear
from tests.graphs import compiled, holder, program_of, signs, text_of
from tests.passes.linear_shapes import IN, OUT, ROWS, linear, linear_bias, transposed, transposed_bias


class TestText(expecttest.TestCase):
    def both(self, call, *inputs, **shapes):
        """The text before and after the pass."""
        program = program_of(holder(call, **shapes), *inputs)
        before = text_of(program)
        self.assertEqual(canonicalize_linear(program), 1)
        return f"{before}\n{text_of(program)}"

    def test_linear(self):
        self.assertExpectedInline(
            self.both(lambda m, x: F.linear(x, m.w, m.b), signs(*ROWS), **linear_bias),
            """\
%linear : f32[4, 6] = linear(%x, %w, %b)
return (%linear,)

%linear_1 : f32[4, 6] = aten.linear(%x, %w, %b)
return (%linear_1,)
""",
        )

    def test_addmm(self):
        self.assertExpectedInline(
            self.both(lambda m, x: torch.addmm(m.b, x, m.w), signs(*ROWS), **transposed_bias),
            """\
%addmm : f32[4, 6] = addmm(%b, %x, %w)
return (%addmm,)

%t : f32[6, 16] = aten.t(%w)
%linear : f32[4, 6] = aten.linear(%x, %t, %b)
return (%linear,)
""",
        )

    def test_addmm_with_a_matrix_bias(self):
        shapes = dict(w=(IN, OUT), b=(4, OUT))
        self.assertExpectedInline(
            self.both(lambda m, x: torch.addmm(m.b, x, m.w), signs(*ROWS), **shapes),
            """\
%addmm : f32[4, 6] = addmm(%b, %x, %w)
return (%addmm,)

%t : f32[6, 16] = aten.t(%w)
%linear : f32[4, 6] = aten.linear(%x, %t, None)
%add : f32[4, 6] = aten.add.Tensor(%linear, %b)
return (%add,)
""",
        )

    def test_matmul_and_bias(self):
        self.assertExpectedInline(
            self.both(lambda m, x: x @ m.w + m.b, signs(2, 3, IN), **transposed_bias),
            """\
%matmul : f32[2, 3, 6] = matmul(%x, %w)
%add : f32[2, 3, 6] = add(%matmul, %b)
return (%add,)

%t : f32[6, 16] = aten.t(%w)
%linear_1 : f32[2, 3, 6] = aten.linear(%x, %t, %b)
return (%linear_1,)
""",
        )

    def test_weight_on_the_left(self):
        self.assertExpectedInline(
            self.both(lambda m, x: m.w @ x, signs(3, IN, 4), **linear),
            """\
%matmul : f32[3, 6, 4] = matmul(%w, %x)
return (%matmul,)

%transpose : f32[3, 4, 16] = aten.transpose.int(%x, -2, -1)
%linear : f32[3, 4, 6] = aten.linear(%transpose, %w, None)
%transpose_1 : f32[3, 6, 4] = aten.transpose.int(%linear, -2, -1)
return (%transpose_1,)
""",
        )

    def test_method_on_a_view(self):
        self.assertExpectedInline(
            self.both(lambda m, x: x.matmul(m.w[1].t()), signs(*ROWS), w=(3, OUT, IN)),
            """\
%getitem : f32[6, 16] = getitem(%w, 1)
%t : f32[16, 6] = t(%getitem)
%matmul : f32[4, 6] = matmul(%x, %t)
return (%matmul,)

%getitem : f32[6, 16] = getitem(%w, 1)
%t : f32[16, 6] = t(%getitem)
%t_1 : f32[6, 16] = aten.t(%t)
%linear : f32[4, 6] = aten.linear(%x, %t_1, None)
return (%linear,)
""",
        )


@functools.cache
def _decisions():
    module = holder(lambda m, x: x @ m.w + (x * 2) @ x.t() @ x[:, :OUT], **transposed)
    return compiled(module, signs(*ROWS)).program.decisions


def test_decisions_name_the_weight():
    skipped = [decision for decision in _decisions() if decision.reason]
    (taken,) = (decision for decision in _decisions() if decision.rewritten)
    assert [decision.operation for decision in skipped] == ["matmul", "matmul"]
    assert (taken.operation, taken.weight_shape, taken.dtype) == ("linear", (OUT, IN), "float32")
    assert (taken.weight_bytes, taken.int8_bytes) == (4 * OUT * IN, OUT * IN + 4 * OUT)
