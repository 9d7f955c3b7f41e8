"""The report's page as a file: what its data says, and that it needs nothing from outside."""

import hashlib
import json
import math
import re
from importlib import resources

import pytest
import torch
from torch import nn

from int8pass import explain
from int8pass.inspection.debug import diagnose
from int8pass.inspection.page import SCRIPTS, page, page_data
from int8pass.inspection.scheme_errors import SchemeError
from tests import reference
from tests.inspection.test_report import NAMELESS, REWRITTEN, report

HTML = resources.files("int8pass.inspection") / "html"
MODEL = "tests.test_cli:make"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.up(x)))


def explained(**options):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Model().eval().requires_grad_(False), torch.randn(6, 16).clamp(-4, 4)
    x[2, 5], x[4, 9] = 20.0, -7.0
    return model, x, explain(model, (x,), options={"skip_modules": ["head"], **options})


def data_of(text):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_page_holds_its_data_and_asks_for_nothing(tmp_path):
    _, _, result = explained()
    result.to_html(tmp_path / "new" / "report.html", title="a <b> & c")
    text = (tmp_path / "new" / "report.html").read_text()
    assert "<title>a &lt;b&gt; &amp; c</title>" in text
    assert json.loads(json.dumps(page_data(result, "a <b> & c"))) == data_of(text)
    assert "default-src 'none'" in text and "sourceMappingURL" not in text and "{{" not in text.partition("<script>")[0]
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text.partition('<script type="application/json"')[0])
    assert page(result, "a <b> & c") == text  # two runs, one text


def test_text_of_a_model_cannot_end_the_script():
    row = REWRITTEN.__class__(**{**vars(REWRITTEN), "module": "</script><script>alert(1)</script>"})
    text = page(report(row), "title")
    assert "alert(1)</script>" not in text and data_of(text)["rows"][0]["module"] == row.module


@pytest.mark.parametrize("outliers", ("column", "token"))
def test_levels_and_peaks_are_those_of_the_reference(outliers):
    model, x, result = explained(outliers=outliers)
    row = page_data(result, "")["rows"][0]
    codes, scale, mask = reference.quantize_activation(x.numpy(), 6.0, outliers)
    taken = (mask if mask.ndim == 2 else mask[None].repeat(len(x), 0)).sum()
    expected = [int((codes == level).sum()) for level in range(-127, 128)]
    expected[127] -= taken
    assert row["activations"]["counts"] == tuple(expected) and row["outlier_values"] == taken
    assert row["activations"]["scales"][0] == pytest.approx(scale.min()) and sum(expected) == x.numel() - taken
    codes, scale = reference.quantize_weight(model.up.weight.numpy())
    assert row["weights"]["counts"] == tuple(int((codes == level).sum()) for level in range(-127, 128))
    assert row["weights"]["scales"][2] == pytest.approx(scale.max())
    assert row["peaks"][:2] == [(5, 20.0), (9, 7.0)] and len(row["peaks"]) == 16


def test_layers_part_of_the_graph_before_and_after():
    _, _, result = explained()
    up, head = page_data(result, "")["rows"]
    assert up["before"]["own"][0] == "l_self_modules_up_parameters_weight_" and len(up["before"]["own"]) == 2
    assert {"outlier_mask", "int8_mm", "outlier_mm", "dequantize"} <= set(up["after"]["own"])
    assert "relu" in up["after"]["beside"] and "l_x_" in up["after"]["beside"]
    assert len(head["before"]["own"]) == len(head["after"]["own"]) == 2 and head["after"]["beside"][-1] == "output"
    assert head["activations"] is None and not head["rewritten"]


def test_gpt2_shaped_model():
    transformers = pytest.importorskip("transformers")
    torch._dynamo.reset()
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64)
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    result = explain(model, (torch.arange(8)[None],), {"use_cache": False})
    rows = {row["module"]: row for row in page_data(result, "gpt2")["rows"] if row["rewritten"]}
    assert len(rows) == 8
    for row in rows.values():  # transformers' Conv1D: addmm with a weight [K, N]
        calls = set(row["after"]["own"])
        assert sum(name.startswith("dequantize") for name in calls) == 1 and len(row["before"]["own"]) == 2
        assert sum(row["weights"]["counts"]) == row["weight_shape"][0] * row["weight_shape"][1]
    found = diagnose(model, (torch.arange(8)[None],), {"use_cache": False}, compiled=False)
    assert {layer.module for layer in found.layers} == rows.keys() and 10 < found.total_db < 80


def test_stages_can_be_put_together_again():
    _, _, result = explained()
    (graph,) = page_data(result, "")["graphs"]
    for number, (stage, original) in enumerate(zip(graph["stages"], result.stages[0], strict=True)):
        assert "".join(f"{graph['nodes'][node][1]}\n" for node in stage["nodes"]) == original.text
        if number:
            before, rebuilt, place = graph["stages"][number - 1]["nodes"], [], 0
            for i1, i2, j1, j2 in stage["changes"]:
                rebuilt += before[place:i1] + stage["nodes"][j1:j2]
                place = i2
            assert rebuilt + before[place:] == stage["nodes"]
    modules = {graph["modules"][node[3]] for node in graph["nodes"]}
    assert modules == {"", "up", "head"}


def test_report_without_graphs_or_rows_is_a_page():
    assert data_of(page(report(REWRITTEN, NAMELESS), "made by hand"))["graphs"] == []
    assert data_of(page(report(), "empty"))["rows"] == []


def test_exact_layer_is_no_number():
    exact = REWRITTEN.__class__(**{**vars(REWRITTEN), "snr_db": math.inf})
    row = data_of(page(report(exact), ""))["rows"][0]
    assert row["snr_db"] is None and row["exact"]


def test_exact_scheme_is_no_number():
    errors = (SchemeError("absmax", math.inf), SchemeError("zeropoint", None))
    row = data_of(page(report(REWRITTEN.__class__(**{**vars(REWRITTEN), "schemes": errors})), ""))["rows"][0]
    assert [(each["snr_db"], each["exact"]) for each in row["schemes"]] == [(None, True), (None, False)]


def test_values_that_are_not_finite_do_not_break_the_page():
    model, x = Model().eval().requires_grad_(False), torch.randn(3, 16)
    x[0, 0] = torch.nan
    row = data_of(page(explain(model, (x,)), ""))["rows"][0]
    assert [0, None] in row["peaks"] and sum(row["activations"]["counts"]) > 0


def test_vendored_files_are_those_of_the_table():
    table = (HTML / "vendor" / "README.md").read_text()
    for name, digest in re.findall(r"^\| `(\S+)` \|.*`([0-9a-f]{64})` \|$", table, re.MULTILINE):
        assert hashlib.sha256((HTML / "vendor" / name).read_bytes()).hexdigest() == digest
    scripts = [name.removeprefix("vendor/") for name in SCRIPTS if name.startswith("vendor/")]
    assert [name for name in re.findall(r"^\| `(\S+)`", table, re.MULTILINE)] == scripts


def test_own_files_are_small_and_all_are_used():
    own = {file.name for file in HTML.iterdir() if file.name.endswith(".js")}
    assert own == {name for name in SCRIPTS if "/" not in name}
    for name in own:
        assert len((HTML / name).read_text().splitlines()) <= 200, name


def test_command_writes_the_page(run, tmp_path):
    code, out, _ = run("report", MODEL, "--html", tmp_path / "report.html")
    assert code == 0 and "1 of 2 Linears rewritten" in out
    text = (tmp_path / "report.html").read_text()
    assert f"<title>int8pass report of {MODEL}</title>" in text and len(data_of(text)["rows"]) == 2
    code, _, err = run("report", MODEL, "--html", tmp_path)
    assert code == 2 and "a folder" in err
