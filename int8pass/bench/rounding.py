"""What better rounding does to a trained model: `python -m int8pass.bench.rounding`, which prints a Markdown table.

MiniLM's embeddings of 128 sentences, with profiles calibrated on 256 others: weights rounded to nearest or compensated
(GPTQ), scale migration or none, at thresholds 6 and 3, each with and without the others, in one run.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import int8pass
from int8pass.bench import minilm

MEASURED, CALIBRATED = 128, minilm.CALIBRATED  # sentences
THRESHOLDS = (6.0, 3.0)
SETTINGS = tuple({"rounding": rounding, "migration": on} for rounding in ("nearest", "gptq") for on in (False, True))


@dataclass(frozen=True)
class Row:
    """error: mean 1 - cosine to the float32 embeddings; columns: outlier columns in the mean over Linears; factors:
    weights whose input is scaled. Both None without a profile.
    """

    threshold: float
    how: str
    error: float
    columns: float | None = None
    factors: int | None = None


def run(
    measured: int = MEASURED,
    calibrated: int = CALIBRATED,
    thresholds: Sequence[float] = THRESHOLDS,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """A row for each threshold without a profile, and with one of each setting. Raises MissingDependencyError."""
    lm = minilm.load()
    sentences = minilm.sentences(measured + calibrated)
    batches, others = lm.batches(sentences[:measured]), lm.batches(sentences[measured:])
    reference = minilm.embed(lm.model, batches)

    def error(options: Mapping[str, Any]) -> float:
        torch._dynamo.reset()
        options = {**options, "lowering": "eager"}  # the codes are the same, and nothing has to be compiled
        model = torch.compile(lm.model, backend="int8mixed", dynamic=True, options=options)
        return minilm.cosine_error(minilm.embed(model, batches), reference)

    rows = []
    for threshold in thresholds:
        options = {"threshold": threshold}
        rows.append(Row(threshold, "no profile", error(options)))
        for setting in SETTINGS:
            how = f"{setting['rounding']}{', migration' if setting['migration'] else ''}"
            progress(f"threshold {threshold:g}: {how}")
            profile = int8pass.calibrate(lm.model, others, options=options, **setting, progress=False)
            columns = sum(len(layer.outlier_columns) for layer in profile.layers) / len(profile.layers)
            weights = () if profile.rounded is None else profile.rounded.weights.values()
            factors = sum(weight.input_factor is not None for weight in weights)
            rows.append(Row(threshold, how, error({**options, "profile": profile}), columns, factors))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| threshold | rounding | 1 - cosine | outlier columns | scaled inputs |", "|--:|---|--:|--:|--:|"]
    for row in rows:
        known = ("", "") if row.columns is None else (f"{row.columns:.1f}", str(row.factors))
        lines.append(f"| {row.threshold:g} | {row.how} | {row.error:.2e} | {known[0]} | {known[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sentences and one threshold: a check that all runs")
    quick = parser.parse_args().quick
    sizes = {"measured": 8, "calibrated": 8, "thresholds": (6.0,)} if quick else {}
    print(table(run(**sizes, progress=lambda text: print(text, file=sys.stderr, flush=True))))


if __name__ == "__main__":
    main()
