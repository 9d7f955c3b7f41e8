"""Every scheme on both models, as Markdown: `python -m int8pass.experiments.scheme_table`.

Each scheme, with dynamic and with static activations: the perplexity of Table 1's language model (trained at the first
run) with six planted features, 60 times larger; the error of MiniLM's embeddings of 128 sentences, and the time that
they take beside the float model. Static ranges come from text that is not measured on.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping

from int8pass.bench import minilm
from int8pass.call_arguments import call_arguments
from int8pass.config import Int8MixedConfig
from int8pass.experiments import table1
from int8pass.experiments.corpus import load_corpus
from int8pass.experiments.sweep import SweepRow, candidates, run_sweep
from int8pass.experiments.training import trained_model
from int8pass.quantization.scheme import DEFAULT

PLANTING = table1.Planting(6, 60)
_ROUNDS = 60  # of times that differ by a few percent
_HEAD = "| scheme | activations | perplexity | above float32 | MiniLM, 1 - cosine | time/float32 |"
_RULE = "|---|---|--:|--:|--:|--:|"

Tell = Callable[[str], None]
Key = tuple[str, str]  # name of a row of Table 1 without its ", static activations"; "dynamic" or "static"


def perplexities(settings: table1.Table1Settings, tell: Tell) -> table1.Table1:
    """Every scheme, dynamic and static, under PLANTING. Trains the model if it is not there."""
    corpus = load_corpus(limit=settings.training.corpus_limit)
    model = trained_model(settings.training, corpus, progress=lambda step, loss: tell(f"step {step}: {loss:.3f}"))
    settings = dataclasses.replace(settings, plantings=(PLANTING,))
    return table1.run_table1(model, corpus, settings, table1.ROWS + table1.STATIC_ROWS, tell)


def embedding_errors(batches: int | None, rounds: int, lowering: str, tell: Tell) -> dict[Key, SweepRow]:
    """Every scheme on MiniLM. batches: how many to measure and to calibrate on, None for all."""
    model, _, _ = minilm.embedder()
    measured = [call_arguments(batch) for batch in minilm.batches()[:batches]]
    others = [call_arguments(batch) for batch in minilm.calibration_batches()[:batches]]
    config = Int8MixedConfig(lowering=lowering)
    thresholds = (DEFAULT.default_threshold,)
    tried = candidates(thresholds=thresholds, static=True)
    found = run_sweep(model, measured, tried, config, rounds, tell, others).rows
    config = dataclasses.replace(config, outlier_weights="dequantized")
    (last,) = run_sweep(model, measured, candidates([DEFAULT.name], thresholds), config, rounds, tell).rows
    return {(row.scheme, row.activations): row for row in found} | {(table1.DEQUANTIZED.name, "dynamic"): last}


def table(found: table1.Table1, embedded: Mapping[Key, SweepRow]) -> str:
    """A line a row of Table 1, as Markdown."""
    lines = [_HEAD, _RULE]
    for name in found.rows:
        scheme = name.removesuffix(table1.STATIC_SUFFIX)
        activations = "dynamic" if scheme == name else "static"
        increase = f"{found.increase(name, PLANTING):+.2%}"
        cells = [scheme, activations, f"{found.perplexity(name, PLANTING):.4f}", increase]
        if name == table1.FLOAT32.name:
            cells = [scheme, "", cells[2], "", "", "1.00"]
        else:
            row = embedded[scheme, activations]
            cells += [f"{row.cosine_error:.1e}", f"{row.time:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny language model, one batch: a check that all runs")
    quick = parser.parse_args().quick

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = perplexities(table1.QUICK if quick else table1.Table1Settings(), tell)
    sizes = (1, 1, "eager") if quick else (None, _ROUNDS, "inductor")
    print(table(found, embedding_errors(*sizes, tell)))


if __name__ == "__main__":
    main()
