"""Weight scales by group: the ops, the backend and Int8Linear against the NumPy reference, and what refuses them."""

# ruff: noqa: E501 (golden texts)

import math

import expecttest
import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from int8pass import Int8Linear, calibrate, convert, explain, export_onnx, ops, quantize_
from int8pass.composition import call_op, quantize_activation
from int8pass.errors import ConfigError, WeightError
from int8pass.inspection.debug import diagnose
from int8pass.inspection.memory import weight_memory
from int8pass.quantization import ActivationQuantization, Scheme, WeightQuantization
from int8pass.weight_cache import WEIGHTS
from int8pass.weight_expression import WeightExpression
from int8pass.weights import quantize_weight
from tests import reference, reference_schemes
from tests.graphs import compiled, holder, signs
from tests.linear_models import exported, frozen, relative_error, reloaded
from tests.test_exactness import DTYPES, array, assert_close, linear
from tests.test_exactness import activation as drawn_activation


def scheme(size=32, symmetric=True, granularity="per_token", decomposition=True, estimator="absmax"):
    weights = WeightQuantization("per_group", estimator, group_size=size)
    return Scheme(f"groups of {size}", ActivationQuantization(granularity, symmetric), weights, decomposition)


symmetries = pytest.mark.parametrize("symmetric", (True, False), ids=("symmetric", "asymmetric"))


def grouped(w, size):
    """Codes int64[N, K] and scale float32[N, K] of w[N, K], by the reference: each group is a row of its own."""
    rows = np.asarray(w, np.float32).reshape(-1, size)
    scale = reference_schemes.weight_scale(rows, "per_channel")
    codes = reference_schemes.weight_codes(rows, scale)
    return codes.reshape(w.shape), np.repeat(scale.reshape(len(w), -1), size, axis=1)


def expected(form, x, layer, threshold, outliers, outlier_weights):
    """y float64[M, N] of the reference with the codes that the ops give x, and the allowed difference."""
    mask = ops.outlier_mask(x, threshold, outliers) if threshold else None
    codes, scale, point = quantize_activation(call_op, form.activations, x, mask)
    rows = (len(x), 1)
    scale = scale.unsqueeze(-1).expand(rows).double().numpy()
    point = 0 if point is None else point.unsqueeze(-1).expand(rows).numpy().astype(np.int64)
    w = array(layer.weight)
    w_codes, w_scale = grouped(w, form.weights.group_size)
    restored = w_codes * w_scale.astype(np.float64)
    weight = restored if outlier_weights == "dequantized" else w
    known = reference.outlier_mask(array(x), threshold, outliers)
    with np.errstate(all="ignore"):
        sums, magnitude = reference._products(codes.numpy().astype(np.int64) - point, restored)
        outlier, outlier_magnitude = reference._outlier_part(array(x), known, weight)
        bias = np.zeros(1) if layer.bias is None else array(layer.bias)
        y = sums * scale + outlier + bias
        magnitude = magnitude * scale + outlier_magnitude + np.abs(bias)
    finfo = torch.finfo(x.dtype)
    return y, reference.tolerance(y, magnitude, x.shape[1], finfo.eps) + finfo.smallest_normal + reference.FLOAT32.tiny


# --- declarations and weights


def test_declarations():
    for size in (32, 64, 128):
        assert scheme(size).weights.scale_shape(6, 256) == (6, 256 // size)
        assert not scheme(size).has_default_form
    for size in (None, 0, 16, 48, "32"):
        with pytest.raises(ConfigError, match=r"group_size must be one of \(32, 64, 128\)"):
            WeightQuantization("per_group", group_size=size)
    with pytest.raises(ConfigError, match=r"group_size must be one of \(None,\)"):
        WeightQuantization("per_channel", group_size=32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", (32, 64, 128))
@pytest.mark.parametrize("transposed", (False, True))
def test_weights_are_quantized_as_the_reference_does(dtype, size, transposed):
    w = torch.randn((256, 7) if transposed else (7, 256), generator=torch.Generator().manual_seed(0)).to(dtype)
    w = w.t() if transposed else w
    w[3, 7], w[5] = 30.0, 0.0
    found = quantize_weight(w, WeightQuantization("per_group", group_size=size))
    codes, scale = grouped(array(w), size)
    np.testing.assert_array_equal(found.codes.numpy(), codes)
    np.testing.assert_array_equal(found.scale.numpy(), scale[:, ::size])
    np.testing.assert_array_equal(found.code_sums.numpy(), codes.reshape(7, -1, size).sum(-1))
    for field in ("codes", "scale", "code_sums"):
        like = getattr(found, field)
        assert (found.empty(field).shape, found.empty(field).dtype) == (like.shape, like.dtype)


def test_weights_that_cannot_be_quantized():
    form = WeightQuantization("per_group", group_size=64)
    with pytest.raises(WeightError, match="K = 100 is not a multiple of the group size 64"):
        quantize_weight(torch.randn(3, 100), form)
    bad = torch.randn(3, 128)
    bad[1, 70] = float("nan")
    with pytest.raises(WeightError, match="NaN or infinity"):
        quantize_weight(bad, form)
    with pytest.raises(WeightError, match="overflow float32"):
        quantize_weight(torch.full((3, 128), 1e36), form)


# --- ops


@symmetries
@pytest.mark.parametrize("shape", ((64,), (5, 64), (2, 3, 64), (0, 64)), ids=str)
@pytest.mark.parametrize("per_tensor", (False, True))
def test_product_and_opcheck(shape, symmetric, per_tensor):
    generator = torch.Generator().manual_seed(0)
    x_q, w_q = (torch.randint(-127, 128, size, generator=generator, dtype=torch.int8) for size in (shape, (6, 64)))
    w_scale = torch.rand((6, 2), generator=generator)
    leading = () if per_tensor else shape[:-1]
    point = None if symmetric else torch.randint(-127, 128, leading, generator=generator, dtype=torch.int32)
    code_sums = None if symmetric else w_q.view(6, 2, 32).sum(-1, dtype=torch.int32)
    arguments = (x_q, point, w_q, w_scale, code_sums)
    found = ops.grouped_int8_mm(*arguments)
    shifted = x_q.double() - (0 if symmetric else point.unsqueeze(-1))
    wanted = shifted @ (w_q * w_scale.double().repeat_interleave(32, 1)).t()
    assert (found.shape, found.dtype) == ((*shape[:-1], 6), torch.float32)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0.05)
    torch.library.opcheck(ops.grouped_int8_mm, arguments, test_utils=("test_schema", "test_faketensor"))
    scale, bias = torch.rand(leading), torch.rand(6)
    call = (found, scale, torch.ones_like(found), bias, torch.float16)
    torch.library.opcheck(ops.dequantize_grouped, call, test_utils=("test_schema", "test_faketensor"))
    y = ops.dequantize_grouped(*call)
    torch.testing.assert_close(y, (found * scale.unsqueeze(-1) + 1 + bias).half(), rtol=1e-3, atol=1e-3)


def test_straight_through_passes_the_gradient_through_the_dequantized_weight():
    x = torch.randn(3, 64, requires_grad=True)
    y, w_q, w_scale = torch.randn(3, 6), torch.randint(-127, 128, (6, 64), dtype=torch.int8), torch.rand(6, 2)
    gradient = torch.randn(3, 6)
    ops.straight_through(y.requires_grad_(), x, w_q, w_scale).backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ (w_q * w_scale.repeat_interleave(32, 1)), rtol=1e-5, atol=1e-4)


# --- through the backend


@st.composite
def cases(draw):
    size, groups = draw(st.sampled_from((32, 64, 128))), draw(st.integers(1, 3))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**16))
    form = scheme(size, draw(st.booleans()), draw(st.sampled_from(reference_schemes.GRANULARITIES)))
    special = draw(st.dictionaries(st.integers(0, 8), st.sampled_from(("zero", "nan", "infinite")), max_size=2))
    x = drawn_activation(9, size * groups, dtype, seed, draw(st.sampled_from(([], [3, 40 % size]))), special)
    options = dict(
        threshold=draw(st.sampled_from((0.0, 3.0, 6.0))),
        outliers=draw(st.sampled_from(reference.OUTLIERS)),
        outlier_weights=draw(st.sampled_from(reference.OUTLIER_WEIGHTS)),
    )
    return form, x, linear(size * groups, draw(st.integers(1, 20)), dtype, seed, draw(st.booleans())), options


@hypothesis.settings(max_examples=50, derandomize=True, deadline=None, database=None)
@hypothesis.given(cases())
def test_backend_equals_the_reference(case):
    form, x, layer, options = case
    torch._dynamo.reset()
    with torch.no_grad():
        run = torch.compile(layer, backend="int8mixed", options={"scheme": form, "lowering": "eager", **options})
        y = run(x)
        held = Int8Linear.from_linear(layer, scheme=form, threshold=options["threshold"], outliers=options["outliers"])(
            x
        )
    assert_close(y, *expected(form, x, layer, **options))
    assert_close(held, *expected(form, x, layer, **{**options, "outlier_weights": "dequantized"}))


@pytest.mark.inductor
def test_inductor_equals_eager():
    layer, x = linear(128, 24, torch.float32, 0, True), drawn_activation(9, 128, torch.float32, 0, [3], {2: "nan"})
    results = []
    for lowering in ("eager", "inductor"):
        torch._dynamo.reset()
        options = {"scheme": scheme(64, symmetric=False), "lowering": lowering}
        with torch.no_grad():
            results.append(torch.compile(layer, backend="int8mixed", options=options)(x))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=0.02, equal_nan=True)


def model(k=64):
    torch.manual_seed(0)
    return frozen(nn.Sequential(nn.Linear(k, 128), nn.ReLU(), nn.Linear(128, 40)))


@symmetries
def test_programs_and_modules_round_trip(symmetric):
    form, x = scheme(symmetric=symmetric), torch.randn(5, 64)
    program = convert(exported(model(), x), options={"scheme": form, "outlier_weights": "dequantized"})
    wanted = program.module()(x)
    assert 0 < relative_error(wanted, model()(x)) < 0.02
    assert torch.equal(reloaded(program).module()(x), wanted)
    made = quantize_(model(), options={"scheme": form})
    assert torch.equal(made(x), wanted)
    assert made[0].scale.shape == (128, 2) and relative_error(made[0].dequantized(), model()[0].weight) < 0.01
    with torch.device("meta"):
        empty = quantize_(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 40)), options={"scheme": form})
    empty.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(empty.requires_grad_(False)(x), wanted)
    again = compiled(made, x)
    assert again.reasons == {"already int8 (Int8Linear)": 2} and torch.equal(again.output, wanted)


def test_finer_groups_are_nearer_to_float():
    """A row whose halves differ in size by a thousand: one scale for both loses the smaller, which is all x sees."""
    layer, x = frozen(nn.Linear(128, 16, bias=False)), torch.randn(9, 128)
    layer.weight[:, :64] *= 1e-3
    x[:, 64:] = 0.0

    def error(form):
        torch._dynamo.reset()
        found = torch.compile(layer, backend="int8mixed", options={"scheme": form, "lowering": "eager"})(x)
        return relative_error(found, layer(x))

    assert error(scheme(64)) < 0.02 < 0.1 < error("llm.int8")


def test_a_linear_that_does_not_divide_into_groups_is_skipped():
    module, x = holder(lambda m, x: F.linear(x, m.w), w=(6, 100)), signs(4, 100)
    result = compiled(module, x, scheme=scheme(64))
    assert result.reasons == {"K = 100 is not a multiple of the group size 64": 1}
    assert torch.equal(result.output, module(x))


def test_static_activations():
    layer, x = linear(128, 24, torch.float32, 0, True), drawn_activation(9, 128, torch.float32, 0, [3], {})
    profile = calibrate(layer, [x], progress=False)
    options = {"scheme": scheme(64), "activations": "static", "profile": profile, "lowering": "eager"}
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(layer, backend="int8mixed", options=options)(x)
    assert 0 < relative_error(found, layer(x)) < 0.02


# --- what reads rewritten graphs


def test_inspection():
    form, x = scheme(symmetric=False), torch.randn(5, 64)
    made = model()
    report = explain(made, (x,), options={"scheme": form}, timings=True)
    torch._dynamo.reset()
    found = torch.compile(made, backend="int8mixed", options={"scheme": form, "lowering": "eager"})(x)
    total = diagnose(made, (x,), options={"scheme": form}).total_db
    assert total == pytest.approx(-20 * math.log10(relative_error(found, made(x))), abs=0.05)
    assert all(row.snr_db > 35 and row.timing.gemm > 0 for row in report.rows)
    weight = made[0].weight
    memory = weight_memory(weight, WeightExpression("w"), kept_float=False, fused=True, scheme=form)
    held = WEIGHTS.get(weight, "", lambda tensor: tensor, form.weights).quantized
    _ = held.code_sums
    assert memory.int8 == held.nbytes == report.rows[0].bytes_int8


def test_files_refuse_groups(tmp_path):
    with pytest.raises(ConfigError, match="the schemes of files are"):
        export_onnx(model(), (torch.randn(4, 64),), tmp_path / "model.onnx", options={"scheme": scheme()})


class TestText(expecttest.TestCase):
    def after(self, form):
        module = holder(lambda m, x: F.linear(x, m.w, m.b), w=(6, 64), b=(6,))
        return compiled(module, signs(4, 64), scheme=form, outlier_weights="dequantized").text("linear_to_int8_mixed")

    def test_symmetric(self):
        self.assertExpectedInline(
            self.after(scheme()),
            """\
%outlier_mask : bool[64] = int8pass.outlier_mask(%x, 6.0, 'column')
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
%quantize_per_token : i8[4, 64] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
%grouped_int8_mm : f32[4, 6] = int8pass.grouped_int8_mm(%quantize_per_token, None, %w_codes, %w_scale, None)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %w_codes, %w_scale)
%dequantize_grouped : f32[4, 6] = int8pass.dequantize_grouped(%grouped_int8_mm, %scale_per_token, %outlier_mm, %b, float32)
return (%dequantize_grouped,)
""",
        )

    def test_asymmetric(self):
        self.assertExpectedInline(
            self.after(scheme(symmetric=False)),
            """\
%outlier_mask : bool[64] = int8pass.outlier_mask(%x, 6.0, 'column')
%asymmetric_scale : f32[4] = int8pass.asymmetric_scale(%x, %outlier_mask, 'per_token')
%zero_point : i32[4] = int8pass.zero_point(%x, %asymmetric_scale, %outlier_mask, 'per_token')
%quantize_asymmetric : i8[4, 64] = int8pass.quantize_asymmetric(%x, %asymmetric_scale, %zero_point, %outlier_mask)
%grouped_int8_mm : f32[4, 6] = int8pass.grouped_int8_mm(%quantize_asymmetric, %zero_point, %w_codes, %w_scale, %w_code_sums)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %w_codes, %w_scale)
%dequantize_grouped : f32[4, 6] = int8pass.dequantize_grouped(%grouped_int8_mm, %asymmetric_scale, %outlier_mm, %b, float32)
return (%dequantize_grouped,)
""",
        )
