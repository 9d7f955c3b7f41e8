"""The IR table: what the passes make is legal, and every broken dtype or rank is named."""

import pytest
import torch
import torch.nn.functional as F

from int8pass import ops
from int8pass.errors import Int8PassError, VerificationError
from int8pass.passes.verify_ops import TABLE, verify_ops
from tests.graphs import compiled, holder, signs


def program(**options):
    return compiled(holder(lambda m, x: F.linear(x, m.w, m.b), w=(6, 16), b=(6,)), signs(4, 16), **options).program


def node_of(program, op):
    (node,) = (node for node in program.graph.nodes if node.target is op)
    return node


def change(node, change):
    """Change the fake value of a node."""
    key = "val" if "val" in node.meta else "example_value"
    node.meta[key] = change(node.meta[key])


def test_the_table_has_every_op():
    schemas = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("int8pass::")]
    helpers = {f"int8pass::cpu_{name}" for name in ("column_cache", "column_cache_counts", "integer_gemm")}
    assert set(schemas) - helpers == {op._schema.name for op in TABLE}


@pytest.mark.parametrize("outliers", ("column", "token"))
@pytest.mark.parametrize("outlier_weights", ("original", "dequantized"))
def test_what_the_passes_make_is_legal(outliers, outlier_weights):
    assert verify_ops(program(outliers=outliers, outlier_weights=outlier_weights)) == 6
    assert verify_ops(program(threshold=0.0)) == 4


BROKEN_RESULTS = {
    ops.outlier_mask: (torch.float32, "the result is float32", "may be bool"),
    ops.scale_per_token: (torch.float16, "the result is float16", "may be float32"),
    ops.quantize_per_token: (torch.uint8, "the result is uint8", "may be int8"),
    ops.int8_mm: (torch.int64, "the result is int64", "may be int32"),
    ops.outlier_mm: (torch.bfloat16, "the result is bfloat16", "may be float32"),
    ops.dequantize: (torch.float64, "the result is float64", "may be float16, bfloat16, float32"),
}


@pytest.mark.parametrize("op", BROKEN_RESULTS, ids=str)
def test_dtype_of_a_result(op):
    dtype, what, allowed = BROKEN_RESULTS[op]
    broken = program()
    node = node_of(broken, op)
    change(node, lambda value: value.to(dtype))
    # an op that reads the result may be named first, so only the broken one is left to check
    for user in list(node.users):
        user.target = torch.ops.aten.add.Tensor
    with pytest.raises(VerificationError) as caught:
        verify_ops(broken)
    assert what in str(caught.value) and allowed in str(caught.value) and node.name in str(caught.value)


@pytest.mark.parametrize(
    "op, position, dtype",
    (
        (ops.outlier_mask, 0, torch.float64),
        (ops.scale_per_token, 1, torch.int8),
        (ops.quantize_per_token, 1, torch.float16),
        (ops.int8_mm, 1, torch.uint8),
        (ops.outlier_mm, 2, torch.float64),
        (ops.dequantize, 2, torch.float16),
        (ops.dequantize, 4, torch.float64),
    ),
    ids=str,
)
def test_dtype_of_an_argument(op, position, dtype):
    broken = program()
    node = node_of(broken, op)
    with broken.graph.inserting_before(node):
        copy = broken.graph.call_function(torch.ops.aten.clone.default, (node.args[position],))
    copy.meta["val"] = torch.empty(1, dtype=dtype)
    node.update_arg(position, copy)
    with pytest.raises(VerificationError, match=f"{node.name} .*argument {position} is "):
        verify_ops(broken)


@pytest.mark.parametrize("op", (ops.scale_per_token, ops.quantize_per_token, ops.int8_mm, ops.dequantize), ids=str)
def test_rank_of_a_result(op):
    broken = program()
    node = node_of(broken, op)
    change(node, lambda value: value.unsqueeze(0))
    for user in list(node.users):
        if user.op != "output":
            user.target = torch.ops.aten.add.Tensor
    rank = 2 if op is ops.scale_per_token else 3
    with pytest.raises(VerificationError, match=f"{node.name}: the result has {rank} dimensions, not {rank - 1}"):
        verify_ops(broken)


def test_graphs_are_checked_after_each_pass(monkeypatch):
    from int8pass import pipeline

    checked = []
    monkeypatch.setattr(pipeline, "verify_ops", lambda program: checked.append(program))
    program()
    assert len(checked) == len(pipeline.PASSES)


def test_the_error_is_one_of_int8pass():
    assert issubclass(VerificationError, Int8PassError)
    assert issubclass(VerificationError, AssertionError)
