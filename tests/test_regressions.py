"""Wrong results that were found once: broadcast biases, weights that a graph writes to, modes, the fused kernel."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from int8pass import convert
from int8pass.kernels.cpu import fused
from int8pass.kernels.cpu.packing import code_offset, pack
from tests.graphs import Holder, compiled, exported, holder, signs
from tests.linear_models import frozen, relative_error

IN, OUT, ROWS = 64, 512, 4
LOWERINGS = ("eager", pytest.param("inductor", marks=pytest.mark.inductor))
needs_kernel = pytest.mark.skipif(not fused.is_available(), reason="needs a compiler")


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each test starts without compiled code."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# --- broadcast biases


def biased_linear(m, x):
    return F.linear(x, m.w, m.b)


def biased_addmm(m, x):
    return torch.addmm(m.b, x, m.w.t())


@pytest.mark.parametrize("bias", ((1,), (ROWS, OUT)))
@pytest.mark.parametrize("capture", (compiled, exported))
def test_broadcast_bias_is_added_after_the_linear(capture, bias):
    model, x = holder(biased_linear, w=(OUT, IN), b=bias), signs(ROWS, IN)
    result = capture(model, x)
    assert result.reasons == {"rewritten": 1} and result.operations["add"] == 1
    torch.testing.assert_close(result.output, model(x))


@pytest.mark.parametrize("bias", ((1,), (ROWS, OUT)))
@pytest.mark.parametrize("is_exported", (False, True))
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_broadcast_bias_gives_the_result_of_the_float_model(lowering, is_exported, bias):
    model, x = holder(biased_linear, w=(OUT, IN), b=bias), signs(ROWS, IN)
    given = convert(model, (x,)) if is_exported else model
    result = torch.compile(given, backend="int8mixed", options={"lowering": lowering})(x)
    torch.testing.assert_close(result, model(x))


@pytest.mark.parametrize("call", (biased_addmm, biased_linear))
def test_broadcast_bias_keeps_the_dtype_of_autocast(call):
    model, x = holder(call, w=(OUT, IN), b=(1, OUT)), signs(ROWS, IN)
    with torch.autocast("cpu", torch.bfloat16):
        expected, result = model(x), compiled(model, x).output
    assert result.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected)


# --- a bias that another mode adds


def test_bias_is_not_absorbed_into_a_product_without_gradients():
    def call(m, x):
        with torch.no_grad():
            y = x @ m.w
        return y + m.b

    model = Holder(call, w=signs(IN, OUT), b=nn.Parameter(signs(OUT)))
    x = signs(ROWS, IN).requires_grad_()
    result = compiled(model, x, grad=True)
    assert result.reasons == {"rewritten": 1}
    result.output.sum().backward()
    assert x.grad is None and model.b.grad is not None


def test_bias_is_not_absorbed_into_a_product_under_autocast():
    def call(m, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ m.w
        return y + m.b

    model, x = Holder(call, w=signs(IN, OUT), b=signs(OUT, dtype=torch.bfloat16)), signs(ROWS, IN)
    result = compiled(model, x)
    assert result.reasons == {"rewritten": 1} and result.operations["add"] == 1
    torch.testing.assert_close(result.output, model(x))


# --- spellings


def test_einsum_that_stretches_the_weight_stays_float():
    model, x = holder(lambda m, x: torch.einsum("bd,df->bf", x, m.w), w=(1, OUT)), signs(ROWS, 8)
    result = compiled(model, x)
    assert result.reasons == {"einsum that stretches a dimension of size 1": 1}
    assert torch.equal(result.output, model(x))


def test_shape_function_of_int8_mm_refuses_differing_inner_sizes():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="differ in K"):
        torch.ops.int8pass.int8_mm(torch.empty(4, 8, dtype=torch.int8), torch.empty(6, 1, dtype=torch.int8))


def test_inner_is_rewritten():
    model, x = holder(lambda m, x: torch.inner(x, m.w), w=(OUT, IN)), signs(2, ROWS, IN)
    result = compiled(model, x)
    assert result.reasons == {"rewritten": 1}
    torch.testing.assert_close(result.output, model(x))


def test_tensordot_is_recorded_as_skipped():
    model, x = holder(lambda m, x: torch.tensordot(x, m.w, dims=([1], [1])), w=(OUT, IN)), signs(ROWS, IN)
    result = compiled(model, x)
    assert result.reasons == {"tensordot is not matched: write it as matmul": 1}
    torch.testing.assert_close(result.output, model(x))


# --- weights that the graph writes to


def through_a_diagonal(m, x):
    m.w.diagonal().zero_()
    return F.linear(x, m.w)


def through_a_list(m, x):
    torch._foreach_mul_([m.w], -1.0)
    return F.linear(x, m.w)


def through_an_alias(m, x):
    m.alias.mul_(-1.0)
    return F.linear(x, m.w)


@pytest.mark.parametrize("write", (through_a_diagonal, through_a_list, through_an_alias))
def test_weight_that_the_graph_writes_to_stays_float(write):
    weight, x = 5 * torch.eye(IN) + signs(IN, IN), signs(ROWS, IN)
    model = Holder(write, w=weight, alias=weight.view(-1)) if write is through_an_alias else Holder(write, w=weight)
    expected = copy.deepcopy(model)(x)
    result = compiled(model, x)
    assert result.reasons == {"the weight is written to in the graph": 1}
    assert torch.equal(result.output, expected)


# --- the fused kernel


def kernel_arguments(outputs=64, columns=256):
    """The arguments of cpu_linear, by name; every feature is an outlier."""
    x = torch.randn(ROWS, columns).abs() + 10.0
    weight = torch.randint(-127, 128, (outputs, columns), dtype=torch.int8)
    codes, scale, outliers = fused.cpu_quantize(x, 6.0, False)
    quantized = dict(codes=codes, scale=scale, outliers=outliers, packed=pack(weight), offset=code_offset(weight))
    rest = dict(w_scale=torch.full((outputs,), 1 / 127), bias=None, weight=None, cache=None)
    return dict(x=x, **quantized, **rest, threshold=6.0, per_token=False, dtype=torch.float32)


WRONG = {
    "bias": lambda: torch.zeros(1),
    "weight": lambda: torch.zeros(64, 1),
    "packed": lambda: pack(torch.zeros(64, 4, dtype=torch.int8)),
}


@needs_kernel
@pytest.mark.parametrize("name", WRONG)
def test_kernel_raises_on_a_wrong_shape(name):
    with pytest.raises(RuntimeError, match=name):
        fused.cpu_linear(**{**kernel_arguments(), name: WRONG[name]()})


@needs_kernel
def test_kernel_with_many_outliers_is_the_same_under_autocast():
    arguments = kernel_arguments()
    assert int(arguments["outliers"].sum()) > 64
    expected = fused.cpu_linear(**arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused.cpu_linear(**arguments), expected)


HALF_BY_DEFAULT = """
import torch
torch.set_default_dtype(torch.bfloat16)
from int8pass.kernels.cpu import fused
assert fused.is_available()
"""


@needs_kernel
def test_kernel_is_available_with_another_default_dtype():
    result = subprocess.run([sys.executable, "-c", HALF_BY_DEFAULT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.inductor
def test_cpp_wrapper():
    model, x = frozen(nn.Linear(IN, OUT)), torch.randn(ROWS, IN)
    result = torch.compile(model, backend="int8mixed", options={"inductor": {"cpp_wrapper": True}})(x)
    assert 0 < relative_error(result, model(x)) < 0.03
