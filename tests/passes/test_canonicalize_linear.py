"""Every spelling of a Linear becomes aten.linear, with exactly the same values; all else is recorded with a reason."""

import functools
import importlib.util

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from int8pass.passes.canonicalize_linear import canonicalize_linear
from tests.graphs import Holder, compiled, exported, holder, parameter, program_of, signs, text_of, with_outliers

IN, OUT = 16, 6
ROWS = (4, IN)
linear = dict(w=(OUT, IN))
linear_bias = dict(w=(OUT, IN), b=(OUT,))
transposed = dict(w=(IN, OUT))
transposed_bias = dict(w=(IN, OUT), b=(OUT,))

# name -> (call, shapes of the parameters, shape of x)
SPELLINGS = {
    "F.linear": (lambda m, x: F.linear(x, m.w), linear, ROWS),
    "F.linear, bias": (lambda m, x: F.linear(x, m.w, m.b), linear_bias, ROWS),
    "F.linear, keywords": (lambda m, x: F.linear(input=x, weight=m.w, bias=m.b), linear_bias, ROWS),
    "aten.linear": (lambda m, x: torch.ops.aten.linear.default(x, m.w, m.b), linear_bias, ROWS),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.w), transposed_bias, ROWS),
    "addmm, method": (lambda m, x: m.b.addmm(x, m.w), transposed_bias, ROWS),
    "addmm, alpha and beta 1": (lambda m, x: torch.addmm(m.b, x, m.w, beta=1, alpha=1), transposed_bias, ROWS),
    "addmm, bias [1]": (lambda m, x: torch.addmm(m.b, x, m.w), dict(w=(IN, OUT), b=(1,)), ROWS),
    "addmm, bias [M, N]": (lambda m, x: torch.addmm(m.b, x, m.w), dict(w=(IN, OUT), b=(4, OUT)), ROWS),
    "addmm, bias [M, 1]": (lambda m, x: torch.addmm(m.b, x, m.w), dict(w=(IN, OUT), b=(4, 1)), ROWS),
    "aten.addmm": (lambda m, x: torch.ops.aten.addmm.default(m.b, x, m.w), transposed_bias, ROWS),
    "Conv1D": (
        lambda m, x: torch.addmm(m.b, x.view(-1, x.size(-1)), m.w).view(2, 3, OUT), transposed_bias, (2, 3, IN)),
    "mm": (lambda m, x: torch.mm(x, m.w), transposed, ROWS),
    "mm, keywords": (lambda m, x: torch.mm(input=x, mat2=m.w), transposed, ROWS),
    "mm, method": (lambda m, x: x.mm(m.w), transposed, ROWS),
    "aten.mm": (lambda m, x: torch.ops.aten.mm.default(x, m.w), transposed, ROWS),
    "matmul": (lambda m, x: torch.matmul(x, m.w), transposed, ROWS),
    "matmul, keywords": (lambda m, x: torch.matmul(input=x, other=m.w), transposed, ROWS),
    "matmul, method": (lambda m, x: x.matmul(m.w), transposed, (2, 3, IN)),
    "matmul, unbound method": (lambda m, x: torch.Tensor.matmul(x, m.w), transposed, ROWS),
    "@": (lambda m, x: x @ m.w, transposed, (2, 3, IN)),
    "@ w.t()": (lambda m, x: x @ m.w.t(), linear, ROWS),
    "@ w.T": (lambda m, x: x @ m.w.T, linear, ROWS),
    "@ w.mT": (lambda m, x: x @ m.w.mT, linear, ROWS),
    "@ w.transpose": (lambda m, x: x @ m.w.transpose(-2, -1), linear, ROWS),
    "@ w.permute": (lambda m, x: x @ m.w.permute(1, 0), linear, ROWS),
    "@, + bias": (lambda m, x: x @ m.w + m.b, transposed_bias, (2, 3, IN)),
    "@, bias +": (lambda m, x: m.b + x @ m.w, transposed_bias, ROWS),
    "mm, torch.add": (lambda m, x: torch.add(torch.mm(x, m.w), m.b), transposed_bias, ROWS),
    "matmul, add method": (lambda m, x: x.matmul(m.w).add(m.b), transposed_bias, ROWS),
    "matmul, add_": (lambda m, x: x.matmul(m.w).add_(m.b), transposed_bias, ROWS),
    "@, add with alpha": (lambda m, x: torch.add(x @ m.w, m.b, alpha=2), transposed_bias, ROWS),
    "@, + bias [N, 1]": (lambda m, x: x @ m.w + m.b, dict(w=(IN, OUT), b=(4, 1)), ROWS),
    "@, + scalar": (lambda m, x: x @ m.w + 1.5, transposed, ROWS),
    "@, + itself": (lambda m, x: (lambda y: y + y)(x @ m.w), transposed, ROWS),
    "w @": (lambda m, x: m.w @ x, linear, (IN, 4)),
    "w @ vector": (lambda m, x: m.w @ x, linear, (IN,)),
    "w @ batch": (lambda m, x: torch.matmul(m.w, x), linear, (3, IN, 4)),
    "mm(w, x)": (lambda m, x: torch.mm(m.w, x), linear, (IN, 4)),
    "rank 1": (lambda m, x: F.linear(x, m.w, m.b), linear_bias, (IN,)),
    "rank 1, @": (lambda m, x: x @ m.w, transposed, (IN,)),
    "rank 3": (lambda m, x: F.linear(x, m.w, m.b), linear_bias, (2, 3, IN)),
    "rank 4": (lambda m, x: F.linear(x, m.w, m.b), linear_bias, (2, 1, 3, IN)),
    "rank 5": (lambda m, x: F.linear(x, m.w, m.b), linear_bias, (2, 1, 3, 2, IN)),
    "rank 5, @": (lambda m, x: x @ m.w, transposed, (2, 1, 3, 2, IN)),
    "x transposed": (lambda m, x: F.linear(x.transpose(0, 1), m.w), linear, (2, 3, IN)),
    "x.t()": (lambda m, x: x.t() @ m.w, transposed, (IN, 4)),
    "x strided": (lambda m, x: F.linear(x[::2, ::2], m.w), linear, (8, 2 * IN)),
    "x expanded": (lambda m, x: F.linear(x.expand(3, 4, IN), m.w), linear, (4, IN)),
    "no rows": (lambda m, x: F.linear(x, m.w, m.b), linear_bias, (0, IN)),
    "w.view": (lambda m, x: F.linear(x, m.w.view(OUT, IN)), dict(w=(OUT * IN,)), ROWS),
    "w sliced": (lambda m, x: F.linear(x, m.w[2:8]), dict(w=(9, IN)), ROWS),
    "w columns sliced": (lambda m, x: F.linear(x, m.w[:, 1 : IN + 1]), dict(w=(OUT, IN + 2)), ROWS),
    "w.narrow": (lambda m, x: F.linear(x, m.w.narrow(0, 1, OUT)), dict(w=(9, IN)), ROWS),
    "w of a stack": (lambda m, x: F.linear(x, m.w[1]), dict(w=(3, OUT, IN)), ROWS),
    "w.select": (lambda m, x: F.linear(x, m.w.select(0, 1)), dict(w=(3, OUT, IN)), ROWS),
    "w.squeeze": (lambda m, x: F.linear(x, m.w.squeeze(-1)), dict(w=(OUT, IN, 1)), ROWS),
    "w.contiguous": (lambda m, x: F.linear(x, m.w.t().contiguous()), transposed, ROWS),
    "w.detach": (lambda m, x: F.linear(x, m.w.detach()), linear, ROWS),
    "w.clone": (lambda m, x: F.linear(x, m.w.clone()), linear, ROWS),
    "w.to": (lambda m, x: F.linear(x.half(), m.w.to(torch.float16)).float(), linear, ROWS),
    "w.half": (lambda m, x: F.linear(x.half(), m.w.half()).float(), linear, ROWS),
}  # fmt: skip


@pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name, capture):
    call, shapes, shape = SPELLINGS[name]
    module = holder(call, **shapes)
    x = with_outliers(signs(*shape))
    result = capture(module, x)
    assert result.reasons == {"rewritten": 1}
    assert result.operations["int8_mm"] == result.operations["dequantize"] == 1
    assert not result.operations.keys() & {"linear", "matmul", "mm", "addmm"}
    assert torch.equal(result.output, module(x))


@pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_halves(dtype, capture):
    module = Holder(lambda m, x: x @ m.w + m.b, w=parameter(IN, OUT, dtype=dtype), b=parameter(OUT, dtype=dtype))
    x = with_outliers(signs(2, 3, IN, dtype=dtype))
    result = capture(module, x)
    assert result.reasons == {"rewritten": 1}
    assert result.output.dtype == dtype
    exact = x.double() @ module.w.double() + module.b.double()
    assert torch.equal(result.output, exact.to(dtype))  # rounded once, bias included


@pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
@pytest.mark.parametrize("split", ("chunk", "split", "unbind", "slices"))
def test_fused_weights_taken_apart(split, capture):
    pieces = {
        "chunk": lambda w: w.chunk(3),
        "split": lambda w: w.split(OUT),
        "unbind": lambda w: w.view(3, OUT, IN).unbind(0),
        "slices": lambda w: (w[:OUT], w[OUT : 2 * OUT], w[2 * OUT :]),
    }[split]
    module = holder(lambda m, x: [F.linear(x, piece) for piece in pieces(m.w)], w=(3 * OUT, IN))
    x = with_outliers(signs(*ROWS))
    result = capture(module, x)
    assert result.reasons == {"rewritten": 3}
    for actual, expected in zip(result.output, module(x), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
def test_modules(capture):
    model = nn.Sequential(nn.Linear(IN, 12), nn.ReLU(), nn.Linear(12, OUT, bias=False)).requires_grad_(False)
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(0))
    result = capture(model, x)
    assert result.reasons == {"rewritten": 2}
    assert [decision.module for decision in result.program.decisions] == ["0", "2"]
    torch.testing.assert_close(result.output, model(x), rtol=0, atol=0.03)


def test_autocast_keeps_the_dtype_of_the_output():
    module = holder(lambda m, x: F.linear(x, m.w, m.b), **linear_bias)
    x = signs(*ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compiled(module, x)
        assert torch.equal(result.output, module(x))
    assert result.reasons == {"rewritten": 1}
    assert result.output.dtype == torch.bfloat16


def test_dynamic_shapes():
    module = holder(lambda m, x: x @ m.w + m.b, **transposed_bias)
    x = with_outliers(signs(5, 3, IN))
    result = compiled(module, x, dynamic=True)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, module(x))


def test_a_bias_with_other_users_stays_apart():
    module = holder(lambda m, x: (lambda y: (y + m.b, y * 2))(x @ m.w), **transposed_bias)
    x = signs(*ROWS)
    result = compiled(module, x)
    assert result.operations["add"] == 1
    for actual, expected in zip(result.output, module(x), strict=True):
        assert torch.equal(actual, expected)


def test_a_bias_written_in_between_is_read_after_the_write():
    def call(m, x, bias):
        y = x @ m.w
        bias.add_(1)
        return y + bias

    module, x = holder(call, **transposed), signs(*ROWS)
    result = compiled(module, x, signs(OUT))
    assert torch.equal(result.output, module(x, signs(OUT)))


def test_a_product_written_to_out_reaches_it():
    def call(m, x, out):
        torch.mm(x, m.w, out=out)
        return out + 1

    module, x, out = holder(call, **transposed), signs(*ROWS), torch.zeros(4, OUT)
    result = compiled(module, x, out)
    assert torch.equal(out, x @ module.w)
    assert torch.equal(result.output, out + 1)


def test_frozen_weights_as_attributes():
    module, x = holder(lambda m, x: x @ m.w + m.b, **transposed_bias), with_outliers(signs(*ROWS))
    with torch._dynamo.config.patch(prepare_freezing=True):
        result = compiled(module, x)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, module(x))


def test_in_place_matmul_is_found():
    def call(m, x):
        x @= m.w
        return x

    module, x = holder(call, w=(IN, IN)), signs(*ROWS)
    result = compiled(module, x)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, x @ module.w)


def vector(m, x):
    return x @ m.w


def computed(m, x):
    return F.linear(x, m.w * 2)


REFUSALS = {
    "the weight is a vector, not a matrix": (vector, dict(w=(IN,)), (ROWS,)),
    "the weight is an input, not a parameter or buffer": (lambda m, x, w: F.linear(x, w), {}, (ROWS, (OUT, IN))),
    "the weight is computed in the graph": (computed, linear, (ROWS,)),
    "activation x activation, no weight": (lambda m, x, y: x @ y.t(), {}, (ROWS, (OUT, IN))),
    "stacked weights (one matrix a batch entry or expert)": (
        lambda m, x: torch.matmul(x, m.w), dict(w=(3, IN, OUT)), ((3, 4, IN),)),
    "addmm with alpha or beta other than 1": (
        lambda m, x: torch.addmm(m.b, x, m.w, alpha=2), transposed_bias, (ROWS,)),
    "reflected matmul": (lambda m, x: x.__rmatmul__(m.w), dict(w=(OUT, 4)), (ROWS,)),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusal(reason):
    call, shapes, inputs = REFUSALS[reason]
    module, inputs = holder(call, **shapes), [signs(*shape) for shape in inputs]
    result = compiled(module, *inputs)
    assert result.reasons == {reason: 1}
    assert torch.equal(result.output, module(*inputs))


@pytest.mark.parametrize(
    "call, reason",
    (
        (lambda m, x: torch.bmm(x, m.w), "stacked weights (one matrix a batch entry or expert)"),
        (lambda m, x: torch.baddbmm(x[..., :1], x, m.w), "stacked weights (one matrix a batch entry or expert)"),
        (lambda m, x: torch.bmm(x, x.mT), "activation x activation, no weight"),
        (lambda m, x: x @ x.mT, "activation x activation, no weight"),
        (lambda m, x: x @ (x.mT * m.w.mean()), "activation x activation, no weight"),
        (lambda m, x: m.w @ x.mT, "stacked weights (one matrix a batch entry or expert)"),
        (lambda m, x: torch.addmm(m.w[0, 0], x[0], m.w[0], beta=0.5), "addmm with alpha or beta other than 1"),
    ),
)
def test_refusal_of_a_stack(call, reason):
    module = holder(call, w=(3, IN, IN))
    result = compiled(module, signs(3, 4, IN))
    assert result.reasons == {reason: 1}


@pytest.mark.parametrize("namespace", ("aten", "transformers"))
def test_refusal_of_grouped_products(namespace):
    program = program_of(holder(lambda m, x: x @ m.w, w=(3, IN, OUT)), signs(3, 4, IN))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    library = torch.library.Library("int8pass_tests_grouped", "DEF")
    library.define("grouped_mm(Tensor x, Tensor w) -> Tensor")
    other = torch.ops.int8pass_tests_grouped.grouped_mm.default
    node.target = torch.ops.aten._grouped_mm.default if namespace == "aten" else other
    assert canonicalize_linear(program) == 0
    assert program.counts() == {"stacked weights (one matrix a batch entry or expert)": 1}


@pytest.mark.parametrize("beta, alpha", ((0, 1), (1, 0.5), (2, 1)))
def test_refusal_of_alpha_and_beta(beta, alpha):
    module = holder(lambda m, x: torch.addmm(m.b, x, m.w, beta=beta, alpha=alpha), **transposed_bias)
    assert compiled(module, signs(*ROWS)).reasons == {"addmm with alpha or beta other than 1": 1}


def test_refusal_of_a_constant_weight():
    program = program_of(holder(lambda m, x: F.linear(x, m.w), **linear), signs(*ROWS))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    node.args = (node.args[0], 2.0)
    assert canonicalize_linear(program) == 0
    assert program.counts() == {"the weight is not a tensor of the graph": 1}


def test_a_low_rank_update_is_computed():
    module = holder(lambda m, x: F.linear(x, m.w + m.b @ m.a), w=(OUT, IN), a=(2, IN), b=(OUT, 2))
    assert compiled(module, signs(*ROWS)).reasons["the weight is computed in the graph"] == 1


def test_a_reparametrized_weight_is_computed():
    layer = nn.Linear(IN, OUT).requires_grad_(False)
    module = nn.utils.parametrizations.weight_norm(layer).requires_grad_(False)
    assert compiled(module, signs(*ROWS)).reasons == {"the weight is computed in the graph": 1}


def test_a_linear_of_a_higher_order_region_is_recorded():
    def call(m, x):
        return torch.utils.checkpoint.checkpoint(F.linear, x, m.w, use_reentrant=False)

    module, x = holder(call, **linear), signs(*ROWS)
    result = compiled(module, x)
    ((reason, count),) = result.reasons.items()
    assert reason.startswith("inside the higher-order region ")
    assert count == 1
    assert torch.equal(result.output, module(x))


def test_a_users_function_of_the_same_name_is_left_alone():
    library = torch.library.Library("other", "DEF")
    library.define("linear(Tensor x, Tensor w) -> Tensor")
    library.impl("linear", lambda x, w: x @ w.t() + 1, "CompositeExplicitAutograd")
    torch.library.register_fake("other::linear", lambda x, w: x.new_empty(x.shape[0], w.shape[0]), lib=library)
    module, x = holder(lambda m, x: torch.ops.other.linear.default(x, m.w), **linear), signs(*ROWS)
    result = compiled(module, x)
    assert result.reasons == {}
    assert torch.equal(result.output, module(x))


def test_operator_packets_are_found():
    module, x = holder(lambda m, x: torch.ops.aten.mm(x, m.w), **transposed), signs(*ROWS)
    result = compiled(module, x)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, module(x))


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@needs("torchao")
def test_a_linear_of_torchao_is_left_alone():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(64, 32)).requires_grad_(False)
    quantize_(model, Int8WeightOnlyConfig())
    x = torch.randn(4, 64)
    result = compiled(model, x)
    assert "rewritten" not in result.reasons
    assert sum(result.reasons.values()) >= 1
    torch.testing.assert_close(result.output, model(x))


@needs("bitsandbytes")
def test_a_linear_of_bitsandbytes_is_left_alone():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(torch.randn(32, 64), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").requires_grad_(False)
    x = torch.randn(4, 64)
    layer(x)  # its first call quantizes
    torch._dynamo.reset()
    output = torch.compile(layer, backend="int8mixed", options={"lowering": "eager"})(x)
    torch.testing.assert_close(output, layer(x))


@pytest.mark.parametrize("name", ("bitsandbytes", "torchao", "quantized"))
def test_ops_of_quantizing_libraries_are_recorded(name):
    kind = "FRAGMENT" if hasattr(torch.ops, name) else "DEF"
    library = torch.library.Library(name, kind)
    library.define("int8pass_test_linear(Tensor x, Tensor w) -> Tensor")
    library.impl("int8pass_test_linear", lambda x, w: x @ w.t(), "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"{name}::int8pass_test_linear", lambda x, w: x.new_empty(x.shape[0], w.shape[0]), lib=library
    )
    op = getattr(torch.ops, name).int8pass_test_linear.default
    result = compiled(holder(lambda m, x: op(x, m.w), **linear), signs(*ROWS))
    assert result.reasons == {f"already quantized by {name}": 1}


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
