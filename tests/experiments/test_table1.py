"""Table 1 in miniature on a tiny trained model: the paper's pattern, the files, and what the terminal says."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from int8pass.errors import ConfigError
from int8pass.experiments import table1, table1_report
from int8pass.experiments.corpus import load_corpus
from int8pass.experiments.table1 import Row
from int8pass.experiments.training import trained_model

NONE, PLANTED = table1.QUICK.plantings


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(limit=table1.QUICK.training.corpus_limit)


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    return trained_model(table1.QUICK.training, corpus, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def found(model, corpus):
    told = []
    result = table1.run_table1(model, corpus, table1.QUICK, progress=told.append)
    assert len(told) == len(result.cells) == len(table1.ROWS) * len(table1.QUICK.plantings)
    return result


def test_planting_leaves_float32_alone(found):
    assert found.perplexity("float32", PLANTED) == pytest.approx(found.perplexity("float32", NONE), rel=1e-5)
    assert found.perplexity("float32", NONE) < 40  # of 256: it has learned something


def test_the_decomposition_is_what_keeps_planted_outliers_harmless(found):
    increase = {row: found.increase(row, PLANTED) for row in found.rows}
    assert abs(increase["llm.int8"]) < 1e-3 and abs(increase["llm.int8-zeropoint"]) < 1e-3
    assert abs(increase[table1.DEQUANTIZED.name]) < 0.2 * increase["absmax-vectorwise"]
    assert increase["absmax"] > 1.5 * increase["absmax-vectorwise"] > 0.015
    assert abs(found.increase("absmax-vectorwise", NONE)) < 1e-3  # without outliers it was good enough


def test_static_columns_and_ranges_come_from_training_text(model, corpus):
    settings = dataclasses.replace(table1.QUICK, plantings=(PLANTED,), pieces=16)
    static = {name: Row(f"{name}, static", {"scheme": name}, static=True) for name in ("llm.int8", "absmax-vectorwise")}
    result = table1.run_table1(model, corpus, settings, (table1.FLOAT32, *static.values()))
    increase = {name: result.increase(row.name, PLANTED) for name, row in static.items()}
    assert increase["absmax-vectorwise"] > 0.02 > 5 * abs(increase["llm.int8"])
    with pytest.raises(ConfigError, match="no batch to calibrate on"):
        table1.row_perplexity(model, static["llm.int8"], [], trained_on=[])


def test_json_holds_every_cell_and_says_that_the_outliers_are_planted(found):
    document = json.loads(found.to_json())
    assert document["schema"] == "int8pass-table1/1" and "planted, not learned" in document["statement"]
    cells = {(each["row"], each["planting"]["features"]): each["perplexity"] for each in document["cells"]}
    assert cells["llm.int8", 3] == found.perplexity("llm.int8", PLANTED)
    assert len(cells) == len(found.cells) and document["corpus"]["digest"] == load_corpus(limit=1 << 20).digest


def printed(found, width):
    console = Console(width=width, file=io.StringIO())
    console.print(table1_report.table(found))
    return console.file.getvalue()


def test_the_table_shows_perplexities_and_increases(found):
    text = printed(found, width=130)
    value = f"{found.perplexity('llm.int8', PLANTED):.4f}"
    assert value in text and f"{found.increase('llm.int8', PLANTED):+.2%}" in text
    assert "(3, 60)" in text and "planted, not learned" in text


def test_a_narrow_terminal_cuts_nothing(found):
    words = printed(found, width=80).split()
    assert set(" ".join(found.rows).split()) <= set(words)
    assert all(f"{found.increase(row, PLANTED):+.2%}" in words for row in found.rows if row != "float32")


def test_the_picture_is_drawn(found, tmp_path):
    from matplotlib.image import imread

    pixels = imread(table1_report.plot(found, tmp_path / "new" / "table1.png"))
    assert pixels.shape[:2] == (600, 1200) and pixels.std() > 0.05
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table1.png"]
