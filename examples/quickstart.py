"""A trained sentence-embedding model in int8 with LLM.int8() accuracy, by one line: torch.compile(backend="int8mixed").

python examples/quickstart.py             what was rewritten, outlier columns, embedding errors: about a minute
python examples/quickstart.py --compare   and a table beside bitsandbytes, torchao and PyTorch: some minutes
python examples/quickstart.py --quick     few sentences, no Inductor: seconds
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import int8pass
from int8pass.bench import minilm, peers

QUERIES = (
    "How do I copy a whole folder?",
    "the middle value and the mean of some numbers",
    "start another program and read what it prints",
)


def main() -> None:
    options = arguments()
    count, lowering = (26, "eager") if options.quick else (128, "inductor")
    print(f"all-MiniLM-L6-v2 and {count} sentences from the docstrings of Python's standard library\n")
    try:
        lm = minilm.load()
    except int8pass.Int8PassError as error:
        sys.exit(str(error))
    sentences = minilm.sentences(count)
    batches = lm.batches(sentences)

    with step("what int8mixed rewrites, measured on these sentences"):
        report = int8pass.explain(lm.model, kwargs=lm.tokens(sentences))
    print(f"\n{report}\n")

    reference = minilm.embed(lm.model, batches)
    with step(f"compiling and running int8mixed with lowering={lowering!r}"):
        model = compiled(lm.model, lowering=lowering)
        embeddings = minilm.embed(model, batches)
    with step("the same without the outlier branch: threshold=0.0, lowering='eager', which needs no compiling"):
        without_branch = minilm.embed(compiled(lm.model, threshold=0.0, lowering="eager"), batches)
    print("\nmean 1 - cosine to the float32 embeddings")
    print(f"    with the outlier branch     {minilm.cosine_error(embeddings, reference):.2e}")
    print(f"    without the outlier branch  {minilm.cosine_error(without_branch, reference):.2e}")

    show_nearest(sentences, reference, embeddings, lm, model)
    for wanted, contestants in ((options.compare, peers.PEERS), (options.outliers, peers.OUTLIERS)):
        if wanted:
            alone = [lm.tokens([sentence, sentence]) for sentence in sentences[:32]]
            show_table(peers.compare(lm.model, batches, alone, contestants, progress=print))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sentences, no Inductor")
    parser.add_argument("--compare", action="store_true", help="add a table of speed and memory beside other libraries")
    parser.add_argument("--outliers", action="store_true", help="add a table of outliers by column and by token")
    return parser.parse_args()


def compiled(model: torch.nn.Module, **options) -> Callable:
    """The one line that this example is about. dynamic=True: batches differ in length, one graph serves all."""
    return torch.compile(model, backend="int8mixed", dynamic=True, options=options)


@contextmanager
def step(what: str) -> Iterator[None]:
    print(f"{what} ...", end="", flush=True)
    start = time.perf_counter()
    yield
    print(f" {time.perf_counter() - start:.1f} s")


def show_nearest(sentences: list[str], float32: Tensor, int8: Tensor, lm: minilm.MiniLM, model: Callable) -> None:
    """For each query the nearest sentence, found in int8 and in float32."""
    print("\nnearest sentences to three questions, in int8 and in float32")
    tokens = [lm.tokens(QUERIES)]
    for query, in_int8, in_float32 in zip(
        QUERIES, minilm.embed(model, tokens), minilm.embed(lm.model, tokens), strict=True
    ):
        best, cosine = minilm.nearest(in_int8, int8)
        same, expected = minilm.nearest(in_float32, float32)
        print(f"    {query}")
        print(f"      -> {sentences[best]}")
        print(
            f"         cosine {cosine:.4f} (float32: {expected:.4f}, {'the same' if best == same else 'another'} one)"
        )


def show_table(results: list[peers.Result]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("how", no_wrap=True)
    for heading in ("1 - cosine", "alone/batch", "time/float32", "Linears MB", "model MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        errors = (f"{max(error, 0.0):.1e}" for error in (row.error, row.batching))
        sizes = (f"{size / 1e6:.1f}" for size in (row.linear_bytes, row.model_bytes))
        table.add_row(row.name, *(("not run",) if row.failure else (*errors, f"{row.time:.2f}", *sizes)))
    Console(width=110).print(table)
    print("1 - cosine: to float32. alone/batch: 1 - cosine of a sentence by itself to the same one in its batch of 16.")
    for row in results:
        if row.failure:
            print(f"{row.name} did not run: {row.failure}")


if __name__ == "__main__":
    main()
