"""The CUDA lowering on fake CUDA tensors: which ops a graph consists of, on a machine without a GPU."""

# ruff: noqa: E501 (golden texts)

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from int8pass.graph import operation, value_of
from tests.graphs import holder, program_of, signs, text_of
from tests.lower.fake_cuda import argument, lower, lowered, operations, profile_of

THREE = dict(q=(6, 16), k=(6, 16), v=(10, 16))
OPTIONS = [{}, {"threshold": 0.0}, {"outliers": "token"}, {"outlier_weights": "dequantized"}]
# What reads a size or a value back to the host, or gives a result whose shape depends on values.
SYNCHRONIZING = ("nonzero", "item", "_local_scalar_dense", "masked_select", "index_put_", "unique", "where", "cpu")


def projections(m, x):
    return F.linear(x, m.q), F.linear(x, m.k), F.linear(x, m.v)


def words_dtype(node):
    return value_of(argument(node, "words")).dtype


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_linear_is_one_op(options):
    program = lowered(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(20, 16), **options)
    assert operations(program) == ["cuda_int8_linear"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_linears_with_one_input_share_its_quantization(options):
    program = lowered(holder(projections, **THREE), signs(2, 10, 16), **options)
    assert operations(program) == ["cuda_quantize", *["getitem"] * 3, *["cuda_linear"] * 3]


@pytest.mark.parametrize("rows", [1, 16])
def test_few_rows_are_quantized_in_each_kernel(rows):
    program = lowered(holder(projections, **THREE), signs(rows, 16))
    assert operations(program) == ["cuda_int8_linear"] * 3


def test_an_unknown_number_of_rows_is_shared():
    program = lowered(holder(projections, **THREE), signs(20, 16), dynamic=True)
    assert operations(program).count("cuda_quantize") == 1
    assert operations(program).count("cuda_linear") == 3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_no_shape_depends_on_values_and_nothing_waits(options, dynamic):
    program = lowered(holder(projections, **THREE), signs(20, 16), dynamic=dynamic, **options)
    for node in program.graph.nodes:
        assert operation(node) not in SYNCHRONIZING
        tree_map(_assert_backed, value_of(node))


def _assert_backed(value):
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    assert not any(str(size).startswith("u") for size in sizes)


def test_columns_of_a_profile():
    module, x = holder(projections, **THREE), signs(20, 16)
    program = lowered(module, x, profile=profile_of(module, (2, 7)))
    assert operations(program) == ["cuda_quantize", *["getitem"] * 3, *["cuda_linear"] * 3]
    for node in program.graph.nodes:
        if operation(node) in ("cuda_quantize", "cuda_linear"):
            assert node.args[-1] == (2, 7)
        if operation(node) == "cuda_linear":  # of float32 weights: a profile's columns are rounded to 16 bits
            assert words_dtype(node) == torch.int32


@pytest.mark.parametrize("dtype, words", [("float16", "int32"), ("bfloat16", "int32"), ("float32", "int64")])
@pytest.mark.parametrize("shared", [True, False])
def test_the_cache_of_columns_is_as_wide_as_the_weight(dtype, words, shared):
    dtype, words = getattr(torch, dtype), getattr(torch, words)
    call = projections if shared else (lambda m, x: F.linear(x, m.q))
    program = lowered(holder(call, **THREE).to(dtype), signs(20, 16).to(dtype))
    linears = [node for node in program.graph.nodes if operation(node) in ("cuda_linear", "cuda_int8_linear")]
    assert [words_dtype(node) for node in linears] == [words] * (3 if shared else 1)


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"outlier_weights": "dequantized"}], ids=str)
def test_no_cache_where_no_column_of_the_weight_is_read(options):
    program = lowered(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(20, 16), **options)
    (linear,) = [node for node in program.graph.nodes if operation(node) == "cuda_int8_linear"]
    assert argument(linear, "words") is None and argument(linear, "weight") is None


def test_graphs_that_need_gradients_stay_op_by_op():
    """The bias is added by plain operations there, and the sums reach a straight-through estimator."""
    program = program_of(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(20, 16).requires_grad_(), grad=True)
    assert "cuda_int8_linear" in operations(lower(program)) and "straight_through" in operations(program)


class Text(expecttest.TestCase):
    def test_shared(self):
        program = lowered(holder(projections, **THREE), signs(2, 10, 16), outliers="token")
        self.assertExpectedInline(
            text_of(program),
            """\
%q_wide_column_words : i64[8, 6] = outlier columns of 'q'
%k_wide_column_words : i64[8, 6] = outlier columns of 'k'
%v_wide_column_words : i64[8, 10] = outlier columns of 'v'
%cuda_quantize : (i8[2, 10, 16], f32[2, 10], i32[17]) = int8pass.cuda_quantize(%x, 6.0, True)
%getitem : i8[2, 10, 16] = getitem(%cuda_quantize, 0)
%getitem_1 : f32[2, 10] = getitem(%cuda_quantize, 1)
%getitem_2 : i32[17] = getitem(%cuda_quantize, 2)
%cuda_linear : f32[2, 10, 6] = int8pass.cuda_linear(%x, %getitem, %getitem_1, %getitem_2, %q_codes, %q_scale, None, %q, %q_wide_column_words, 6.0, True, float32)
%cuda_linear_1 : f32[2, 10, 6] = int8pass.cuda_linear(%x, %getitem, %getitem_1, %getitem_2, %k_codes, %k_scale, None, %k, %k_wide_column_words, 6.0, True, float32)
%cuda_linear_2 : f32[2, 10, 10] = int8pass.cuda_linear(%x, %getitem, %getitem_1, %getitem_2, %v_codes, %v_scale, None, %v, %v_wide_column_words, 6.0, True, float32)
return (%cuda_linear, %cuda_linear_1, %cuda_linear_2)
""",
        )

    def test_alone(self):
        program = lowered(holder(lambda m, x: F.linear(x, m.w, m.b), w=(6, 16), b=(6,)), signs(4, 16))
        self.assertExpectedInline(
            text_of(program),
            """\
%w_wide_column_words : i64[8, 6] = outlier columns of 'w'
%cuda_int8_linear : f32[4, 6] = int8pass.cuda_int8_linear(%x, %w_codes, %w_scale, %b, %w, %w_wide_column_words, 6.0, False, float32)
return (%cuda_int8_linear,)
""",
        )
