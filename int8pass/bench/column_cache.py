"""How often outlier columns are found in a weight's cache, on the trained MiniLM, and what one that is not costs.

python -m int8pass.bench.column_cache [--sentences 128]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from int8pass.bench import minilm
from int8pass.weight_cache import WEIGHTS
from int8pass.weights import ColumnCounts

SHAPES = ((768, 3072), (3072, 768), (4096, 4096), (4096, 11008))  # in_features, out_features
_CALLS = 40


def counts(model: nn.Module) -> ColumnCounts:
    """What became of all outlier columns that calls of a compiled model asked for so far."""
    found = [WEIGHTS.cached_columns(parameter) for parameter in model.parameters()]
    return ColumnCounts(*map(sum, zip(*found, strict=True)))


def miss_seconds(in_features: int, out_features: int) -> float:
    """Median seconds that a call for one row takes longer where one of its six outlier columns is new."""
    torch._dynamo.reset()
    linear = nn.Linear(in_features, out_features).requires_grad_(False)
    call = torch.compile(linear, backend="int8mixed")
    columns = torch.randperm(in_features)
    x = torch.randn(1, in_features)
    x[:, columns[:5]] = 20.0
    call(x)
    kept, moved = [], []
    for turn in range(_CALLS):
        new = with_outlier(x, int(columns[5 + turn]))
        moved.append(_seconds(call, new))
        kept.append(_seconds(call, new))
    return statistics.median(moved) - statistics.median(kept)


def with_outlier(x: Tensor, column: int) -> Tensor:
    """A copy of x [M, K] with one more outlier column."""
    new = x.clone()
    new[:, column] = 20.0
    return new


def _seconds(call: Callable, x: Tensor) -> float:
    start = time.perf_counter()
    call(x)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=128)
    options = parser.parse_args()
    lm = minilm.load()
    model = torch.compile(lm.model, backend="int8mixed", dynamic=True)
    before = ColumnCounts(0, 0, 0, 0)
    for name in ("first pass over the sentences", "second pass"):
        minilm.embed(model, lm.batches(minilm.sentences(options.sentences)))
        now = counts(lm.model)
        found, gathered = now.found - before.found, now.gathered - before.gathered
        asked = found + gathered
        print(
            f"{name}: {asked} columns asked for, {found / asked:.1%} found, {now.nbytes / 1e6:.2f} MB held", flush=True
        )
        before = now
    for shape in SHAPES:
        print(f"a column that is not held, {shape[0]} -> {shape[1]}, M = 1: {miss_seconds(*shape) * 1e6:.0f} us more")


if __name__ == "__main__":
    main()
