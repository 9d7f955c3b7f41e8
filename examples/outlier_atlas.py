"""Which features of a trained model are outliers, in what share of its layers and positions: a table and pictures.

python examples/outlier_atlas.py           all-MiniLM-L6-v2 on 256 sentences from the standard library's docstrings
python examples/outlier_atlas.py --quick   32 sentences
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from int8pass import Int8PassError
from int8pass.bench import minilm
from int8pass.bench.charts import require_matplotlib
from int8pass.experiments import atlas, atlas_report
from int8pass.experiments.progress import progress_bar
from int8pass.files import write_text

TITLE = "all-MiniLM-L6-v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sentences")
    parser.add_argument("--out", type=Path, default=Path("atlas"), metavar="FOLDER", help="for JSON and pictures")
    arguments = parser.parse_args()
    try:
        require_matplotlib()
        run(32 if arguments.quick else 256, arguments.out)
    except Int8PassError as error:
        sys.exit(str(error))


def run(count: int, out: Path) -> None:
    lm = minilm.load()
    batches = [((), tokens) for tokens in lm.batches(minilm.sentences(count))]
    with progress_bar("batches", len(batches)) as advance:
        found = atlas.outlier_atlas(lm.model, atlas.bert_places(len(lm.model.encoder.layer)), batches, advance)
    console = Console()
    (console if console.is_terminal else Console(width=110)).print(atlas_report.feature_table(found))
    print(atlas_report.summary(found))
    write_text(out / "atlas.json", found.to_json() + "\n")
    heat = atlas_report.heat_map(found, out / "heat-map.png", TITLE)
    bars = atlas_report.shares(found, out / "shares.png", TITLE)
    print(f"written: {out / 'atlas.json'}, {heat}, {bars}")


if __name__ == "__main__":
    main()
