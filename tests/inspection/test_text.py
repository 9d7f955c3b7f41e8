"""The text of a graph: types, arguments, labels, and nothing that differs between two runs."""

import re

import expecttest
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from int8pass.inspection.text import graph_text
from tests.graphs import compiled, exported, holder, short_text, signs


def one_call(target, *args, value=None, **kwargs):
    """The line of a graph of a single call."""
    graph = fx.Graph()
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = value
    return graph_text(graph).rstrip("\n")


DTYPES = {
    torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64", torch.int8: "i8",
    torch.uint8: "u8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.bool: "bool",
    torch.complex64: "complex64", torch.float8_e4m3fn: "float8_e4m3fn",
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types(dtype):
    value = torch.empty(4, 16, dtype=dtype)
    assert one_call(torch.relu, value=value) == f"%relu : {DTYPES[dtype]}[4, 16] = relu()"


@pytest.mark.parametrize(
    "value, text",
    (
        (torch.empty(()), "f32[]"),
        (torch.empty(0, 3), "f32[0, 3]"),
        ((torch.empty(2), None), "(f32[2], ?)"),
        ([torch.empty(2), (torch.empty(1, dtype=torch.int8),)], "(f32[2], (i8[1]))"),
    ),
)
def test_shapes(value, text):
    assert one_call(torch.relu, value=value) == f"%relu : {text} = relu()"


def test_no_value_no_type():
    assert one_call(torch.relu) == "%relu = relu()"


@pytest.mark.parametrize(
    "argument, text",
    (
        (1, "1"),
        (1.5, "1.5"),
        (True, "True"),
        (None, "None"),
        ("column", "'column'"),
        ([1, 2], "[1, 2]"),
        ((1, 2), "(1, 2)"),
        ((1,), "(1,)"),
        ((), "()"),
        ({"a": [1]}, "{'a': [1]}"),
        (slice(1, None, 2), "slice(1, None, 2)"),
        (torch.bfloat16, "bfloat16"),
        (torch.device("cpu"), "cpu"),
        (..., "Ellipsis"),
    ),
    ids=str,
)
def test_arguments(argument, text):
    assert one_call(torch.relu, argument) == f"%relu = relu({text})"
    assert one_call(torch.relu, key=argument) == f"%relu = relu(key={text})"


def test_targets():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.ops.aten.relu.default, (x,))
    graph.call_function(torch.ops.aten.add.Tensor, (x, x))
    graph.call_method("view", (x, -1))
    graph.get_attr("table.weight")
    graph.output((x, [x], None))
    assert graph_text(graph, {"x": "weight 'x'"}) == (
        "%x = weight 'x'\n"
        "%relu_default = aten.relu(%x)\n"
        "%add_tensor = aten.add.Tensor(%x, %x)\n"
        "%view = view(%x, -1)\n"
        "%table_weight = attribute 'table.weight'\n"
        "return (%x, [%x], None)\n"
    )


def test_symbols_are_numbered_in_order():
    module = holder(lambda m, x, y: (F.linear(x, m.w), y.reshape(y.size(1), -1)), w=(6, 16))
    text = compiled(module, signs(5, 3, 16), signs(7, 9), dynamic=True).stages["share_activation_quantize"]
    symbols = re.findall(r"\bs\d+\b(?=[,\]* ])", " ".join(re.findall(r"\[[^\]]*\]", text)))
    assert list(dict.fromkeys(symbols)) == [f"s{number}" for number in range(len(set(symbols)))]
    assert len(set(symbols)) >= 3


def two_layers():
    return holder(lambda m, x: F.linear(F.relu(F.linear(x, m.w)), m.v), w=(12, 16), v=(6, 12))


@pytest.mark.parametrize("capture", (compiled, exported), ids=("dynamo", "export"))
@pytest.mark.parametrize("dynamic", (False, True))
def test_the_same_graph_gives_the_same_text(capture, dynamic):
    options = {"dynamic": True} if dynamic and capture is compiled else {}
    module = two_layers()
    texts = [capture(module, signs(4, 16), **options).stages for _ in range(2)]
    assert texts[0] == texts[1]


def test_nothing_private():
    stages = compiled(two_layers(), signs(4, 16)).stages
    assert next(iter(stages)) == "captured"
    for text in stages.values():
        assert not re.search(r"0x[0-9a-f]{4}|\.py|/|tensor\(|0\.9921875", text)


class TestText(expecttest.TestCase):
    def test_labels(self):
        text = compiled(nn.Linear(16, 6).requires_grad_(False), signs(4, 16)).stages["linear_to_int8_mixed"]
        inputs = sorted(re.findall(r": (.* = (?:input|weight .*|int8 .*))", text))
        self.assertExpectedInline(
            "\n".join(inputs) + "\n",
            """\
f32[4, 16] = input
f32[6, 16] = weight 'weight'
f32[6] = int8 scale of 'weight'
f32[6] = weight 'bias'
i8[6, 16] = int8 codes of 'weight'
""",
        )

    def test_labels_of_views(self):
        module = holder(lambda m, x: x @ m.w[1] + F.linear(x, m.w[1]), w=(3, 16, 16))
        text = compiled(module, signs(4, 16)).stages["linear_to_int8_mixed"]
        self.assertExpectedInline(
            "\n".join(sorted(re.findall(r"= (int8 .*)", text))) + "\n",
            """\
int8 codes of 'w'.getitem(1)
int8 codes of 'w'.getitem(1).t()
int8 scale of 'w'.getitem(1)
int8 scale of 'w'.getitem(1).t()
""",
        )

    def test_both_dialects_end_alike(self):
        module = holder(lambda m, x: torch.addmm(m.b, x, m.w), w=(16, 6), b=(6,))
        texts = [
            short_text(capture(module, signs(4, 16)).stages["share_activation_quantize"]).replace("%p_", "%")
            for capture in (compiled, exported)
        ]
        self.assertEqual(*texts)
        self.assertExpectedInline(
            texts[0],
            """\
%t : f32[6, 16] = aten.t(%w)
%outlier_mask : bool[16] = int8pass.outlier_mask(%x, 6.0, 'column')
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, %outlier_mask)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token, %outlier_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %w_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %t)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, %outlier_mm, %b, float32)
return (%dequantize,)
""",
        )

    def test_captured(self):
        text = short_text(compiled(two_layers(), signs(4, 16)).stages["captured"])
        self.assertExpectedInline(
            text,
            """\
%linear : f32[4, 12] = linear(%x, %w)
%relu : f32[4, 12] = relu(%linear)
%linear_1 : f32[4, 6] = linear(%relu, %v)
return (%linear_1,)
""",
        )
