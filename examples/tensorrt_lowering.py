"""A trained sentence-embedding model in TensorRT engines through torch-tensorrt: saved, loaded, compared with float32.

python examples/tensorrt_lowering.py           calibrate, convert, compile, save model.ep, load it, compare
python examples/tensorrt_lowering.py --quick   few sentences

Needs torch-tensorrt and a GPU: not yet run there.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import int8pass
from int8pass.bench import minilm
from int8pass.lower.tensorrt import compile_program, import_torch_tensorrt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sentences")
    count = 32 if parser.parse_args().quick else 128
    try:
        torch_tensorrt = import_torch_tensorrt()
        lm = minilm.load()
        with tempfile.TemporaryDirectory() as folder:
            run(torch_tensorrt, lm, lm.batches(minilm.sentences(count)), Path(folder, "model.ep"))
    except int8pass.Int8PassError as error:
        sys.exit(str(error))


def run(torch_tensorrt, lm: minilm.MiniLM, batches: list[minilm.Tokens], path: Path) -> None:
    profile = int8pass.calibrate(lm.model, batches)
    model, tokens = lm.model.cuda(), {name: value.cuda() for name, value in batches[0].items()}
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state
        program = torch.export.export(model, (), tokens)

    converted = int8pass.convert(program, options={"profile": profile})
    engines = compile_program(converted, kwargs=tokens)
    torch_tensorrt.save(engines, str(path), kwarg_inputs=tokens)

    loaded = torch_tensorrt.load(str(path)).module()  # in a process that imports int8pass
    result = loaded(**tokens).last_hidden_state
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"relative error of the last hidden states: {float((result - expected).norm() / expected.norm()):.2e}")

    # The same without a file: torch.compile builds the engines at the first call.
    compiled = torch.compile(model, backend="int8mixed", options={"lowering": "tensorrt", "profile": profile})
    with torch.no_grad():
        result = compiled(**tokens).last_hidden_state
    print(f"by torch.compile: {float((result - expected).norm() / expected.norm()):.2e}")


if __name__ == "__main__":
    main()
