"""A trained sentence-embedding model as an ONNX file in int8, run in ONNX Runtime beside two other files of it.

python examples/export_onnx.py           float32, ONNX Runtime's quantize_dynamic and int8pass: accuracy, size, speed
python examples/export_onnx.py --quick   few sentences and rounds
"""

import argparse
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import int8pass
from int8pass.bench import minilm, onnx_runtime
from int8pass.bench.measure import quiet
from int8pass.bench.timing import interleave, ratio
from int8pass.export.runtime import session

FLOAT32, QUANTIZE_DYNAMIC = "float32", "quantize_dynamic"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sentences and rounds")
    quick = parser.parse_args().quick
    count, rounds = (32, 3) if quick else (128, 9)
    try:
        lm = minilm.load()
        with tempfile.TemporaryDirectory() as folder:
            compare(lm, minilm.sentences(count), Path(folder), rounds)
    except int8pass.Int8PassError as error:
        sys.exit(str(error))


def compare(lm: minilm.MiniLM, sentences: list[str], folder: Path, rounds: int) -> None:
    batches = lm.batches(sentences)
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batches[0]}

    print(f"which input columns hold outliers, on {len(sentences)} sentences")
    profile = int8pass.calibrate(lm.model, batches)
    profile.save(folder / "profile.json")

    print("writing the files ...", flush=True)
    paths = {
        "int8pass, profile": {"options": {"profile": folder / "profile.json"}},
        "int8pass, runtime": {"outlier_columns": "runtime"},
        "int8pass, threshold 0": {"options": {"threshold": 0.0}},
    }
    runs, sizes = float_and_dynamic(lm, batches[0], dynamic, folder)
    for name, keywords in paths.items():
        path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
        int8pass.export_onnx(lm.model, None, path, kwargs=batches[0], dynamic_shapes=dynamic, **keywords)
        runs[name], sizes[name] = caller(session(path)), path.stat().st_size

    reference = minilm.embed(lm.model, batches)
    errors = {name: minilm.cosine_error(minilm.embed(run, batches), reference) for name, run in runs.items()}
    print(f"timing, {rounds} interleaved rounds ...", flush=True)
    calls = {name: (lambda run=run: [run(**tokens) for tokens in batches]) for name, run in runs.items()}
    seconds = interleave(calls, rounds)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("file", no_wrap=True)
    for heading in ("1 - cosine", "MB", "time/float32"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in runs:
        relative = ratio(seconds[name], seconds[FLOAT32])
        table.add_row(name, f"{max(0.0, errors[name]):.1e}", f"{sizes[name] / 1e6:.1f}", f"{relative:.2f}")
    Console(width=100).print(table)
    print("1 - cosine: mean over the sentences, to the float32 embeddings. MB: 47.6 of each are float32 embeddings.")


def float_and_dynamic(lm: minilm.MiniLM, tokens: dict, dynamic: dict, folder: Path) -> tuple[dict, dict]:
    """The float32 export of torch.onnx, and what onnxruntime.quantization.quantize_dynamic makes of it."""
    path = folder / "float32.onnx"
    with quiet():
        torch.onnx.export(
            lm.model, (), path, kwargs=tokens, dynamic_shapes=dynamic, dynamo=True, verbose=False, external_data=False
        )
        dynamic_session = onnx_runtime.quantized_session(path, threads=0)
    size = sum(file.stat().st_size for file in folder.glob("float32.int8.onnx*"))
    runs = {FLOAT32: caller(session(path)), QUANTIZE_DYNAMIC: caller(dynamic_session)}
    return runs, {FLOAT32: path.stat().st_size, QUANTIZE_DYNAMIC: size}


def caller(run: object) -> Callable:
    """A session as a function of keyword tensors, like the model."""
    names = [given.name for given in run.get_inputs()]

    def call(**tokens: torch.Tensor) -> types.SimpleNamespace:
        hidden = run.run(None, {name: tokens[name].numpy() for name in names})[0]
        return types.SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))

    return call


if __name__ == "__main__":
    main()
