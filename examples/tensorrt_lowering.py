"""A trained sentence-embedding model in TensorRT engines through torch-tensorrt: saved, loaded, compared with float32.

python examples/tensorrt_lowering.py           convert, compile, save, load, compare: in both forms of int8 Linears
python examples/tensorrt_lowering.py --quick   few sentences

Needs torch-tensorrt and a GPU: not yet run on a GPU.
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
            run(torch_tensorrt, lm, lm.batches(minilm.sentences(count)), Path(folder))
    except int8pass.Int8PassError as error:
        sys.exit(str(error))


def run(torch_tensorrt, lm: minilm.MiniLM, batches: list[minilm.Tokens], folder: Path) -> None:
    profile = int8pass.calibrate(lm.model, batches)
    model, tokens = lm.model.cuda(), {name: value.cuda() for name, value in batches[0].items()}
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state
        program = torch.export.export(model, (), tokens)

    def report(what: str, result: torch.Tensor) -> None:
        print(f"{what}: relative error {float((result - expected).norm() / expected.norm()):.2e}")

    # With a profile, TensorRT's own layers. Without one, outliers are found in each call, by the plugin.
    for name, options in (("profile", {"profile": profile}), ("plugin", {})):
        path = folder / f"{name}.ep"
        engines = compile_program(int8pass.convert(program, options=options), kwargs=tokens)
        torch_tensorrt.save(engines, str(path), kwarg_inputs=tokens)
        # Another process first calls import_torch_tensorrt, as this one did: that makes the plugin known to TensorRT.
        loaded = torch_tensorrt.load(str(path)).module()
        report(f"{path.name}, {path.stat().st_size / 1e6:.1f} MB", loaded(**tokens).last_hidden_state)

        # The same without a file: torch.compile builds the engines at the first call.
        torch.compiler.reset()
        compiled = torch.compile(model, backend="int8mixed", options={"lowering": "tensorrt", **options})
        with torch.no_grad():
            report(f"{name}, by torch.compile", compiled(**tokens).last_hidden_state)


if __name__ == "__main__":
    main()
