"""Stages: records of a graph's nodes, parts of it by module and by weight, and the formats they are written in."""

# ruff: noqa: E501 (golden texts)
import json
import xml.etree.ElementTree as ElementTree

import expecttest
import torch
from torch import nn

from int8pass import explain
from int8pass.inspection.dot import stage_dot
from int8pass.inspection.stages import Stage, StageNode
from int8pass.inspection.svg import stage_svg


class Model(nn.Module):
    """q and k read one input; proj reads their product."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Module()
        self.attention.q, self.attention.k = nn.Linear(16, 8), nn.Linear(16, 8)
        self.proj = nn.Linear(8, 4)

    def forward(self, x):
        return self.proj(torch.relu(self.attention.q(x) * self.attention.k(x)))


def stages(**options):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Model().eval().requires_grad_(False)
    (found,) = explain(model, (torch.randn(2, 16),), options=options).stages
    return {stage.name: stage for stage in found}


def names(stage):
    return [node.name for node in stage.nodes]


def test_nodes_say_their_module_weight_and_inputs():
    nodes = {node.name: node for node in stages()["share_activation_quantize"].nodes}
    codes = nodes["attention_q_weight_codes"]
    assert (codes.kind, codes.module, codes.weight) == ("weight", "attention.q", "attention.q.weight")
    product = nodes["int8_mm"]
    assert product.kind == "call" and product.module == "attention.q"
    assert product.inputs == ("quantize_per_token", "attention_q_weight_codes")
    assert nodes["output"].kind == "output"


def test_module_glob_keeps_what_is_below_and_stubs_what_it_reads():
    captured = stages()["captured"]
    attention = captured.of_modules("attention")
    assert attention == captured.of_modules("attention.*") == captured.of_modules("att*")
    assert {node.module for node in attention.nodes if node.kind == "weight"} == {"attention.q", "attention.k"}
    proj = captured.of_modules("proj")
    (stub,) = [node for node in proj.nodes if "left out" in node.text]
    assert stub.text == "%relu : f32[2, 8] = (left out)" and stub.inputs == ()
    assert captured.of_modules("absent").nodes == ()


def test_every_part_is_closed_under_inputs():
    for stage in stages().values():
        for part in (stage, stage.of_modules("attention.k"), stage.only(stage.around_weight("proj.weight"))):
            known = set(names(part))
            assert part.nodes and all(set(node.inputs) <= known for node in part.nodes)


def test_around_a_weight_is_its_linear_and_nothing_of_others():
    before, after = stages()["captured"], stages()["share_activation_quantize"]
    kept = before.around_weight("proj.weight")
    assert len(kept) == 2  # the weight and its Linear
    parts = ("outlier_mask", "scale_per_token", "quantize_per_token", "int8_mm", "outlier_mm", "dequantize")
    assert sorted(operations(after, "attention.k.weight")) == sorted(f"int8pass.{part}" for part in parts)
    assert operations(after, "proj.weight").count("int8pass.dequantize") == 1


def operations(stage, weight):
    kept = stage.around_weight(weight)
    calls = [node for node in stage.nodes if node.name in kept and node.kind == "call"]
    return [node.text.partition(" = ")[2].partition("(")[0] for node in calls]


def test_json_is_the_nodes():
    stage = stages()["captured"]
    document = json.loads(stage.to_json())
    assert document["schema"] == 1 and document["stage"] == "captured"
    nodes = [StageNode(**{**node, "inputs": tuple(node["inputs"])}) for node in document["nodes"]]
    assert Stage("captured", tuple(nodes)) == stage


def test_formats_are_the_same_in_every_run():
    first, second = stages()["share_activation_quantize"], stages()["share_activation_quantize"]
    for render in (Stage.to_json, stage_dot, stage_svg):
        assert render(first) == render(second)


def test_svg_draws_every_node_and_edge_and_nothing_overlaps():
    stage = stages()["share_activation_quantize"]
    root = ElementTree.fromstring(stage_svg(stage))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [{key: float(box.get(key)) for key in ("x", "y", "width", "height")} for box in root.iter(f"{space}rect")]
    assert len(boxes) == len(stage.nodes)
    assert len(list(root.iter(f"{space}path"))) == sum(len(node.inputs) for node in stage.nodes)
    assert {title.text for title in root.iter(f"{space}title")} >= {node.text for node in stage.nodes}
    width, height = (float(root.get(name)) for name in ("width", "height"))
    for number, box in enumerate(boxes):
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
        for other in boxes[number + 1 :]:
            apart = box["x"] + box["width"] <= other["x"] or other["x"] + other["width"] <= box["x"]
            assert apart or abs(box["y"] - other["y"]) >= box["height"]


def test_empty_stage():
    assert "</svg>" in stage_svg(Stage("empty", ())) and stage_dot(Stage("empty", ())).endswith("}\n")


class Golden(expecttest.TestCase):
    def test_dot(self):
        part = stages(threshold=0.0)["share_activation_quantize"].of_modules("proj")
        self.assertExpectedInline(
            stage_dot(part),
            """\
digraph "share_activation_quantize" {
  node [fontname=monospace, fontsize=10];
  subgraph cluster_0 {
    label="proj";
    "l_self_modules_proj_parameters_weight_" [label="weight proj.weight\\nf32[4, 8]", shape=cylinder];
    "l_self_modules_proj_parameters_bias_" [label="weight proj.bias\\nf32[4]", shape=cylinder];
    "proj_weight_codes" [label="int8 codes of proj.weight\\ni8[4, 8]", shape=cylinder];
    "proj_weight_scale" [label="int8 scale of proj.weight\\nf32[4]", shape=cylinder];
    "scale_per_token_2" [label="int8pass.scale_per_token\\nf32[2]", shape=box, style=filled, fillcolor=lightblue];
    "quantize_per_token_2" [label="int8pass.quantize_per_token\\ni8[2, 8]", shape=box, style=filled, fillcolor=lightblue];
    "int8_mm_2" [label="int8pass.int8_mm\\ni32[2, 4]", shape=box, style=filled, fillcolor=lightblue];
    "dequantize_2" [label="int8pass.dequantize\\nf32[2, 4]", shape=box, style=filled, fillcolor=lightblue];
  }
  "relu" [label="relu\\nf32[2, 8]", shape=ellipse];
  "relu" -> "scale_per_token_2";
  "relu" -> "quantize_per_token_2";
  "scale_per_token_2" -> "quantize_per_token_2";
  "quantize_per_token_2" -> "int8_mm_2";
  "proj_weight_codes" -> "int8_mm_2";
  "int8_mm_2" -> "dequantize_2";
  "scale_per_token_2" -> "dequantize_2";
  "proj_weight_scale" -> "dequantize_2";
  "l_self_modules_proj_parameters_bias_" -> "dequantize_2";
}
""",
        )

    def test_text(self):
        part = stages()["captured"].of_modules("attention.q")
        self.assertExpectedInline(
            part.text,
            """\
%l_self_modules_attention_modules_q_parameters_weight_ : f32[8, 16] = weight 'attention.q.weight'
%l_self_modules_attention_modules_q_parameters_bias_ : f32[8] = weight 'attention.q.bias'
%l_x_ : f32[2, 16] = input
%linear : f32[2, 8] = linear(%l_x_, %l_self_modules_attention_modules_q_parameters_weight_, %l_self_modules_attention_modules_q_parameters_bias_)
""",
        )

    def test_svg(self):
        part = stages()["captured"].of_modules("proj")
        self.assertExpectedInline(
            stage_svg(part),
            """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 388 122" width="388" height="122" font-family="monospace" font-size="11">
<title>captured</title>
<g fill="none" stroke="#8a94a3">
<path d="M337.9 46 C337.9 61 194.0 61 194.0 76"/>
<path d="M80.3 46 C80.3 61 194.0 61 194.0 76"/>
<path d="M224.2 46 C224.2 61 194.0 61 194.0 76"/>
</g>
<g><title>%l_self_modules_proj_parameters_weight_ : f32[4, 8] = weight 'proj.weight'</title><rect x="12.0" y="12" width="136.6" height="34" rx="4" fill="#fff4d6" stroke="#5b6573"/><text x="80.3" y="26" text-anchor="middle">weight proj.weight</text><text x="80.3" y="40" text-anchor="middle" fill="#5b6573">f32[4, 8]</text></g>
<g><title>%l_self_modules_proj_parameters_bias_ : f32[4] = weight 'proj.bias'</title><rect x="162.6" y="12" width="123.2" height="34" rx="4" fill="#fff4d6" stroke="#5b6573"/><text x="224.2" y="26" text-anchor="middle">weight proj.bias</text><text x="224.2" y="40" text-anchor="middle" fill="#5b6573">f32[4]</text></g>
<g><title>%relu : f32[2, 8] = (left out)</title><rect x="299.8" y="12" width="76.3" height="34" rx="4" fill="#eef1f5" stroke="#5b6573"/><text x="337.9" y="26" text-anchor="middle">relu</text><text x="337.9" y="40" text-anchor="middle" fill="#5b6573">f32[2, 8]</text></g>
<g><title>%linear_2 : f32[2, 4] = linear(%relu, %l_self_modules_proj_parameters_weight_, %l_self_modules_proj_parameters_bias_)</title><rect x="155.9" y="76" width="76.3" height="34" rx="4" fill="#ffffff" stroke="#5b6573"/><text x="194.0" y="90" text-anchor="middle">linear</text><text x="194.0" y="104" text-anchor="middle" fill="#5b6573">f32[2, 4]</text></g>
</svg>
""",
        )
