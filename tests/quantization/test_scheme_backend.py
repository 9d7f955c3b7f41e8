"""Every scheme through the backend, Int8Linear and convert, against the float64 reference; and one of a user's own."""

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from int8pass import Int8Linear, convert, ops, quantize_
from int8pass.composition import call_op, quantize_activation
from int8pass.quantization import SCHEMES, ActivationQuantization, Scheme, WeightQuantization
from tests import reference, reference_schemes, zoo
from tests.graphs import compiled, holder, signs
from tests.linear_models import Mlp, activation, exported, frozen, op_counts, relative_error, reloaded
from tests.test_exactness import DTYPES, THRESHOLDS, array, assert_close, linear
from tests.test_exactness import activation as drawn_activation

CLAMPED = Scheme(
    "per-tensor activations, decomposed",
    ActivationQuantization("per_tensor", symmetric=False),
    WeightQuantization("per_tensor"),
    decomposition=True,
)
ALL = {**SCHEMES, "own": CLAMPED}
schemes = pytest.mark.parametrize("scheme", ALL.values(), ids=ALL)
SPECIAL_ROWS = ("zero", "subnormal", "nan", "infinite", "threshold")


def compile_eager(call, **options):
    torch._dynamo.reset()
    return torch.compile(call, backend="int8mixed", options={"lowering": "eager", **options}, fullgraph=True)


def activation_codes(scheme, x, threshold, outliers):
    """Codes, scale [M, 1] and zero point [M, 1] that the ops give, which are those of the reference."""
    mask = ops.outlier_mask(x, threshold, outliers) if threshold else None
    codes, scale, point = quantize_activation(call_op, scheme.activations, x, mask)
    rows, expected_mask = (len(x), 1), reference.outlier_mask(array(x), threshold, outliers)
    form = scheme.activations
    expected = reference_schemes.quantize_activation(array(x), expected_mask, form.granularity, form.symmetric)
    found = (
        codes.numpy().astype(np.int64),
        scale.unsqueeze(-1).expand(rows).numpy(),
        np.zeros(rows, np.int64) if point is None else point.unsqueeze(-1).expand(rows).numpy().astype(np.int64),
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return found


def expected(scheme, x, layer, **options):
    """y of the reference, and the allowed difference."""
    codes = activation_codes(scheme, x, options["threshold"], options["outliers"])
    y, magnitude = reference_schemes.linear(
        array(x), array(layer.weight), array(layer.bias), scheme, activation=codes, **options
    )
    finfo = torch.finfo(x.dtype)
    allowed = reference.tolerance(y, magnitude, x.shape[1], finfo.eps)
    return y, allowed + finfo.smallest_normal * finfo.eps + reference.FLOAT32.tiny


@st.composite
def cases(draw):
    rows, features, outputs = draw(st.integers(0, 20)), draw(st.integers(1, 90)), draw(st.integers(1, 40))
    dtype, seed, scheme = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**16)), draw(st.sampled_from([*ALL]))
    columns = list(range(0, features, draw(st.sampled_from((7, 1000)))))
    row_numbers = st.integers(0, max(rows - 1, 0))
    special = draw(st.dictionaries(row_numbers, st.sampled_from(SPECIAL_ROWS), max_size=min(rows, 2)))
    x = drawn_activation(rows, features, dtype, seed, columns, special) + draw(st.sampled_from((0.0, 1.0, -3.0)))
    layer = linear(features, outputs, dtype, seed, draw(st.booleans()))
    options = dict(threshold=0.0, outliers="column")
    if ALL[scheme].decomposition:
        options["threshold"] = draw(st.sampled_from(THRESHOLDS))
        options["outliers"] = draw(st.sampled_from(reference.OUTLIERS))
        options["outlier_weights"] = draw(st.sampled_from(reference.OUTLIER_WEIGHTS))
    return ALL[scheme], x, layer, options


@hypothesis.settings(max_examples=70, derandomize=True, deadline=None, database=None)
@hypothesis.given(cases())
def test_backend_equals_the_reference(case):
    scheme, x, layer, options = case
    with torch.no_grad():
        y = compile_eager(layer, scheme=scheme, **options)(x)
        held = Int8Linear.from_linear(
            layer, scheme=scheme, threshold=options["threshold"], outliers=options["outliers"]
        )(x)
    assert y.dtype == held.dtype == x.dtype
    assert_close(y, *expected(scheme, x, layer, **options))
    assert_close(held, *expected(scheme, x, layer, **{**options, "outlier_weights": "dequantized"}))
    assert y[x.isnan().any(-1)].isnan().all()


COMPILED = [  # of those whose ops Inductor fuses, three that have every op between them
    pytest.param(scheme, id=name, marks=() if name in ("absmax", "llm.int8-zeropoint", "own") else pytest.mark.slow)
    for name, scheme in ALL.items()
    if not scheme.has_default_form
]


@pytest.mark.inductor
@pytest.mark.parametrize("scheme", COMPILED)
@pytest.mark.parametrize("rows", (7, pytest.param(0, marks=pytest.mark.slow)))
def test_inductor_equals_eager(scheme, rows):
    torch._dynamo.reset()
    model = nn.ModuleList(linear(37, 24, dtype, 3, True) for dtype in DTYPES[1:])

    def call(*inputs):
        return [layer(x) for layer, x in zip(model, inputs, strict=True)]

    fast = torch.compile(call, backend="int8mixed", options={"scheme": scheme}, fullgraph=True)
    plain = compile_eager(call, scheme=scheme)
    special = {} if scheme.activations.granularity == "per_tensor" or not rows else dict(enumerate(SPECIAL_ROWS))
    inputs = [drawn_activation(rows, 37, dtype, rows, [0, 9, 20], special) for dtype in DTYPES[1:]]
    with torch.no_grad():
        for x, actual, wanted in zip(inputs, fast(*inputs), plain(*inputs), strict=True):
            assert torch.equal(actual.isnan(), wanted.isnan())
            finite = wanted.isfinite()
            eps = torch.finfo(x.dtype).eps
            # Inductor may round a tie the other way: one code of one term
            torch.testing.assert_close(actual[finite], wanted[finite], rtol=4 * eps, atol=0.02)


@pytest.mark.parametrize(
    "name, scheme",
    [
        *(("bert", name) for name, each in ALL.items() if not each.has_default_form),
        ("gpt2", "zeropoint-vectorwise"),
        ("llama", "llm.int8-zeropoint"),
    ],
)
def test_models(name, scheme):
    model, args, kwargs = zoo.build(name)
    wanted = zoo.outputs(model(*args, **kwargs))[0]
    with torch.no_grad():
        found = zoo.outputs(compile_eager(model, scheme=ALL[scheme])(*args, **kwargs))[0]
    assert 0 < relative_error(found, wanted) < 0.08


OPS = {  # after detach, the mask and what follows it; before int8_mm
    "absmax": ("scale_per_tensor", "quantize_per_tensor"),
    "zeropoint": ("asymmetric_scale", "zero_point", "quantize_asymmetric"),
    "absmax-rowwise": ("scale_per_token", "quantize_per_token"),
    "absmax-vectorwise": ("scale_per_token", "quantize_per_token"),
    "zeropoint-vectorwise": ("asymmetric_scale", "zero_point", "quantize_asymmetric"),
    "llm.int8": ("outlier_mask", "scale_per_token", "quantize_per_token"),
    "llm.int8-zeropoint": ("outlier_mask", "asymmetric_scale", "zero_point", "quantize_asymmetric"),
}


@pytest.mark.parametrize("name", OPS)
def test_linears_with_a_common_input_quantize_it_once(name):
    module = holder(
        lambda m, x: (F.linear(x, m.q), F.linear(x, m.k), F.linear(x, m.v)), q=(6, 16), k=(6, 16), v=(2, 16)
    )
    result = compiled(module, signs(4, 16), scheme=name)
    assert {op: result.operations[op] for op in OPS[name]} == dict.fromkeys(OPS[name], 1)
    assert result.operations["int8_mm"] == 3
    for found, wanted in zip(result.output, module(signs(4, 16)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.2)


@schemes
def test_gradient_of_the_activation(scheme):
    module = holder(lambda m, x: F.linear(x, m.w, m.b), w=(6, 16), b=(6,))
    module.b.requires_grad_()
    x = signs(4, 16).requires_grad_()
    result = compiled(module, x, grad=True, scheme=scheme)
    assert result.reasons == {"rewritten": 1}
    result.output.sum().backward()
    found, x.grad = x.grad, None
    module(x).sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=0, atol=0.05)
    assert torch.equal(module.b.grad, torch.full((6,), 8.0))


@schemes
def test_int8_linear_round_trips(scheme):
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    wanted = compile_eager(model, scheme=scheme, **_dequantized(scheme))(x)
    float_state = model.state_dict()
    made = quantize_(frozen(Mlp()).requires_grad_(False), options={"scheme": scheme})
    made.load_state_dict(float_state)  # quantized while it is loaded
    assert torch.equal(made(x), wanted)
    assert made.up.scheme == scheme
    assert ("up.code_sums" in made.state_dict()) == (not scheme.activations.symmetric)
    with torch.device("meta"):
        empty = quantize_(Mlp().requires_grad_(False), options={"scheme": scheme})
    empty.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(empty(x), wanted)
    again = compiled(made, x)
    assert again.reasons == {"already int8 (Int8Linear)": 2} and torch.equal(again.output, wanted)


def _dequantized(scheme):
    return {"outlier_weights": "dequantized"} if scheme.decomposition else {}


@schemes
def test_programs_are_saved_and_loaded(scheme):
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    program = convert(exported(model, x), options={"scheme": scheme})
    assert op_counts(program)["int8_mm"] == 2
    wanted = compile_eager(model, scheme=scheme)(x)
    assert torch.equal(reloaded(program).module()(x), wanted)


def test_a_scheme_of_a_users_own_is_a_declaration():
    torch.manual_seed(0)
    clipped = WeightQuantization(estimator="percentile", percentile=90.0)
    mine = Scheme("clipped", ActivationQuantization(symmetric=False), clipped, decomposition=True)
    model, x = frozen(Mlp()), activation(5)
    found = compile_eager(model, scheme=mine, threshold=4.0)(x)
    assert 0 < relative_error(found, model(x)) < 0.1
    assert not torch.equal(found, compile_eager(model, scheme="llm.int8-zeropoint", threshold=4.0)(x))


def test_weights_of_two_schemes_do_not_mix():
    torch.manual_seed(0)
    model, x = frozen(Mlp()), activation(5)
    first = {name: compile_eager(model, scheme=name)(x) for name in SCHEMES}
    for name in reversed(SCHEMES):
        assert torch.equal(compile_eager(model, scheme=name)(x), first[name])
    outputs = list(first.values())
    assert not any(torch.equal(one, other) for one in outputs for other in outputs if one is not other)


@pytest.mark.parametrize("name, largest", (("llm.int8", 133_144), ("zeropoint-vectorwise", 66_572)))
def test_the_largest_k_cannot_overflow(name, largest):
    for features, rewritten in ((largest, True), (largest + 1, False)):
        result = compiled(holder(lambda m, x: F.linear(x, m.w), w=(1, features)), signs(1, features), scheme=name)
        reason = f"K = {features} is too large for an int32 sum (at most {largest})"
        assert result.reasons == ({"rewritten": 1} if rewritten else {reason: 1})


@pytest.mark.inductor
@pytest.mark.parametrize("name", SCHEMES)
def test_which_schemes_the_fused_kernel_takes(name):
    from int8pass.kernels.cpu import fused
    from int8pass.lower.inductor import PASSES
    from int8pass.pipeline import run
    from tests.graphs import program_of

    if not fused.is_available():
        pytest.skip("the fused kernel cannot be built here")
    program = run(program_of(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(4, 16), scheme=name))
    run(program, passes=PASSES)
    taken = any(node.target is fused.cpu_int8_linear for node in program.graph.nodes)
    assert taken == SCHEMES[name].has_default_form
