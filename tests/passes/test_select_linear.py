"""Which Linears are taken: every reason to leave one alone, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from int8pass.passes import select_linear as selection
from int8pass.passes.canonicalize_linear import canonicalize_linear
from int8pass.passes.select_linear import matches, select_linear
from tests.graphs import Holder, compiled, exported, holder, parameter, program_of, signs, text_of

captures = pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
GRADIENT = "the weight needs a gradient and grad mode is on"
WRITTEN = "the weight is written to in the graph"
LM_HEAD = "lm_head (skip_modules_default)"
TIED = "tied to an embedding (skip_modules_default)"


def one_linear(weight, dtype=torch.float32):
    return Holder(lambda m, x: F.linear(x, m.w.to(x.dtype)), w=weight), signs(4, 16, dtype=dtype)


def test_the_graph_is_left_as_it_is():
    program = program_of(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(4, 16))
    canonicalize_linear(program)
    before = text_of(program)
    assert select_linear(program) == len(program.linears) == 1
    assert text_of(program) == before


class Language(nn.Module):
    """Embedding, two blocks of two Linears, and a head."""

    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(16, 24), "down": nn.Linear(24, 16)}) for _ in range(2)
        )
        self.lm_head = nn.Linear(16, 32, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight
        self.requires_grad_(False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block["down"](F.relu(block["up"](x)))
        return self.lm_head(x)


def skipped(model, *inputs, capture=compiled, **options):
    """The names of the modules left alone, with the reason of each."""
    decisions = capture(model, *inputs, **options).program.decisions
    return {decision.module: decision.reason for decision in decisions if decision.reason}


TOKENS = torch.arange(10).view(2, 5)


@captures
def test_the_head(capture):
    assert skipped(Language(), TOKENS, capture=capture) == {"lm_head": LM_HEAD}
    assert skipped(Language(), TOKENS, capture=capture, skip_modules_default=False) == {}


@captures
def test_a_head_inside(capture):
    model = nn.Sequential(Language())
    assert skipped(model, TOKENS, capture=capture) == {"0.lm_head": LM_HEAD}


@captures
def test_a_tied_head(capture):
    assert list(skipped(Language(tied=True), TOKENS, capture=capture).values()) in ([TIED], [LM_HEAD])
    assert skipped(Language(tied=True), TOKENS, capture=capture, skip_modules_default=False) == {}


def test_a_head_tied_under_another_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(32, 16).requires_grad_(False)

        def forward(self, tokens):
            return F.linear(self.table(tokens), self.table.weight)

    assert skipped(Tied(), TOKENS) == {"table": TIED}
    assert skipped(Tied(), TOKENS, capture=exported) == {"table": TIED}


def test_an_embedding_outside_the_graph_counts():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(32, 16).requires_grad_(False)

        def forward(self, x):
            return F.linear(x, self.table.weight)

    assert skipped(Head(), signs(4, 16)) == {"table": TIED}


@captures
@pytest.mark.parametrize(
    "pattern, names",
    (
        ("blocks.0", ["blocks.0.up", "blocks.0.down"]),
        ("blocks.0.up", ["blocks.0.up"]),
        ("blocks.0.up.weight", ["blocks.0.up"]),
        ("*.down", ["blocks.0.down", "blocks.1.down"]),
        ("blocks.*.up", ["blocks.0.up", "blocks.1.up"]),
        ("blocks", ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]),
        (r"re:blocks\.[1-9]\.", ["blocks.1.up", "blocks.1.down"]),
        ("up", []),
        ("block", []),
        ("blocks.0.u", []),
        ("re:up", []),
    ),
)
def test_names(pattern, names, capture):
    expected = dict.fromkeys(names, f"named in skip_modules ({pattern!r})") | {"lm_head": LM_HEAD}
    assert skipped(Language(), TOKENS, capture=capture, skip_modules=(pattern,)) == expected


def test_a_name_of_the_head_is_the_users_reason():
    reason = "named in skip_modules ('lm_head')"
    assert skipped(Language(), TOKENS, skip_modules=("lm_head",), skip_modules_default=False) == {"lm_head": reason}


@pytest.mark.parametrize(
    "pattern, name, expected",
    (
        ("fc", "fc.weight", True),
        ("fc.weight", "fc.weight", True),
        ("fc", "fc2.weight", False),
        ("a.fc", "fc.weight", False),
        ("*fc", "model.fc.weight", True),
        ("*.fc", "fc.weight", False),
        ("*", "anything.weight", True),
        ("re:.*fc", "model.fc.weight", True),
        ("re:fc", "model.fc.weight", False),
        ("FC*", "fc.weight", False),
    ),
)
def test_matches(pattern, name, expected):
    assert matches(pattern, name) is expected


@captures
def test_float64(capture):
    module = Holder(lambda m, x: F.linear(x, m.w), w=parameter(6, 16, dtype=torch.float64))
    x = signs(4, 16, dtype=torch.float64)
    result = capture(module, x)
    assert result.reasons == {"the input is float64, not float16, bfloat16 or float32": 1}
    assert torch.equal(result.output, module(x))


def test_float64_weight_and_output():
    module, x = one_linear(parameter(6, 16), torch.float64)
    assert compiled(module, x).reasons == {"the input is float64, not float16, bfloat16 or float32": 1}
    for role, position in (("weight", 1), ("output", None)):
        program = program_of(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(4, 16))
        canonicalize_linear(program)
        (linear,) = program.linears
        node = linear if position is None else linear.args[position]
        key = "val" if "val" in node.meta else "example_value"
        node.meta[key] = node.meta[key].double()
        assert select_linear(program) == 0
        assert program.counts() == {f"the {role} is float64, not float16, bfloat16 or float32": 1}


@pytest.mark.parametrize("shape", ((0, 16), (6, 0)))
def test_an_empty_weight(shape):
    module, x = holder(lambda m, x: F.linear(x, m.w), w=shape), signs(4, shape[1])
    result = compiled(module, x)
    assert result.reasons == {"the weight is empty": 1}
    assert torch.equal(result.output, module(x))


def test_the_largest_k_cannot_overflow():
    largest = selection.LARGEST_K
    assert largest * 127**2 <= torch.iinfo(torch.int32).max < (largest + 1) * 127**2


def test_too_many_features(monkeypatch):
    monkeypatch.setattr(selection, "LARGEST_K", 15)
    module = holder(lambda m, x: F.linear(x, m.w), w=(6, 16))
    reason = "K = 16 is too large for an int32 sum (at most 15)"
    assert compiled(module, signs(4, 16)).reasons == {reason: 1}
    monkeypatch.setattr(selection, "LARGEST_K", 16)
    assert compiled(module, signs(4, 16)).reasons == {"rewritten": 1}


def test_a_weight_that_needs_a_gradient():
    layer, x = nn.Linear(16, 6), signs(4, 16)
    result = compiled(layer, x, grad=True)
    assert result.reasons == {GRADIENT: 1}
    assert torch.equal(result.output, layer(x))
    assert compiled(layer, x).reasons == {"rewritten": 1}
    assert compiled(layer.requires_grad_(False), x, grad=True).reasons == {"rewritten": 1}


def test_grad_mode_may_change_in_the_graph():
    def call(m, x):
        with torch.no_grad():
            x = m.inner(x)
        return m.outer(x)

    module = Holder(call)
    module.inner, module.outer = nn.Linear(16, 16), nn.Linear(16, 6)
    result = compiled(module, signs(4, 16), grad=True)
    assert {decision.module: decision.reason for decision in result.program.decisions} == {
        "inner": "", "outer": GRADIENT
    }  # fmt: skip


def write_view(m):
    m.w.t().mul_(2)


def write_row(m):
    m.w[0].zero_()


def write_item(m):
    m.w[0] = 0.0


def write_out(m):
    torch.mul(m.w, 2, out=m.w)


@pytest.mark.parametrize(
    "write", (lambda m: m.w.mul_(2), write_item, write_view, write_row, write_out),
    ids=("in place", "item", "view", "row", "out"),
)  # fmt: skip
def test_a_weight_written_in_the_graph(write):
    def call(m, x):
        write(m)
        return F.linear(x, m.w)

    def module():
        return Holder(call, w=signs(6, 16))

    x = signs(4, 16)
    result = compiled(module(), x)
    assert torch.equal(result.output, module()(x))
    assert result.reasons == {WRITTEN: 1}


def test_an_integer_weight():
    weight = torch.randint(-127, 128, (6, 16), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    module, x = one_linear(weight)
    result = compiled(module, x)
    assert result.reasons == {"already quantized (int8 weight)": 1}
    assert torch.equal(result.output, module(x))


class Marked(torch.Tensor):
    """A tensor subclass of a user, whose Linear computes something else."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
            return result + 1 if function is F.linear else result


def test_a_tensor_subclass():
    program = program_of(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(4, 16))
    ((name, bound),) = program.tensors.items()
    program.tensors[name] = type(bound)(bound.name, signs(6, 16).as_subclass(Marked))
    canonicalize_linear(program)
    assert select_linear(program) == 0
    assert program.counts() == {"already quantized, or a tensor subclass of its own (Marked)": 1}


@pytest.mark.parametrize(
    "weight, layout",
    (
        (signs(6, 16).to_sparse(), "torch.sparse_coo, on cpu"),
        (torch.empty(6, 16, device="meta"), "torch.strided, on meta"),
    ),
    ids=("sparse", "meta"),
)
def test_other_storage(weight, layout):
    program = program_of(holder(lambda m, x: F.linear(x, m.w), w=(6, 16)), signs(4, 16))
    ((name, bound),) = program.tensors.items()
    program.tensors[name] = type(bound)(bound.name, weight)
    canonicalize_linear(program)
    assert select_linear(program) == 0
    assert program.counts() == {f"the weight's storage is {layout}": 1}


def test_a_buffer_is_taken():
    module, x = Holder(lambda m, x: F.linear(x, m.w), w=signs(6, 16)), signs(4, 16)
    result = compiled(module, x)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, module(x))


def test_a_parameter_of_a_closure_is_taken():
    weight, x = parameter(6, 16), signs(4, 16)
    result = compiled(lambda x: F.linear(x, weight), x)
    assert result.reasons == {"rewritten": 1}
    assert torch.equal(result.output, F.linear(x, weight))
