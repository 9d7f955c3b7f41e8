"""Table 1 of the LLM.int8() paper in miniature, from nothing but a Python installation.

python examples/paper_table1.py             trains a byte-level language model on the standard library's source (about
                                            ten minutes on two cores, once), plants outlier features in it, and gives
                                            the perplexity of every quantization scheme: a table, JSON and a picture
python examples/paper_table1.py --quick     a tiny model, in seconds
python examples/paper_table1.py --retrain   train again, whatever is in the cache folder
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from int8pass import Int8PassError
from int8pass.bench.charts import require_matplotlib
from int8pass.experiments import table1, table1_report
from int8pass.experiments.corpus import load_corpus
from int8pass.experiments.progress import progress_bar
from int8pass.experiments.training import trained_model
from int8pass.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and two settings")
    parser.add_argument("--retrain", action="store_true", help="train again, whatever is in the cache folder")
    parser.add_argument("--out", type=Path, default=Path("table1"), metavar="FOLDER", help="for JSON and picture")
    arguments = parser.parse_args()
    try:
        require_matplotlib()
        run(table1.QUICK if arguments.quick else table1.Table1Settings(), arguments.retrain, arguments.out)
    except Int8PassError as error:
        sys.exit(str(error))


def run(settings: table1.Table1Settings, retrain: bool, out: Path) -> None:
    corpus = load_corpus(limit=settings.training.corpus_limit)
    with progress_bar("training", settings.training.steps) as advance:
        model = trained_model(
            settings.training, corpus, retrain=retrain, progress=lambda _, loss: advance(f"{loss:.3f} nats a byte")
        )
    with progress_bar("perplexity", len(settings.plantings) * len(table1.ROWS)) as advance:
        found = table1.run_table1(model, corpus, settings, progress=advance)
    Console().print(table1_report.table(found))
    write_text(out / "table1.json", found.to_json() + "\n")
    table1_report.plot(found, out / "table1.png")
    print(f"written: {out / 'table1.json'}, {out / 'table1.png'}")


if __name__ == "__main__":
    main()
