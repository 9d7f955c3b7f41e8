"""A trained sentence-embedding model as a TensorRT engine in int8, compared with float32 in PyTorch.

python examples/build_engine.py           calibrate, write the ONNX file, check it, build and run the engine
python examples/build_engine.py --quick   few sentences

Needs TensorRT and a GPU from the building of the engine on; not yet run there. What comes before needs neither.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import int8pass
from int8pass.bench import minilm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sentences")
    count = 32 if parser.parse_args().quick else 128
    try:
        lm = minilm.load()
        with tempfile.TemporaryDirectory() as folder:
            build(lm, lm.batches(minilm.sentences(count)), Path(folder))
    except int8pass.Int8PassError as error:
        sys.exit(str(error))


def build(lm: minilm.MiniLM, batches: list[minilm.Tokens], folder: Path) -> None:
    profile = int8pass.calibrate(lm.model, batches)
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batches[0]}
    options = {"profile": profile}
    path = int8pass.export_onnx(
        lm.model,
        None,
        folder / "model.onnx",
        kwargs=batches[0],
        dynamic_shapes=dynamic,
        options=options,
        target="tensorrt",
    )
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, and keeps TensorRT's rules")
    print(int8pass.build_engine(path, folder / "model.engine"))
    engine = int8pass.load_engine(folder / "model.engine")
    inputs = {name: value.cuda() for name, value in batches[0].items()}
    with torch.no_grad():
        expected = lm.model(**batches[0]).last_hidden_state
    result = next(iter(engine(**inputs).values())).cpu()
    print(f"relative error of the last hidden states: {float((result - expected).norm() / expected.norm()):.2e}")


if __name__ == "__main__":
    main()
