"""Every spelling of a Linear becomes aten.linear, with exactly the same values."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graphs import Holder, compiled, exported, holder, parameter, signs, with_outliers
from tests.passes.linear_shapes import IN, OUT, ROWS, linear, linear_bias, transposed, transposed_bias

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


def test_operator_packets_are_found():
    module, x = holder(lambda m, x: torch.ops.aten.mm(x, m.w), **transposed), signs(*ROWS)
    result = compiled(module, x)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, module(x))
