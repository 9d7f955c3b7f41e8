"""Quantization fused behind norms, on fake CUDA tensors: which graphs become what, where it was measured to pay."""

# ruff: noqa: E501 (golden texts)

import logging
from collections import Counter

import expecttest
import pytest
import torch
import torch.nn.functional as F

from int8pass.graph import operation, value_of
from int8pass.kernels.cuda import norms
from int8pass.kernels.cuda.norms import LAYER_NORM, RMS_NORM, Size
from tests.graphs import Holder, parameter, program_of, signs, text_of
from tests.lower.fake_cuda import argument, lower, lowered, operations, profile_of

WEIGHTS = dict(q=(6, 16), k=(6, 16), v=(10, 16), g=(16,), b=(16,), c=(6,))
HALF = torch.float16
FUSED = "cuda_norm_quantize"


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """It pays everywhere; the sizes that were asked for."""
    sizes = []
    monkeypatch.setattr(norms, "pays", lambda size, device: sizes.append((size, device.type)) or True)
    return sizes


def model(call, dtype=HALF):
    return Holder(call, **{name: parameter(*shape, dtype=dtype) for name, shape in WEIGHTS.items()})


def x_of(*shape, dtype=HALF):
    return signs(*shape, dtype=dtype)


def layer_norm(m, x):
    return F.layer_norm(x, (16,), m.g, m.b, 1e-6)


def rms_norm(m, x):
    return F.rms_norm(x, (16,), m.g, 1e-6)


def written_out(m, x):
    """As transformers' LlamaRMSNorm."""
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return m.g * (wide * torch.rsqrt(variance + 1e-6)).to(x.dtype)


def projections(m, y):
    return F.linear(y, m.q), F.linear(y, m.k)


def behind(norm, add=True):
    """A residual block's start: the sum is read again, and so may be what the norm gives."""

    def call(m, x, residual):
        total = residual + x if add else x
        return (*projections(m, norm(m, total)), total)

    return call


def inputs(*shape, dtype=HALF):
    return x_of(*shape, dtype=dtype), x_of(*shape, dtype=dtype)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm, written_out])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.0}, {"outliers": "token"}], ids=str)
def test_shared_quantization_with_the_add(norm, options):
    program = lowered(model(behind(norm)), *inputs(2, 10, 16), **options)
    assert operations(program) == [FUSED, *["getitem"] * 5, *["cuda_linear"] * 2]
    _, residual, weight, bias, eps, centered, threshold, per_token, *_ = _node(program).args
    assert residual is not None and weight.op == "placeholder" and eps == 1e-6
    assert (centered, bias is not None) == ((True, True) if norm is layer_norm else (False, False))
    assert (threshold, per_token) == (options.get("threshold", 6.0), "outliers" in options)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm, written_out])
def test_without_an_add(norm):
    program = lowered(model(behind(norm, add=False)), *inputs(20, 16))
    assert operations(program) == [FUSED, *["getitem"] * 4, *["cuda_linear"] * 2]
    assert argument(_node(program), "residual") is None


@pytest.mark.parametrize("norm", [layer_norm, rms_norm, written_out])
def test_one_linear_alone(norm):
    program = lowered(model(lambda m, x, y: F.linear(norm(m, x + y), m.q, m.c)), *inputs(20, 16))
    assert operations(program) == [FUSED, *["getitem"] * 4, "cuda_linear"]
    linear = next(node for node in program.graph.nodes if operation(node) == "cuda_linear")
    assert argument(linear, "weight").name.startswith("l_") and argument(linear, "bias") is not None
    assert argument(linear, "threshold") == 6.0 and argument(linear, "dtype") == HALF


def _node(program):
    (node,) = [node for node in program.graph.nodes if operation(node) == FUSED]
    return node


def test_what_is_asked(asked):
    lowered(model(behind(rms_norm)), *inputs(2, 50, 16))
    lowered(model(behind(layer_norm, add=False), torch.float32), *inputs(20, 16, dtype=torch.float32), outliers="token")
    lowered(model(behind(layer_norm), torch.bfloat16), *inputs(32, 16, dtype=torch.bfloat16), threshold=0.0)
    assert asked == [
        (Size(128, 16, "float16", "column", RMS_NORM, True), "cuda"),
        (Size(32, 16, "float32", "token", LAYER_NORM, False), "cuda"),
        (Size(32, 16, "bfloat16", "none", LAYER_NORM, True), "cuda"),
    ]


def test_a_number_of_rows_that_may_change_is_asked_for_as_it_is_now(asked):
    program = lowered(model(behind(rms_norm)), *inputs(100, 16), dynamic=True)
    assert asked == [(Size(128, 16, "float16", "column", RMS_NORM, True), "cuda")]
    assert operations(program).count(FUSED) == 1


def test_columns_of_a_profile(asked):
    module = model(behind(layer_norm))
    program = lowered(module, *inputs(20, 16), profile=profile_of(module, (2, 7)))
    assert asked == [(Size(32, 16, "float16", "listed", LAYER_NORM, True), "cuda")]
    assert argument(_node(program), "columns") == (2, 7) and argument(_node(program), "threshold") == 0.0


@pytest.mark.parametrize("view", [lambda y: y.view(-1, 16), lambda y: y.reshape(1, 20, 16), lambda y: y.flatten(0, 1)])
def test_views_on_both_sides(view):
    """Of the sum (OPT's feed-forward part), and of what the norm gives (GPT-2's Linears)."""
    program = lowered(model(lambda m, x, y: projections(m, layer_norm(m, view(x + y)))), *inputs(2, 10, 16))
    assert operations(program).count(FUSED) == 1 and argument(_node(program), "residual") is not None
    program = lowered(model(lambda m, x, y: projections(m, view(layer_norm(m, x + y)))), *inputs(2, 10, 16))
    assert operations(program).count(FUSED) == 1 and "layer_norm" not in operations(program)


def test_other_readers_of_what_the_norm_gives():
    def call(m, x, residual):
        y = rms_norm(m, x + residual)
        return (*projections(m, y), y * 2, y.sum())

    found = Counter(operations(lowered(model(call), *inputs(20, 16))))
    assert found == {FUSED: 1, "getitem": 4, "cuda_linear": 2, "mul": 1, "sum": 1}


def test_a_default_eps_is_float32s():
    """For what PyTorch takes it, see `test_the_default_eps`."""
    program = lowered(model(lambda m, x: projections(m, F.rms_norm(x, (16,)))), x_of(20, 16))
    assert _node(program).args[2:6] == (None, None, torch.finfo(torch.float32).eps, False)
    program = lowered(model(lambda m, x: projections(m, F.layer_norm(x, (16,)))), x_of(20, 16))
    assert _node(program).args[2:6] == (None, None, 1e-5, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", [None, "aot_eager_decomp_partition"])
def test_the_default_eps(backend, dtype):
    """rms_norm without an eps adds float32's, in any dtype: found where x is so small that it decides."""
    x = torch.full((1, 8), 1e-4, dtype=dtype)
    call = (
        (lambda x: F.rms_norm(x, (8,)))
        if backend is None
        else torch.compile(lambda x: F.rms_norm(x, (8,)), backend=backend)
    )
    eps = (x.double() / call(x).double()) ** 2 - x.double() ** 2
    torch.testing.assert_close(eps, torch.full_like(eps, torch.finfo(torch.float32).eps), rtol=0.03, atol=0)


# --- left as they are


def left(call, *arguments, reason=None, caplog=None, **options):
    module = call if isinstance(call, Holder) else model(call)
    if caplog is not None:
        caplog.set_level(logging.DEBUG, "int8pass")
    program = lowered(module, *arguments, **options)
    assert FUSED not in operations(program) and any(name.startswith("cuda_") for name in operations(program))
    if reason is not None:
        assert f"is left as it is: {reason}" in caplog.text
    return program


def test_not_measured_to_be_faster(monkeypatch, caplog):
    monkeypatch.setattr(norms, "pays", lambda size, device: False)
    left(behind(rms_norm), *inputs(20, 16), reason="not measured to be faster: Size(rows=32", caplog=caplog)


def test_without_a_measurement_nothing_is_fused(monkeypatch):
    monkeypatch.undo()
    left(behind(rms_norm), *inputs(20, 16))


@pytest.mark.parametrize("rows", [1, 16])
def test_few_rows(rows, caplog):
    program = left(behind(rms_norm), *inputs(rows, 16), reason="so few rows", caplog=caplog)
    assert operations(program).count("cuda_int8_linear") == 2


def test_a_linear_alone_whose_rows_may_be_few(caplog):
    call = lambda m, x: F.linear(rms_norm(m, x), m.q)  # noqa: E731
    left(call, x_of(20, 16), dynamic=True, reason="so few rows, or it may be so few", caplog=caplog)


@pytest.mark.parametrize("write", [lambda x, y: y.mul_(2), lambda x, y: x.add_(1), lambda x, y: y.__setitem__(0, 1)])
def test_memory_that_is_written_in_between(write, caplog):
    def call(m, x, residual):
        y = layer_norm(m, x + residual)
        write(x, y)
        return projections(m, y)

    left(call, *inputs(20, 16), reason="memory is written to in between", caplog=caplog)


@pytest.mark.parametrize("norm", [layer_norm, written_out])
def test_what_does_not_lie_row_after_row(norm, caplog):
    """The op would copy it first, or give other strides."""
    left(
        lambda m, x: projections(m, norm(m, x.transpose(0, 1))), x_of(4, 6, 16),
        reason="its input does not lie row after row", caplog=caplog,
    )  # fmt: skip


@pytest.mark.parametrize(
    "norm",
    [
        lambda m, x: F.layer_norm(x, (2, 16)),
        lambda m, x: F.layer_norm(x.float(), (16,), m.g.float()).half(),
        lambda m, x: F.softmax(x, -1),
        lambda m, x: m.g * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).half(),
        lambda m, x: m.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
        lambda m, x: m.g * (x.float() * torch.rsqrt((x + 1).float().pow(2).mean(-1, keepdim=True) + 1e-6)).half(),
        lambda m, x: m.g * (x.float() * torch.rsqrt(x.float().pow(2).mean(-2, keepdim=True) + 1e-6)).half(),
        lambda m, x: m.g * (x.float() * torch.rsqrt(x.float().pow(3).mean(-1, keepdim=True) + 1e-6)).half(),
        lambda m, x: x * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).half(),
    ],
)
def test_what_is_no_norm_by_feature(norm):
    left(lambda m, x: projections(m, norm(m, x)), x_of(10, 2, 16))


def test_a_norm_in_another_dtype():
    """As an autocast region computes layer_norm: in float32 of a float16 x."""

    def call(m, x):
        with torch.autocast("cuda", torch.float16):
            y = F.layer_norm(x, (16,))
        return projections(m, y.half())

    left(call, x_of(20, 16))


@pytest.mark.parametrize(
    "total",
    [
        lambda m, x, y: torch.add(x, y, alpha=2),
        lambda m, x, y: x + y[:1],
        lambda m, x, y: x + 1.0,
        lambda m, x, y: x * y,
        lambda m, x, y: (x.float() + y).half(),
        lambda m, x, y: x + y.float(),
        lambda m, x, y: x.add_(y),
    ],
)
def test_an_add_that_stays_apart(total):
    program = lowered(model(lambda m, x, y: projections(m, layer_norm(m, total(m, x, y).half()))), *inputs(20, 16))
    assert argument(_node(program), "residual") is None


def test_an_add_whose_norm_has_a_computed_weight():
    program = lowered(model(lambda m, x, y: projections(m, F.rms_norm(x + y, (16,), m.g + 1))), *inputs(20, 16))
    assert argument(_node(program), "residual") is None


def test_an_add_of_other_strides():
    """As of attention whose heads come first: Inductor reads it where it lies, the op would copy it."""
    call = lambda m, x, y: projections(m, layer_norm(m, x + y.transpose(0, 1)))  # noqa: E731
    program = lowered(model(call), x_of(4, 6, 16), x_of(6, 4, 16))
    assert argument(_node(program), "residual") is None


def test_a_norm_that_two_quantizations_read():
    """The second one quantizes what the first one's op has stored."""

    def call(m, x):
        y = layer_norm(m, x)
        return F.linear(y, m.q), F.linear(y[::2], m.k), F.linear(y.view(2, 10, 16), m.v)

    found = Counter(operations(lowered(model(call), x_of(20, 16))))
    assert found[FUSED] == 1 and found["cuda_linear"] == 1 and found["cuda_int8_linear"] == 2
    assert not found["layer_norm"]


def test_graphs_that_need_gradients_are_left():
    """Linears quantize a detached copy there."""
    x = x_of(20, 16, dtype=torch.float32).requires_grad_()
    program = lower(program_of(model(lambda m, x: projections(m, rms_norm(m, x)), torch.float32), x, grad=True))
    assert FUSED not in operations(program) and "straight_through" in operations(program)


# --- models


def test_norms_of_pytorchs_encoder_layer():
    """Spelled in aten; the sum before its second norm is of tensors that lie otherwise."""
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    program = lowered(layer.eval().requires_grad_(False), torch.randn(2, 20, 16))
    assert argument(_node(program), "centered") and argument(_node(program), "residual") is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_llama(asked, dtype):
    from tests.lower import norm_models

    program = lowered(norm_models.call_of(norm_models.llama().to(dtype)), norm_models.token_ids(1, 20))
    found = Counter(operations(program))
    assert found[FUSED] == 4 and found["rsqrt"] == 1  # two a layer; the last norm has no Linear behind it
    assert not found["cuda_quantize"] and found["cuda_int8_linear"] == 4 and found["cuda_linear"] == 10
    assert [size.added for size, _ in asked] == [False, True, True, True]


def test_opt(asked):
    from tests.lower import norm_models

    program = lowered(norm_models.call_of(norm_models.opt().to(HALF)), norm_models.token_ids(1, 20))
    found = Counter(operations(program))
    assert found[FUSED] == 4 and found["layer_norm"] == 1
    assert not found["cuda_quantize"] and found["cuda_int8_linear"] == 4 and found["cuda_linear"] == 8
    assert [(size.added, size.norm) for size, _ in asked] == [(True, LAYER_NORM)] * 4


def test_gpt2(asked):
    from tests.lower import norm_models

    program = lowered(norm_models.call_of(norm_models.gpt2().to(HALF)), norm_models.token_ids(2, 20))
    found = Counter(operations(program))
    assert found[FUSED] == 4 and found["layer_norm"] == 1
    assert not found["cuda_quantize"] and found["cuda_int8_linear"] == 4 and found["cuda_linear"] == 4
    assert [size.added for size, _ in asked] == [False, True, True, True]
    assert {size.rows for size, _ in asked} == {64}


def test_a_graph_has_the_shapes_that_it_had():
    def call(m, x, residual):
        total = x + residual
        return (*projections(m, layer_norm(m, total.reshape(-1, 16))), total, total.view(-1))

    program = lowered(model(call), *inputs(2, 10, 16))
    shapes = [tuple(value_of(node).shape) for node in program.graph.output_node().args[0]]
    assert shapes == [(20, 6), (20, 6), (2, 10, 16), (320,)]
    assert [value_of(node).dtype for node in program.graph.output_node().args[0]] == [HALF] * 4


class Text(expecttest.TestCase):
    @pytest.fixture(autouse=True)
    def everywhere(self, asked):
        pass

    def test_with_the_add(self):
        program = lowered(model(behind(written_out)), *inputs(20, 16), outliers="token")
        self.assertExpectedInline(
            text_of(program),
            """\
%q_column_words : i32[8, 6] = outlier columns of 'q'
%k_column_words : i32[8, 6] = outlier columns of 'k'
%cuda_norm_quantize : (f16[20, 16], i8[20, 16], f32[20], i32[17], f16[20, 16]) = int8pass.cuda_norm_quantize(%x, %x1, %g, None, 1e-06, False, 6.0, True)
%getitem_3 : f16[20, 16] = getitem(%cuda_norm_quantize, 0)
%getitem_4 : i8[20, 16] = getitem(%cuda_norm_quantize, 1)
%getitem_5 : f32[20] = getitem(%cuda_norm_quantize, 2)
%getitem_6 : i32[17] = getitem(%cuda_norm_quantize, 3)
%getitem_7 : f16[20, 16] = getitem(%cuda_norm_quantize, 4)
%cuda_linear : f16[20, 6] = int8pass.cuda_linear(%getitem_3, %getitem_4, %getitem_5, %getitem_6, %q_codes, %q_scale, None, %q, %q_column_words, 6.0, True, float16)
%cuda_linear_1 : f16[20, 6] = int8pass.cuda_linear(%getitem_3, %getitem_4, %getitem_5, %getitem_6, %k_codes, %k_scale, None, %k, %k_column_words, 6.0, True, float16)
return (%cuda_linear, %cuda_linear_1, %getitem_7)
""",
        )

    def test_alone(self):
        program = lowered(model(lambda m, x: F.linear(layer_norm(m, x), m.q)), x_of(20, 16), threshold=0.0)
        self.assertExpectedInline(
            text_of(program),
            """\
%cuda_norm_quantize : (f16[20, 16], i8[20, 16], f32[20], i32[0], f16[0]) = int8pass.cuda_norm_quantize(%x, None, %g, %b, 1e-06, True, 0.0, False)
%getitem : f16[20, 16] = getitem(%cuda_norm_quantize, 0)
%getitem_1 : i8[20, 16] = getitem(%cuda_norm_quantize, 1)
%getitem_2 : f32[20] = getitem(%cuda_norm_quantize, 2)
%getitem_3 : i32[0] = getitem(%cuda_norm_quantize, 3)
%cuda_linear : f16[20, 6] = int8pass.cuda_linear(%getitem, %getitem_1, %getitem_2, %getitem_3, %q_codes, %q_scale, None, None, None, 0.0, False, float16)
return (%cuda_linear,)
""",
        )
