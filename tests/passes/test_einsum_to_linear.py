"""An einsum of an activation with a parameter becomes a Linear, with exactly the same values."""

import expecttest
import pytest
import torch

from int8pass.passes.canonicalize_linear import canonicalize_linear
from tests.graphs import compiled, exported, holder, program_of, signs, text_of, with_outliers

# equation -> (shape of x, shape of w)
LINEARS = {
    "bd,df->bf": ((4, 16), (16, 6)),
    "bd,fd->bf": ((4, 16), (6, 16)),
    "bsd,df->bsf": ((2, 3, 16), (16, 6)),
    "bsd,dhk->bshk": ((2, 3, 16), (16, 4, 5)),
    "bsd,hdk->bshk": ((2, 3, 16), (4, 16, 5)),
    "bsd,hkd->bshk": ((2, 3, 16), (4, 5, 16)),
    "bsd,dhk->bhsk": ((2, 3, 16), (16, 4, 5)),
    "bsd,dhk->hkbs": ((2, 3, 16), (16, 4, 5)),
    "bsd,df->bfs": ((2, 3, 16), (16, 6)),
    "bshk,hkd->bsd": ((2, 3, 4, 8), (4, 8, 6)),
    "bshk,dhk->bsd": ((2, 3, 4, 8), (6, 4, 8)),
    "bshk,khd->bsd": ((2, 3, 4, 8), (8, 4, 6)),
    "bshk,hkde->bsed": ((2, 3, 4, 8), (4, 8, 6, 2)),
    "...d,df->...f": ((2, 3, 16), (16, 6)),
    "...d,fd->...f": ((2, 3, 2, 16), (6, 16)),
    "...d,dhk->...hk": ((2, 3, 16), (16, 4, 5)),
    "d,df->f": ((16,), (16, 6)),
    "b s d , d f -> b s f": ((2, 3, 16), (16, 6)),
    "ad,df": ((4, 16), (16, 6)),
    "...d,df": ((2, 3, 16), (16, 6)),
    "bD,Df->bf": ((4, 16), (16, 6)),
}

captures = pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))


@captures
@pytest.mark.parametrize("equation", LINEARS)
def test_linear(equation, capture):
    shape, weight_shape = LINEARS[equation]
    module = holder(lambda m, x: torch.einsum(equation, x, m.w), w=weight_shape)
    x = with_outliers(signs(*shape))
    result = capture(module, x)
    assert result.reasons == {"rewritten": 1}
    assert result.operations["int8_mm"] == 1
    assert result.operations["einsum"] == 0
    assert torch.equal(result.output, module(x))


@captures
@pytest.mark.parametrize(
    "call",
    (
        lambda m, x: torch.einsum("df,bd->bf", m.w, x),
        lambda m, x: torch.einsum("df,bd->fb", m.w, x),
        lambda m, x: torch.einsum("bd,df->bf", [x, m.w]),
        lambda m, x: torch.einsum("bd,df->bf", (x, m.w)),
        lambda m, x: torch.functional.einsum("bd,df->bf", x, m.w),
        lambda m, x: torch.einsum("bd,fd->bf", x, m.w.t()),
    ),
    ids=("weight first", "permuted output", "list", "tuple", "functional", "view of the weight"),
)
def test_spelling(call, capture):
    module, x = holder(call, w=(16, 6)), with_outliers(signs(4, 16))
    result = capture(module, x)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, module(x))


def test_implicit_output_sorts_its_labels():
    module, x = holder(lambda m, x: torch.einsum("zd,da", x, m.w), w=(16, 6)), signs(4, 16)
    result = compiled(module, x)
    assert result.output.shape == (6, 4)
    assert torch.equal(result.output, module(x))


@pytest.mark.parametrize("equation", ("bsd,dhk->bshk", "bsd,dhk->bhsk", "...d,dhk->...hk"))
def test_dynamic_shapes(equation):
    module, x = holder(lambda m, x: torch.einsum(equation, x, m.w), w=(16, 4, 5)), with_outliers(signs(3, 7, 16))
    result = compiled(module, x, dynamic=True)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, module(x))


STACKED = "stacked weights (one matrix a batch entry or expert)"
NOT_LAST = "einsum that does not contract the last dimension"
OTHER = "einsum that contracts nothing, or sums a label of one operand alone"
REPEATED = "einsum with repeated labels or an inner ellipsis"
REFUSALS = {
    "becd,edf->becf": ((2, 3, 4, 16), (3, 16, 6), STACKED),
    "ecd,edf->ecf": ((3, 4, 16), (3, 16, 6), STACKED),
    "bd,bd->b": ((4, 16), (4, 16), STACKED),
    "bds,df->bsf": ((2, 16, 3), (16, 6), NOT_LAST),
    "bkhs,hkd->bsd": ((2, 8, 4, 3), (4, 8, 6), NOT_LAST),
    "b,f->bf": ((4,), (6,), OTHER),
    "bd,df->b": ((4, 16), (16, 6), OTHER),
    "bsd,df->bf": ((2, 3, 16), (16, 6), OTHER),
    "bd,d->b": ((4, 16), (16,), OTHER),
    "bdd,df->bf": ((4, 16, 16), (16, 6), REPEATED),
}


@pytest.mark.parametrize("equation", REFUSALS)
def test_refusal(equation):
    shape, weight_shape, reason = REFUSALS[equation]
    module, x = holder(lambda m, x: torch.einsum(equation, x, m.w), w=weight_shape), signs(*shape)
    result = compiled(module, x)
    assert result.reasons == {reason: 1}
    assert torch.equal(result.output, module(x))


def test_refusal_of_one_and_of_three_operands():
    reason = "einsum of other than two operands"
    assert compiled(holder(lambda m, x: torch.einsum("bd->db", x)), signs(4, 16)).reasons == {reason: 1}
    module = holder(lambda m, x: torch.einsum("bd,df,fg->bg", x, m.w, m.v), w=(16, 6), v=(6, 5))
    assert compiled(module, signs(4, 16)).reasons == {reason: 1}


def test_refusal_of_activations():
    module = holder(lambda m, x: torch.einsum("bid,bjd->bij", x, x * 2))
    assert compiled(module, signs(2, 3, 16)).reasons == {"activation x activation, no weight": 1}


def test_sizes_of_one_broadcast():
    """einsum stretches a dimension of size 1, which a Linear cannot."""
    module, x = holder(lambda m, x: torch.einsum("bd,df->bf", x, m.w), w=(16, 6)), signs(4, 1)
    assert torch.equal(compiled(module, x).output, module(x))


class TestText(expecttest.TestCase):
    def after(self, equation, shape, weight_shape):
        module = holder(lambda m, x: torch.einsum(equation, x, m.w), w=weight_shape)
        program = program_of(module, signs(*shape))
        self.assertEqual(canonicalize_linear(program), 1)
        return text_of(program)

    def test_plain(self):
        self.assertExpectedInline(
            self.after("bsd,df->bsf", (2, 3, 16), (16, 6)),
            """\
%permute : f32[6, 16] = aten.permute(%w, [1, 0])
%linear : f32[2, 3, 6] = aten.linear(%x, %permute, None)
return (%linear,)
""",
        )

    def test_heads(self):
        self.assertExpectedInline(
            self.after("bsd,dhk->bshk", (2, 3, 16), (16, 4, 5)),
            """\
%permute : f32[4, 5, 16] = aten.permute(%w, [1, 2, 0])
%reshape : f32[20, 16] = aten.reshape(%permute, [20, 16])
%linear : f32[2, 3, 20] = aten.linear(%x, %reshape, None)
%reshape_1 : f32[2, 3, 4, 5] = aten.reshape(%linear, [2, 3, 4, 5])
return (%reshape_1,)
""",
        )

    def test_heads_joined(self):
        self.assertExpectedInline(
            self.after("bshk,hkd->bsd", (2, 3, 4, 8), (4, 8, 6)),
            """\
%permute : f32[6, 4, 8] = aten.permute(%w, [2, 0, 1])
%reshape : f32[6, 32] = aten.reshape(%permute, [6, 32])
%flatten : f32[2, 3, 32] = aten.flatten.using_ints(%x, 2, 3)
%linear : f32[2, 3, 6] = aten.linear(%flatten, %reshape, None)
return (%linear,)
""",
        )

    def test_permuted_output(self):
        self.assertExpectedInline(
            self.after("bsd,dhk->bhsk", (2, 3, 16), (16, 4, 5)),
            """\
%permute : f32[4, 5, 16] = aten.permute(%w, [1, 2, 0])
%reshape : f32[20, 16] = aten.reshape(%permute, [20, 16])
%linear : f32[2, 3, 20] = aten.linear(%x, %reshape, None)
%reshape_1 : f32[2, 3, 4, 5] = aten.reshape(%linear, [2, 3, 4, 5])
%permute_1 : f32[2, 4, 3, 5] = aten.permute(%reshape_1, [0, 2, 1, 3])
return (%permute_1,)
""",
        )
