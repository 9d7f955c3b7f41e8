"""The private names of PyTorch behind int8pass.torch_private: one test a function fails when a name changes."""

import inspect

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.registry import lookup_backend

from int8pass import torch_private
from int8pass.capture import copy_graph


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("table", torch.randn(4))
        self.steps = nn.ModuleList([nn.Linear(4, 4)])
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4))])

    def forward(self, x):
        return self.steps[0](self.fc(x)) @ self.weights[0] + self.table


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)


def captured(model, *args):
    """The placeholders that Dynamo gives a backend, each with its real input."""
    graphs = []

    def backend(graph_module, example_inputs):
        graphs.append(list(zip(graph_module.graph.find_nodes(op="placeholder"), example_inputs, strict=True)))
        return graph_module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True)(*args)
    (graph,) = graphs
    return graph


def test_source_name_tells_the_attribute_behind_each_input():
    model = Outer()
    names = {torch_private.source_name(node): value for node, value in captured(model, torch.randn(2, 4))}
    inner = "L['self']._modules['inner']"
    assert names.pop("L['x']").shape == (2, 4)
    expected = {
        f"{inner}._modules['fc']._parameters['weight']": model.inner.fc.weight,
        f"{inner}._modules['fc']._parameters['bias']": model.inner.fc.bias,
        f"{inner}._modules['steps']._modules['0']._parameters['weight']": model.inner.steps[0].weight,
        f"{inner}._modules['steps']._modules['0']._parameters['bias']": model.inner.steps[0].bias,
        f"{inner}._modules['weights']._parameters['0']": model.inner.weights[0],
        f"{inner}._buffers['table']": model.inner.table,
    }
    assert names.keys() == expected.keys()
    assert all(names[name] is tensor for name, tensor in expected.items())


def test_source_name_is_empty_for_an_input_that_dynamo_did_not_make():
    assert torch_private.source_name(fx.Graph().placeholder("x")) == ""


def test_module_attribute_reads_the_names_that_dynamo_writes():
    model = Outer()
    found = {}
    for node, value in captured(model, torch.randn(2, 4)):
        if name := torch_private.module_attribute(torch_private.source_name(node)):
            found[name] = value
    expected = dict((*model.named_parameters(), *model.named_buffers()))
    assert found.keys() == expected.keys()
    assert all(found[name] is tensor for name, tensor in expected.items())


@pytest.mark.parametrize("source", ("", "L['x']", "L['x'][0]", "L['self']._modules['fc']", "L['self'].weight"))
def test_module_attribute_is_empty_for_other_sources(source):
    assert torch_private.module_attribute(source) == ""


def test_inputs_of_a_plain_function_have_names_too():
    linear = nn.Linear(4, 4)
    sources = [torch_private.source_name(node) for node, _ in captured(lambda x: linear(x), torch.randn(2, 4))]
    attributes = [torch_private.module_attribute(source) for source in sources]
    assert sorted(attributes) == ["", "bias", "weight"]


def with_addend(addend, inner):
    """A backend that adds an input of its own to a copy of the graph, the last one, and compiles it with `inner`."""

    def backend(graph_module, example_inputs):
        copied = copy_graph(graph_module)
        output = next(iter(copied.graph.find_nodes(op="output")))
        (result,) = output.args[0]
        with copied.graph.inserting_before(copied.graph.find_nodes(op="placeholder")[-1].next):
            added = copied.graph.placeholder("added")
        torch_private.mark_added_input(added)
        added.meta["val"] = result.meta["example_value"].fake_mode.from_tensor(addend, static_shapes=True)
        with copied.graph.inserting_before(output):
            total = copied.graph.call_function(torch.add, (result, added))
        output.args = ((total,),)
        copied.recompile()
        run = inner(copied, [*example_inputs, added.meta["val"]])
        return lambda *args: run(*args, addend)

    return backend


@pytest.mark.parametrize("inner", ("aot_eager", pytest.param("inductor", marks=pytest.mark.inductor)))
@pytest.mark.parametrize("grad", (False, True))
def test_mark_added_input_makes_an_input_acceptable(inner, grad):
    model, x, addend = nn.Linear(4, 4), torch.randn(2, 4), torch.randn(4)
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        result = torch.compile(model, backend=with_addend(addend, lookup_backend(inner)))(x)
        torch.testing.assert_close(result, model(x) + addend)


@pytest.mark.parametrize("marked", (True, False))
def test_mark_added_input_makes_an_input_static(marked, monkeypatch):
    if not marked:
        monkeypatch.setattr(torch_private, "mark_added_input", lambda node: setattr(node, "_dynamo_source", None))
    static = []

    def compile_forward(graph_module, example_inputs):
        indices = torch._guards.TracingContext.get().fw_metadata.static_input_indices
        static.append((len(example_inputs) - 1) in indices)
        return make_boxed_func(graph_module.forward)

    backend = with_addend(torch.randn(4), aot_autograd(fw_compiler=compile_forward))
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(nn.Linear(4, 4), backend=backend)(torch.randn(2, 4))
    assert static == [marked]


def test_placeholders_that_dynamo_marks_static_bear_the_same_mark():
    node = fx.Graph().placeholder("added")
    torch_private.mark_added_input(node)
    marks = {
        placeholder.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
        for placeholder, value in captured(nn.Linear(4, 4), torch.randn(2, 4))
        if isinstance(value, nn.Parameter)
    }
    assert marks == {node.meta["tensor_dict"]["_dynamo_static_input_type"]}


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Inner()

    def forward(self, x):
        x = self.part(x)
        torch._dynamo.graph_break()
        return self.part(x)


def modules_seen(compile_model):
    """What compiled_module() returns in each graph that a call compiles."""
    seen = []

    def backend(graph_module, example_inputs):
        seen.append(torch_private.compiled_module())
        return graph_module.forward

    torch._dynamo.reset()
    compile_model(backend)(torch.randn(2, 4))
    return seen


def test_compiled_module_of_torch_compile():
    model = nn.Sequential(Broken())
    seen = modules_seen(lambda backend: torch.compile(model, backend=backend))
    assert len(seen) == 2 and all(module is model for module in seen)


def test_compiled_module_of_the_compile_method():
    model = nn.Sequential(Broken())

    def compile_model(backend):
        model.compile(backend=backend)
        return model

    seen = modules_seen(compile_model)
    assert len(seen) == 2 and all(module is model for module in seen)


def test_compiled_module_of_a_region_is_the_region():
    model = nn.Sequential(nn.ReLU(), Broken())

    def compile_model(backend):
        model[1].compile(backend=backend)
        return model

    seen = modules_seen(compile_model)
    assert len(seen) == 2 and all(module is model[1] for module in seen)


def test_compiled_module_of_a_plain_function_is_none():
    assert modules_seen(lambda backend: torch.compile(lambda x: x + 1, backend=backend)) == [None]
    assert torch_private.compiled_module() is None


def test_compiled_module_rests_on_two_attributes():
    compiled = torch.compile(model := nn.Linear(4, 4), backend="eager")
    assert isinstance(compiled, torch._dynamo.eval_frame.OptimizedModule) and compiled._orig_mod is model
    assert model._compiled_call_impl is None
    model.compile(backend="eager")
    assert model._compiled_call_impl is not None


def test_cxx_compiler_error_is_empty_where_inductor_finds_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert torch_private.cxx_compiler_error() == ""


@pytest.mark.inductor
def test_cxx_compiler_error_is_empty_here():
    assert torch_private.cxx_compiler_error() == ""


def forget_compilers():
    from torch._inductor import cpp_builder

    for function in (cpp_builder.get_cpp_compiler, cpp_builder.cpp_compiler_search):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def test_cxx_compiler_error_is_what_inductor_raises():
    from torch._inductor import config, cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    forget_compilers()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(InvalidCxxCompiler):
            cpp_builder.get_cpp_compiler()
        assert "C++ compiler" in torch_private.cxx_compiler_error()
    forget_compilers()


def test_inductor_compile_passes_options_by_a_name_of_compile_fx(monkeypatch):
    from torch._inductor import compile_fx

    parameters = inspect.signature(compile_fx.compile_fx).parameters
    assert list(parameters)[:2] == ["model_", "example_inputs_"] and "config_patches" in parameters

    seen = []
    monkeypatch.setattr(compile_fx, "compile_fx", lambda *args, **keywords: seen.append((args, keywords)))
    torch_private.inductor_compile("graph", ["input"], {"option": 1})
    assert seen == [(("graph", ["input"]), {"config_patches": {"option": 1}})]


@pytest.mark.inductor
def test_inductor_compile_applies_options():
    def backend(graph_module, example_inputs):
        return torch_private.inductor_compile(graph_module, example_inputs, {"no_such_option": 1})

    torch._dynamo.reset()
    with pytest.raises(Exception, match="no_such_option"):
        torch.compile(nn.Linear(4, 4), backend=backend)(torch.randn(2, 4))


def test_what_a_backend_raised_is_unwrapped():
    def backend(graph_module, example_inputs):
        raise KeyError("of the backend")

    torch._dynamo.reset()
    compiled = torch.compile(nn.Linear(4, 4), backend=backend)
    with pytest.raises(KeyError, match="of the backend"), torch_private.unwrapped(KeyError):
        compiled(torch.randn(2, 4))
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed), torch_private.unwrapped(TypeError):
        compiled(torch.randn(2, 4))


def test_nodes_of_onnx_name_their_modules():
    pytest.importorskip("onnxscript")
    exported = torch.export.export(Outer().eval(), (torch.randn(2, 4),))
    nodes = list(torch.onnx.export(exported, dynamo=True, verbose=False).model.graph)
    paths = {
        torch_private.onnx_module_path(node.metadata_props) for node in nodes if node.op_type in ("Gemm", "MatMul")
    }
    assert {"inner.fc", "inner.steps.0"} <= paths and torch_private.onnx_module_path({}) is None


def test_nodes_of_onnx_name_their_ops():
    pytest.importorskip("onnxscript")
    exported = torch.export.export(Outer().eval(), (torch.randn(2, 4),))
    nodes = list(torch.onnx.export(exported, dynamo=True, verbose=False, optimize=False).model.graph)
    assert "linear" in {torch_private.onnx_operation(node.metadata_props, "aten") for node in nodes}
    assert {torch_private.onnx_operation(node.metadata_props, "int8pass") for node in nodes} == {""}
    assert torch_private.onnx_operation({}, "aten") == ""


def test_nodes_outside_of_any_module_have_no_other_name():
    class Doubled(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0] * 2, 2)

    exported = torch.export.export(Doubled(), (torch.randn(3, 4),), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    stacks = [node.meta.get("nn_module_stack", {}) for node in exported.graph.nodes if node.op == "call_function"]
    assert len(stacks) > 1 and {path for stack in stacks for path, _ in stack.values()} <= {"", torch_private.NO_MODULE}


def test_size_hint_is_the_size_of_the_call_that_is_compiled_for():
    hints = []

    def backend(graph_module, example_inputs):
        (x, *_) = [node.meta["example_value"] for node in graph_module.graph.nodes if node.name == "l_x_"]
        hints.append([(type(size), torch_private.size_hint(size)) for size in x.shape])
        return graph_module.forward

    torch._dynamo.reset()
    run = torch.compile(lambda x: x * 2, backend=backend, dynamic=True)
    for rows in (5, 7):  # a hint that became a guard would compile a second graph
        run(torch.randn(rows, 3, 2)[:, :, :2])
    assert [[hint for _, hint in sizes] for sizes in hints] == [[5, 3, 2]]
    assert hints[0][0][0] is torch.SymInt


def test_fake_tensor_mode_makes_fakes_of_real_tensors():
    mode = torch_private.fake_tensor_mode()
    fake = mode.from_tensor(torch.ones(2, 3))
    with mode:
        made = torch.empty(4)
    assert fake.fake_mode is made.fake_mode is mode and (fake @ mode.from_tensor(torch.ones(3, 4))).shape == (2, 4)


def test_outside_of_tracing_hides_the_compilation_that_is_under_way():
    seen = []

    def backend(graph_module, example_inputs):
        seen.append(torch_private.is_tracing())
        with torch_private.outside_of_tracing():
            seen.append(torch_private.is_tracing())
        seen.append(torch_private.is_tracing())
        return graph_module.forward

    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert seen == [True, False, True]


def test_without_fake_tensors_leaves_the_mode_that_is_active():
    mode = torch_private.fake_tensor_mode()
    with mode:
        assert hasattr(torch.ones(2), "fake_mode")
        with torch_private.without_fake_tensors():
            assert torch.ones(2).tolist() == [1.0, 1.0]
        assert hasattr(torch.ones(2), "fake_mode")
