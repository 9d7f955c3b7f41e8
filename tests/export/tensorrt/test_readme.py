"""int8pass/export/tensorrt/README.md: its table of rules is that of the code."""

import re
from pathlib import Path

from int8pass.export.tensorrt import rules_of

README = Path(__file__).parents[3] / "int8pass" / "export" / "tensorrt" / "README.md"


def test_the_table_is_the_rules():
    section = README.read_text(encoding="utf-8").partition("### The rules\n")[2].partition("\nWhat a rule")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \|$", section.replace("\\|", "\0"), re.MULTILINE)
    table = [tuple(cell.replace("\0", "|") for cell in row) for row in rows]
    assert table == [(rule.id, rule.statement, rule.citation) for rule in rules_of("tensorrt")]
