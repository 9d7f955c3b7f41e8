"""activations="static": scales from a profile's ranges, what lies past them is clamped and counted, NaN is never hidden."""

# ruff: noqa: E501 (golden texts)

import dataclasses
import json

import expecttest
import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from int8pass import Int8MixedConfig, calibrate, convert, explain, export_onnx, ops, quantize_
from int8pass.errors import ConfigError, ProfileError
from int8pass.graph import operation
from int8pass.inspection.debug import diagnose
from int8pass.kernels.cpu import fused
from int8pass.kernels.cpu.packing import code_offset, pack
from int8pass.quantization import SCHEMES
from int8pass.quantization.static import StaticScale, count_clamped, static_scale
from tests import reference, reference_schemes
from tests.graphs import compiled, holder, program_of, signs
from tests.linear_models import IN, Mlp, activation, exported, frozen, relative_error, reloaded
from tests.test_cli import make
from tests.test_exactness import DTYPES, array, assert_close, linear

NAN, INF = float("nan"), float("inf")
schemes = pytest.mark.parametrize("name", SCHEMES)


def compile_eager(call, **options):
    torch._dynamo.reset()
    return torch.compile(call, backend="int8mixed", options={"lowering": "eager", **options}, fullgraph=True)


def profile_of(model, *batches, name="llm.int8", **keywords):
    return calibrate(model, list(batches), options={"scheme": name}, progress=False, **keywords)


def static(profile, name="llm.int8", **options):
    return {"scheme": name, "activations": "static", "profile": profile, **options}


def reference_codes(x, mask, scale, point):
    """Codes int64[M, K] and scale float32[M, 1] of finite x[M, K]; the scale of other rows is NaN."""
    values = np.where(mask, np.float32(0), np.asarray(x, np.float32))
    with np.errstate(all="ignore"):
        quotient = np.round(values / np.float32(scale or INF))
        codes = (np.where(np.isnan(quotient), 0, quotient) + point).clip(-127, 127)
    finite = np.isfinite(values).all(1, keepdims=True)
    return codes.astype(np.int64), np.where(finite, np.float32(scale), np.float32(NAN))


# --- the scale of a range


def test_scale_of_a_range():
    assert static_scale(-1.0, 1.0, symmetric=False) == StaticScale(float(np.float32(1) / np.float32(127)), 0)
    assert static_scale(-2.0, 6.0, symmetric=True) == StaticScale(float(np.float32(6) / np.float32(127)), 0)
    assert static_scale(2.0, 4.0, symmetric=False).zero_point == -127  # a range always holds 0
    assert static_scale(0.0, 0.0, symmetric=False) == static_scale(0.0, 0.0, symmetric=True) == StaticScale(0.0, 0)


@hypothesis.settings(max_examples=100, derandomize=True, deadline=None, database=None)
@hypothesis.given(
    st.lists(st.lists(st.floats(width=32), min_size=5, max_size=5), min_size=1, max_size=4),
    st.floats(-9, 9, width=32),
    st.floats(-9, 9, width=32),
    st.booleans(),
    st.sampled_from((None, "column", "token")),
)
def test_any_values_are_quantized_as_the_reference_does(numbers, one, other, symmetric, outliers):
    x, found = torch.tensor(numbers), static_scale(min(one, other), max(one, other), symmetric)
    mask = None if outliers is None else ops.outlier_mask(x, 6.0, outliers)
    codes, scale = reference_codes(x, False if mask is None else mask.numpy(), *found)
    np.testing.assert_array_equal(ops.quantize_static(x, *found, mask).numpy(), codes)
    np.testing.assert_array_equal(ops.static_scale(x, found.scale, mask).unsqueeze(-1).numpy(), scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((8,), (5, 8), (2, 3, 8), (0, 8)), ids=str)
def test_opcheck(shape, dtype):
    x = torch.randn(shape).to(dtype)
    for mask in (None, ops.column_mask(x, (2, 3))):
        torch.library.opcheck(ops.quantize_static, (x, 0.02, -3, mask))
        torch.library.opcheck(ops.static_scale, (x, 0.02, mask))
    torch.library.opcheck(ops.static_zero_point, (x, -3))
    assert (ops.static_zero_point(x, -3).item(), ops.static_zero_point(x, -3).dtype) == (-3, torch.int32)


def test_what_lies_past_the_range_is_counted():
    found = static_scale(-1.0, 2.0, symmetric=False)
    x = torch.tensor([[-1.0, 2.0, 0.0, -1.5], [9.0, 2.001, INF, -9.0]])
    assert count_clamped(x, found) == 4
    assert count_clamped(x, found, torch.tensor([True, False, True, False])) == 2


# --- through the backend


@schemes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backend_equals_the_reference(name, dtype):
    scheme, layer = SCHEMES[name], linear(37, 24, dtype, 0, True)
    x = torch.randn((7, 37), generator=torch.Generator().manual_seed(0)) + 0.5
    x[:, 3] = 9.0
    profile = profile_of(layer, x.to(dtype), name=name)
    options = static(profile, name)
    (entry,) = profile.layers
    assert entry.outlier_columns == ((3,) if scheme.decomposition else ())
    x[2, 9], x[4, 5], x[5, 6] = 3.0 * entry.maximum, NAN, INF  # 9 or more: clamped all the same, as the profile says
    x = x.to(dtype)
    with torch.no_grad():
        y = compile_eager(layer, **options)(x)
    mask = np.zeros(37, bool)
    mask[list(entry.outlier_columns)] = True
    found = static_scale(*entry.range, scheme.activations.symmetric)
    codes, scale = reference_codes(array(x), mask, *found)
    point = np.full((7, 1), found.zero_point)
    w, bias = array(layer.weight), array(layer.bias)
    w_scale = reference_schemes.weight_scale(w, scheme.weights.granularity)
    sums, magnitude = reference._products(codes - point, reference_schemes.weight_codes(w, w_scale))
    in_16_bit = (w / w_scale.clip(1e-30)[:, None]).astype(np.float16) * w_scale[:, None]  # of profiled columns
    weight = in_16_bit if dtype == torch.float32 else w
    outlier, outlier_magnitude = reference._outlier_part(array(x), mask, weight)
    wanted = sums * scale * w_scale.astype(np.float64) + outlier + bias
    magnitude = magnitude * scale * w_scale + outlier_magnitude + np.abs(bias)
    assert_close(y, wanted, reference.tolerance(wanted, magnitude, 37, torch.finfo(dtype).eps) + 1e-30)
    assert y.isnan().all(-1).tolist() == [False, False, False, False, True, True, False]


@pytest.mark.inductor
@pytest.mark.parametrize("name", ("llm.int8", "zeropoint"))
def test_inductor_equals_eager(name):
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(6)
    options = static(profile_of(model, activation(40), name=name), name)
    x[1, 5], x[2, 6], x[3] = NAN, INF, 0.0
    wanted = compile_eager(model, **options)(x)
    torch._dynamo.reset()
    found = torch.compile(model, backend="int8mixed", options=options)(x)
    assert torch.equal(found.isnan(), wanted.isnan()) and found.isnan().all(-1).tolist() == [
        False, True, True, False, False, False,
    ]  # fmt: skip
    torch.testing.assert_close(found[wanted.isfinite()], wanted[wanted.isfinite()], rtol=1e-5, atol=0.02)


@schemes
def test_on_the_calibration_data_it_is_near_float(name):
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(40)
    found = compile_eager(model, **static(profile_of(model, x, name=name), name))(x)
    assert 0 < relative_error(found, model(x)) < 0.08


def test_linears_with_a_common_input_quantize_it_once():
    module = holder(lambda m, x: (F.linear(x, m.q), F.linear(x, m.k)), q=(6, 16), k=(6, 16))
    profile = profile_of(module, signs(4, 16))
    for name in ("llm.int8", "llm.int8-zeropoint"):
        operations = compiled(module, signs(4, 16), **static(profile, name)).operations
        assert operations["quantize_static"] == operations["static_scale"] == 1 and operations["int8_mm"] == 2


def test_gradient_of_the_activation():
    module = holder(lambda m, x: F.linear(x, m.w, m.b), w=(6, 16), b=(6,))
    profile = profile_of(module, signs(4, 16))
    x = signs(4, 16).requires_grad_()
    compiled(module, x, grad=True, **static(profile)).output.sum().backward()
    torch.testing.assert_close(x.grad, module.w.sum(0).expand(4, 16), rtol=0, atol=0.05)


def test_programs_are_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    profile_of(model, activation(40)).save(tmp_path / "profile.json")
    options = static(str(tmp_path / "profile.json"))
    program = convert(exported(model, x), options=options)
    assert torch.equal(reloaded(program).module()(x), compile_eager(model, **options)(x))


# --- what the report says


def test_report_counts_what_was_clamped():
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    profile = profile_of(model, activation(40))
    columns = profile.layers[0].outlier_columns
    assert columns == (3, 7)
    x[:, 9], x[:, 3] = 50.0, 50.0  # feature 9 is a runtime outlier that the profile does not name
    report = explain(model, (x,), options=static(profile))
    up, down = report.rows
    inside = x[:, [column for column in range(IN) if column not in columns]]
    scale = max(map(abs, profile.layers[0].range)) / 127
    assert up.clamped == int(((inside.abs() / scale).round() > 127).sum()) >= 5
    assert up.outlier_columns == columns
    assert f"clamped {up.clamped + down.clamped} values past the profile's ranges, in " in str(report)
    assert json.loads(report.to_json())["rows"][0]["clamped"] == up.clamped
    exact = model.up(x)
    found = compile_eager(model.up, **static(_renamed(profile)))(x)
    ratio = 20 * np.log10(1 / relative_error(found, exact))
    assert up.snr_db == pytest.approx(ratio, abs=0.05)
    plain = explain(model, (x,), options={"profile": profile})
    assert "clamped" not in str(plain) and plain.rows[0].clamped == 0


@schemes
def test_debug_measures_it_and_what_leaving_it_would_bring(name):
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    profile = profile_of(model, activation(40) / 4, name=name)  # of smaller inputs: much is clamped
    found = diagnose(model, (x,), options=static(profile, name))
    output = compile_eager(model, **static(profile, name))(x)
    assert found.total_db == pytest.approx(-20 * np.log10(relative_error(output, model(x))), abs=0.05)
    repairs = {repair.option: repair.total_db for repair in found.repairs}
    assert ("activations" in repairs) == SCHEMES[name].decomposition
    dynamic = compile_eager(model, scheme=name)(x)
    wanted = -20 * np.log10(relative_error(dynamic, model(x)))
    assert repairs["profile"] == pytest.approx(wanted, abs=0.05) and wanted > found.total_db + 3


@pytest.mark.parametrize("command", ("report", "dump", "debug"))
def test_commands_take_it(run, command, tmp_path):
    model, args, kwargs = make()
    calibrate(model, [(args, kwargs)], progress=False).save(tmp_path / "profile.json")
    stage = ("--stage", "share_activation_quantize") if command == "dump" else ()
    options = ("--profile", tmp_path / "profile.json", "--activations", "static", *stage)
    code, out, err = run(command, "tests.test_cli:make", *options)
    assert (code, err) == (0, "")
    assert command != "dump" or "int8pass.quantize_static" in out
    code, _, err = run(command, "tests.test_cli:make", "--activations", "static", *stage)
    assert code == 2 and "takes its ranges from a profile" in err


def _renamed(profile):
    """The profile for the first Linear on its own."""
    return dataclasses.replace(profile, layers=(dataclasses.replace(profile.layers[0], weight="weight"),))


# --- refusals


def test_refusals(tmp_path):
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(40)
    profile = profile_of(model, x)
    with pytest.raises(ConfigError, match="activations must be one of"):
        Int8MixedConfig(activations="calibrated")
    with pytest.raises(ConfigError, match="activations='static' takes its ranges from a profile"):
        Int8MixedConfig(activations="static")
    with pytest.raises(ConfigError, match="scheme 'absmax' has no outlier branch at threshold 0: calibrate"):
        Int8MixedConfig(**static(profile, "absmax"))
    with pytest.raises(ConfigError, match=r"scheme 'llm.int8' has no outlier branch at threshold 0: calibrate"):
        Int8MixedConfig(**static(profile), threshold=0.0)
    with pytest.raises(ConfigError, match=r"lowering='tensorrt' takes schemes .* with activations='dynamic'"):
        Int8MixedConfig(**static(profile), lowering="tensorrt")
    with pytest.raises(ConfigError, match="activations='static' needs the pass"):
        quantize_(frozen(Mlp()), options=static(profile))
    with pytest.raises(ConfigError, match="leave activations 'dynamic'"):
        export_onnx(model, (x,), tmp_path / "model.onnx", options=static(profile))
    without = dataclasses.replace(
        profile, layers=tuple(dataclasses.replace(each, minimum=None, maximum=None) for each in profile.layers)
    )
    with pytest.raises(ProfileError, match=r"no range for 'up.weight': calibrate again"):
        convert(exported(model, x), options=static(without))
    with pytest.raises(ProfileError, match="of another model"):
        convert(exported(nn.Sequential(Mlp()), x), options=static(profile))


class TestText(expecttest.TestCase):
    def after(self, scheme):
        module = holder(lambda m, x: F.linear(x, m.w, m.b), w=(6, 16), b=(6,))
        x = signs(4, 16)
        x[:, 3] = 8.0
        profile = profile_of(module, x, name=scheme)
        return compiled(module, x, **static(profile, scheme)).text("share_activation_quantize")

    def test_llm_int8(self):
        self.assertExpectedInline(
            self.after("llm.int8"),
            """\
%column_mask : bool[16] = int8pass.column_mask(%x, (3,))
%quantize_static : i8[4, 16] = int8pass.quantize_static(%x, 0.0078125, 0, %column_mask)
%static_scale : f32[4] = int8pass.static_scale(%x, 0.0078125, %column_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_static, %w_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %column_mask, %w, %w_scale)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %static_scale, %w_scale, %outlier_mm, %b, float32)
return (%dequantize,)
""",
        )

    def test_zeropoint(self):
        self.assertExpectedInline(
            self.after("zeropoint"),
            """\
%quantize_static : i8[4, 16] = int8pass.quantize_static(%x, 0.035402312874794006, -99, None)
%static_zero_point : i32[] = int8pass.static_zero_point(%x, -99)
%static_scale : f32[4] = int8pass.static_scale(%x, 0.035402312874794006, None)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_static, %w_codes)
%dequantize_asymmetric : f32[4, 6] = int8pass.dequantize_asymmetric(%int8_mm, %static_scale, %static_zero_point, %w_scale, %w_code_sums, None, %b, float32)
return (%dequantize_asymmetric,)
""",
        )


# --- the fused kernel


def taken(model, x, options):
    """The ops of the model's graph once it is lowered for Inductor."""
    from int8pass.lower.inductor import PASSES
    from int8pass.pipeline import run

    program = run(program_of(model, x, **options))
    run(program, passes=PASSES)
    return [operation(node) for node in program.graph.nodes]


@pytest.mark.inductor
@pytest.mark.parametrize("name", ("llm.int8", "absmax", "llm.int8-zeropoint"))
def test_the_kernel_takes_it_without_zero_points(name):
    if not fused.is_available():
        pytest.skip("the fused kernel cannot be built here")
    layer = frozen(nn.Linear(16, 6))
    module = holder(lambda m, x: (F.linear(x, m.q), F.linear(x, m.k)), q=(6, 16), k=(6, 16))
    symmetric = SCHEMES[name].activations.symmetric
    operations = taken(layer, signs(4, 16), static(profile_of(layer, signs(4, 16), name=name), name))
    assert operations.count("cpu_static_linear") == symmetric and operations.count("int8_mm") == (not symmetric)
    operations = taken(module, signs(4, 16), static(profile_of(module, signs(4, 16), name=name), name))
    assert operations.count("cpu_quantize_static") == symmetric
    assert operations.count("cpu_linear") == 2 * symmetric


@pytest.mark.inductor
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", ((), (3, 7)), ids=str)
@pytest.mark.parametrize("limit", (0.0, 1e-35, 2.0, 60.0))
def test_the_kernel_quantizes_as_the_ops_do(dtype, columns, limit):
    if not fused.is_available():
        pytest.skip("the fused kernel cannot be built here")
    x = torch.randn((9, 301), generator=torch.Generator().manual_seed(0))
    x[:, 3], x[2, 9], x[4, 5], x[6, 7], x[7, 11], x[8, 1] = 20.0, NAN, INF, -INF, -6e4, 5.5e4
    x, scale = x.to(dtype), static_scale(0.0, limit, symmetric=True).scale
    mask = ops.column_mask(x, columns)
    codes, scales, outliers = fused.cpu_quantize_static(x, scale, columns)
    wanted = ops.static_scale(x, scale, mask)
    assert torch.equal(outliers, mask)
    torch.testing.assert_close(scales, wanted, rtol=0, atol=0, equal_nan=True)
    rows = wanted.isfinite()
    assert rows.tolist() == [True, True, False, True, False, True, bool(columns), True, True]
    assert torch.equal(codes[rows, :301].int() - 128, ops.quantize_static(x, scale, 0, mask)[rows].int())
    w_q, w_scale, bias = (
        torch.randint(-127, 128, (70, 301), generator=torch.Generator().manual_seed(1), dtype=torch.int8),
        torch.rand(70),
        torch.randn(70).to(dtype),
    )
    weight = (w_q * w_scale[:, None]).to(dtype)
    y = fused.cpu_static_linear(x, pack(w_q), code_offset(w_q), w_scale, bias, weight, None, scale, columns, dtype)
    sums = ops.int8_mm(ops.quantize_static(x, scale, 0, mask), w_q)
    expected = ops.dequantize(sums, wanted, w_scale, ops.outlier_mm(x, mask, weight, w_scale), bias, torch.float64)
    finite = rows & expected.isfinite().all(-1)  # an infinity in an outlier column comes out as one
    atol = 1e-5 * float(expected[finite].abs().max())
    torch.testing.assert_close(y[finite].double(), expected[finite], rtol=2 * torch.finfo(dtype).eps, atol=atol)
    assert y[~rows].isnan().all() and int(finite.sum()) >= 6


@pytest.mark.parametrize("lowering", ("eager", "inductor"))
def test_timings(lowering):
    torch.manual_seed(0)
    model = frozen(Mlp())
    profile = profile_of(model, activation(40))
    for options in (static(profile), {"profile": profile}):
        up, down = explain(model, (activation(64),), options={**options, "lowering": lowering}, timings=True).rows
        for row in (up, down):
            parts = dataclasses.asdict(row.timing)
            assert all(parts[part] > 0 for part in ("float", "int8", "quantize"))
