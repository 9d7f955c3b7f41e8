"""Exported files in ONNX Runtime on the CPU: Linears beside their float32 export and ONNX Runtime's quantize_dynamic.

python -m int8pass.bench.onnx_files [--rounds 9] [--threads 1] [--quick]

Up to eight layers in one file, each on its own input with six outlier columns of magnitude 20; the columns are known
from a profile. Ratios are medians over interleaved rounds; `size` is that of the files, less biases.
"""

import argparse
import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from int8pass import calibrate, export_onnx
from int8pass.bench import onnx_runtime
from int8pass.bench.linear_case import Point, copies_needed
from int8pass.bench.measure import quiet, relative_error
from int8pass.bench.timing import geometric_mean, interleave, ratio
from int8pass.export.runtime import session

SHAPES = ((768, 3072), (3072, 768), (4096, 4096), (4096, 11008))  # in_features, out_features
ROWS = (1, 16, 128, 512)
FLOAT32, QUANTIZE_DYNAMIC, PROFILE = "float32", "quantize_dynamic", "int8pass, profile"


class Stack(nn.Module):
    """Layers that each have their own input."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, xs, strict=True)]


@dataclasses.dataclass(frozen=True)
class Files:
    """What runs, by contestant, for any number of rows; and the bytes of each file over those of float32."""

    runs: dict[str, Callable[[list[Tensor]], list]]
    sizes: dict[str, float]


@contextlib.contextmanager
def files(point: Point, threads: int) -> Iterator[Files]:
    """Write and load the three files of a point's first stack."""
    model, xs = Stack(point.stacks[0]).eval(), point.aliases(point.moving[0])
    dynamic = {"xs": [{0: torch.export.Dim.DYNAMIC} for _ in xs]}
    options = {"profile": calibrate(model, [(xs,)], progress=False)}
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        torch.onnx.export(
            model, (xs,), folder / "float.onnx", dynamic_shapes=dynamic, dynamo=True, verbose=False, external_data=True
        )
        export_onnx(model, (xs,), folder / "int8pass.onnx", dynamic_shapes=dynamic, options=options)
        runs = {
            FLOAT32: session(folder / "float.onnx", threads=threads),
            QUANTIZE_DYNAMIC: onnx_runtime.quantized_session(folder / "float.onnx", threads),
            PROFILE: session(folder / "int8pass.onnx", threads=threads),
        }
        weights = sum(4 * layer.weight.numel() for layer in model.layers)
        biases = sum(4 * layer.bias.numel() for layer in model.layers)
        written = sum(file.stat().st_size for file in folder.glob("int8pass.onnx*"))
        yield Files({key: _caller(run) for key, run in runs.items()}, {PROFILE: (written - biases) / weights})


def _caller(run: object) -> Callable[[list[Tensor]], list]:
    names = [given.name for given in run.get_inputs()]
    return lambda xs: run.run(None, {name: x.numpy() for name, x in zip(names, xs, strict=True)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small sizes: a check that all runs")
    options = parser.parse_args()
    shapes, rows = (((64, 96),), (1, 16)) if options.quick else (SHAPES, ROWS)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("Linear", "M", "/ quantize_dynamic", "float32 /", "error", "its error", "size"):
        table.add_column(heading, justify="left" if heading == "Linear" else "right", no_wrap=True)
    to_dynamic: list[float] = []
    from_float: dict[int, list[float]] = {count: [] for count in rows}
    for k, n in shapes:
        largest = Point(k, n, max(rows), torch.float32, copies_needed(k, n, 8), options.threads)
        with files(largest, options.threads) as written:
            for count in rows:
                xs = largest.aliases(largest.moving[0][:count].contiguous())
                calls = {name: functools.partial(run, xs) for name, run in written.runs.items()}
                seconds = interleave(calls, options.rounds)
                slower = ratio(seconds[PROFILE], seconds[QUANTIZE_DYNAMIC])
                faster = ratio(seconds[FLOAT32], seconds[PROFILE])
                to_dynamic.append(slower)
                from_float[count].append(faster)
                exact = torch.from_numpy(calls[FLOAT32]()[0]).double()
                outputs = [torch.from_numpy(calls[name]()[0]) for name in (PROFILE, QUANTIZE_DYNAMIC)]
                errors = [f"{relative_error(output, exact):.1e}" for output in outputs]
                size = f"{written.sizes[PROFILE]:.3f}"
                table.add_row(f"{k}x{n}", str(count), f"{slower:.2f}", f"{faster:.2f}", *errors, size)
    console = Console(width=110)
    console.print(table)
    console.print(f"time over quantize_dynamic's, geometric mean: {geometric_mean(to_dynamic):.3f}")
    for count, values in from_float.items():
        console.print(f"float32's time over it, geometric mean at M = {count}: {geometric_mean(values):.2f}")


if __name__ == "__main__":
    main()
