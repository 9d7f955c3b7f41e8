"""The rewrite: its text in each configuration, its inputs, its gradient, and what it refuses."""

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from int8pass import weight_cache
from int8pass.passes.canonicalize_linear import canonicalize_linear
from int8pass.passes.linear_to_int8_mixed import linear_to_int8_mixed
from int8pass.passes.select_linear import select_linear
from tests import reference
from tests.graphs import Holder, compiled, exported, holder, parameter, program_of, signs, text_of

captures = pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
bias_and_weight = dict(w=(6, 16), b=(6,))


def linear(m, x):
    return F.linear(x, m.w, m.b)


def normal(*shape, dtype=torch.float32):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[..., 3] *= 10
    return x.to(dtype)


@captures
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("threshold", (0.0, 3.0))
@pytest.mark.parametrize("outliers", reference.OUTLIERS)
@pytest.mark.parametrize("outlier_weights", reference.OUTLIER_WEIGHTS)
def test_values_are_those_of_the_reference(dtype, threshold, outliers, outlier_weights, capture):
    layer = nn.Linear(16, 6).requires_grad_(False)
    layer.weight.copy_(normal(6, 16))
    layer.bias.copy_(normal(6))
    layer, x = layer.to(dtype), normal(2, 5, 16, dtype=dtype)
    module = Holder(lambda m, x: F.linear(x, m.w, m.b), w=layer.weight, b=layer.bias)
    options = dict(threshold=threshold, outliers=outliers, outlier_weights=outlier_weights)
    result = capture(module, x, **options)
    rows, w, b = (tensor.float().numpy() for tensor in (x.view(-1, 16), layer.weight, layer.bias))
    y, magnitude = reference.linear(rows, w, b, **options)
    bound = reference.tolerance(y, magnitude, 16, torch.finfo(dtype).eps)
    assert result.output.dtype == dtype
    assert (abs(result.output.view(-1, 6).double().numpy() - y) <= bound).all()


@captures
def test_a_weight_of_several_calls_is_quantized_once(capture, monkeypatch):
    calls = []

    def counting(weight, form):
        calls.append(tuple(weight.shape))
        return quantize(weight, form)

    quantize = weights.quantize_weight
    monkeypatch.setattr(weight_cache, "quantize_weight", counting)
    module = holder(lambda m, x: F.linear(F.linear(x, m.w), m.w) @ m.w, w=(16, 16))
    result = capture(module, signs(4, 16))
    assert result.reasons == {"rewritten": 3}
    # w itself, and w.t() for the matmul
    assert calls == [(16, 16), (16, 16)]
    assert len(result.program.weight_inputs) == 4


def test_a_second_graph_quantizes_nothing(monkeypatch):
    module, x = holder(linear, **bias_and_weight), signs(4, 16)
    compiled(module, x)
    monkeypatch.setattr(weight_cache, "quantize_weight", None)
    assert torch.equal(compiled(module, x).output, module(x))


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
def test_refusal_of_a_weight_that_is_not_finite(bad):
    module, x = holder(linear, **bias_and_weight), signs(4, 16)
    module.w[2, 3] = bad
    result = compiled(module, x)
    assert result.reasons == {"the weight holds NaN or infinity": 1}
    torch.testing.assert_close(result.output, module(x), equal_nan=True)


def test_refusal_of_a_weight_that_would_overflow():
    module, x = holder(linear, **bias_and_weight), signs(4, 16)
    module.w.fill_(1e36)
    assert compiled(module, x).reasons == {"the weight is so large that its products overflow float32": 1}


def test_the_float_weight_is_read_by_original_outliers_only():
    module, x = holder(linear, **bias_and_weight), signs(4, 16)
    for options, read in (({}, True), ({"outlier_weights": "dequantized"}, False), ({"threshold": 0.0}, False)):
        program = compiled(module, x, **options).program
        names = [program.tensors[node.name].name for node in program.graph.nodes if node.name in program.tensors]
        assert ("w" in names) is read
        assert "b" in names


def test_count_and_order_of_the_inputs():
    program = program_of(holder(linear, **bias_and_weight), signs(4, 16))
    canonicalize_linear(program)
    select_linear(program)
    assert linear_to_int8_mixed(program) == 1
    assert not program.linears
    placeholders = [node.name for node in program.graph.find_nodes(op="placeholder")]
    assert placeholders[-2:] == list(program.weight_inputs)
    assert program.input_names == tuple(placeholders[:-2])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("outlier_weights", reference.OUTLIER_WEIGHTS)
def test_gradient_of_the_activation(dtype, outlier_weights):
    module = Holder(linear, w=parameter(6, 16, dtype=dtype), b=parameter(6, dtype=dtype))
    module.b.requires_grad_()
    x = normal(3, 4, 16, dtype=dtype).requires_grad_()
    result = compiled(module, x, grad=True, outlier_weights=outlier_weights)
    assert result.reasons == {"rewritten": 1}
    assert result.operations["straight_through"] == 1
    gradient = normal(3, 4, 6, dtype=dtype)
    result.output.backward(gradient)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(x.grad, gradient @ module.w, rtol=4 * eps, atol=16 * eps)
    torch.testing.assert_close(module.b.grad, gradient.sum((0, 1)), rtol=4 * eps, atol=64 * eps)


def test_without_a_gradient_nothing_is_detached():
    operations = compiled(holder(linear, **bias_and_weight), signs(4, 16), grad=True).operations
    assert operations["straight_through"] == operations["detach"] == 0


class TestText(expecttest.TestCase):
    def after(self, *, call=linear, x=None, grad=False, **options):
        module = holder(call, **bias_and_weight)
        program = program_of(module, signs(4, 16) if x is None else x, grad=grad, **options)
        canonicalize_linear(program)
        select_linear(program)
        self.assertEqual(linear_to_int8_mixed(program), 1)
        return text_of(program)

    def test_default(self):
        self.assertExpectedInline(
            self.after(),
            """\
%outlier_mask : bool[16] = int8pass.outlier_mask(%x, 6.0, 'column')
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %w_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %w)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, %outlier_mm, %b, float32)
return (%dequantize,)
""",
        )

    def test_token_and_dequantized(self):
        self.assertExpectedInline(
            self.after(outliers="token", outlier_weights="dequantized"),
            """\
%outlier_mask : bool[4, 16] = int8pass.outlier_mask(%x, 6.0, 'token')
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %w_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %w_codes, %w_scale)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, %outlier_mm, %b, float32)
return (%dequantize,)
""",
        )

    def test_no_outliers_no_bias(self):
        self.assertExpectedInline(
            self.after(call=lambda m, x: F.linear(x, m.w), threshold=0.0),
            """\
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, None)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token, None)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %w_codes)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, None, None, float32)
return (%dequantize,)
""",
        )

    def test_gradient(self):
        self.assertExpectedInline(
            self.after(x=signs(4, 16).requires_grad_(), grad=True),
            """\
%detach : f32[4, 16] = aten.detach(%x)
%outlier_mask : bool[16] = int8pass.outlier_mask(%detach, 6.0, 'column')
%scale_per_token : f32[4] = int8pass.scale_per_token(%detach, %outlier_mask)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%detach, %scale_per_token, %outlier_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %w_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%detach, %outlier_mask, %w)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, %outlier_mm, None, float32)
%straight_through : f32[4, 6] = int8pass.straight_through(%dequantize, %x, %w_codes, %w_scale)
%add : f32[4, 6] = aten.add.Tensor(%straight_through, %b)
%to : f32[4, 6] = aten.to.dtype(%add, float32)
return (%to,)
""",
        )
