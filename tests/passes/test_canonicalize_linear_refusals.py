"""What is no Linear of a weight is left as it is and recorded with a reason."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from int8pass.passes.canonicalize_linear import canonicalize_linear
from tests.graphs import compiled, exported, holder, program_of, signs
from tests.passes.linear_shapes import IN, OUT, ROWS, linear, transposed_bias


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
    "a convolution of width 1": (lambda m, x: F.conv1d(x, m.w, m.b), dict(w=(OUT, IN, 1), b=(OUT,)), ((2, IN, 4),)),
    "reflected matmul": (lambda m, x: x.__rmatmul__(m.w), dict(w=(OUT, 4)), (ROWS,)),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusal(reason):
    call, shapes, inputs = REFUSALS[reason]
    module, inputs = holder(call, **shapes), [signs(*shape) for shape in inputs]
    result = compiled(module, *inputs)
    assert result.reasons == {reason: 1}
    assert torch.equal(result.output, module(*inputs))


@pytest.mark.parametrize("width, reasons", ((1, {"a convolution of width 1": 1}), (3, {})))
@pytest.mark.parametrize("run", (compiled, exported))
@pytest.mark.filterwarnings("ignore:int8mixed rewrote nothing")
def test_of_convolutions_those_of_width_1_are_recorded(run, width, reasons):
    layer = nn.Conv1d(IN, OUT, width).requires_grad_(False)
    assert run(layer, signs(2, IN, 4)).reasons == reasons


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
