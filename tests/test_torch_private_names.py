"""The private names of PyTorch that are taken as they are: each means what int8pass takes it to mean."""

import operator

import pytest
import torch
from torch import nn

from int8pass import torch_private
from int8pass.kernels.cpu import build


def test_op_classes_tell_ops_apart():
    assert isinstance(torch.ops.aten.mm.default, torch_private.OpOverload)
    assert isinstance(torch.ops.aten.mm, torch_private.OpOverloadPacket)
    assert isinstance(torch.cond, object) and isinstance(torch.ops.higher_order.cond, torch_private.HigherOrderOperator)
    assert not isinstance(operator.add, torch_private.OpOverload | torch_private.OpOverloadPacket)


def test_qualified_names():
    assert torch_private.qualified_name(torch.ops.aten.linear.default) == "aten::linear"
    assert torch_private.qualified_name(torch.ops.aten.linear) == "aten::linear"


def test_mutability_is_read_from_schemas():
    assert torch_private.is_mutable(torch.ops.aten.add_.Tensor)
    assert torch_private.is_mutable(torch.ops.aten.add_)
    assert not torch_private.is_mutable(torch.ops.aten.relu.default)


def test_tree_order_is_that_of_exported_inputs():
    nested = ({"b": 1, "a": [2, 3]}, (4,))
    leaves, spec = torch_private.tree_flatten(nested)
    assert leaves == torch_private.tree_leaves(nested) == [1, 2, 3, 4]
    assert torch_private.tree_unflatten(leaves, spec) == nested


def test_builtin_functions_hold_the_linear_that_dynamo_writes():
    assert torch_private.BUILTIN_FUNCTIONS.linear is nn.functional.linear


def test_as_plain_tensors_silences_a_subclass():
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError

    loud = torch.ones(2).as_subclass(Loud)
    with torch_private.as_plain_tensors():
        assert torch.add(loud, 1).tolist() == [2.0, 2.0]


def test_int8_product():
    x, weight = torch.randint(-127, 128, (3, 8), dtype=torch.int8), torch.randint(-127, 128, (8, 5), dtype=torch.int8)
    product = torch_private.int8_product(x, weight)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), x.long() @ weight.long())


def test_int8_instructions_are_those_that_the_processor_names():
    flags = set(build.processor_flags().split())
    if "fpu" not in flags:
        pytest.skip("not an x86 processor whose flags can be read")
    assert torch_private.has_int8_instructions() == ("avx512_vnni" in flags)


def test_mode_options():
    assert "triton.cudagraphs" in torch_private.inductor_mode_options("reduce-overhead")
    with pytest.raises(RuntimeError):
        torch_private.inductor_mode_options("no such mode")


def test_compiled_frame_tells_graphs_of_one_code_from_those_of_another():
    torch._dynamo.reset()
    seen = []

    def backend(graph_module, example_inputs):
        seen.append(torch_private.compiled_frame())
        return graph_module.forward

    class First(nn.Module):
        def forward(self, x):
            return x + 1

    class Other(nn.Module):
        def forward(self, x):
            return x + 2

    for model in (First(), Other()):
        compiled = torch.compile(model, backend=backend, dynamic=False)
        compiled(torch.randn(2, 4))
        compiled(torch.randn(3, 4))
    assert [frame.earlier for frame in seen] == [0, 1, 0, 1]
    first, again, other, other_again = (frame.number for frame in seen)
    assert first == again != other == other_again
    assert torch_private.compiled_frame() is None


def test_compiling_apart_does_not_use_up_the_recompile_limit():
    graphs = []

    def backend(graph_module, example_inputs):
        graphs.append(graph_module)
        return graph_module.forward

    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    for _ in range(10):
        with torch_private.compiled_apart(model, backend) as run:
            run(x)
    assert len(graphs) == 10


def test_is_tracing_holds_for_what_runs_while_dynamo_traces():
    torch._dynamo.reset()
    seen = []

    def backend(graph_module, example_inputs):
        seen.append(torch_private.is_tracing())
        return graph_module.forward

    torch.compile(nn.Linear(4, 4), backend=backend)(torch.randn(2, 4))
    assert seen == [True]
    assert not torch_private.is_tracing()


def test_shape_function_gives_the_result_of_a_call_on_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        x, weight = torch.empty(3, 8, dtype=torch.int8), torch.empty(5, 8, dtype=torch.int8)
        called = torch.ops.int8pass.int8_mm(x, weight)
        found = torch_private.shape_function(torch.ops.int8pass.int8_mm.default)(x, weight)
    assert type(found) is type(called)
    assert (found.shape, found.stride(), found.dtype) == (called.shape, called.stride(), called.dtype)


@pytest.mark.parametrize("target", (torch.ops.aten.relu.default, operator.getitem, torch.relu))
def test_ops_without_a_python_fake_have_no_shape_function(target):
    assert torch_private.shape_function(target) is None


def test_lazy_graph_module_generates_code_when_it_runs():
    torch._dynamo.reset()
    recompiled = []

    def backend(graph_module, example_inputs):
        lazy = torch_private.lazy_graph_module(graph_module, graph_module.graph)
        lazy.recompile()
        recompiled.append("_code" not in lazy.__dict__)
        return lazy

    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert torch.equal(torch.compile(model, backend=backend)(x), model(x))
    assert recompiled == [True]
