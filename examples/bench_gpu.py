"""int8mixed on an NVIDIA GPU: every kernel checked against float64, then timed beside cuBLAS, bitsandbytes, torchao.

python examples/bench_gpu.py                      everything: the paper's Table 5, decoding, Llama-3-8B-shaped blocks
python examples/bench_gpu.py --widths 4096 12288  fewer widths; --peers 'bare-*' 'float-*' fewer contestants
python examples/bench_gpu.py --check              the check alone
python examples/bench_gpu.py --tiles              the table of tiles for up to 64 rows, and its alternatives, timed
python examples/bench_gpu.py --products           Triton's int8 product beside cuBLASLt's; the faster is kept and used
                                                  (in float16; with --dtype bfloat16 for that)
python examples/bench_gpu.py --norms              quantization in one kernel with LayerNorm and RMSNorm, and apart;
                                                  the faster is kept and used (for each --dtype)
python examples/bench_gpu.py --quick              the check at small shapes; on a machine without a GPU, interpreted
python examples/bench_gpu.py --no-check ...       without the check, which this machine has passed; gpu.json says so
python examples/bench_gpu.py --draw               the charts of a gpu.json in --out, on any machine

Writes gpu.json, after each workload, and charts to --out. Times are device times: medians of CUDA-graph replays,
interleaved in one run. What is wrong is not timed: it is a row with its reason, and the status is 1 at the end.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1]))  # a checkout that is not installed

from int8pass.bench import gpu, gpu_choices, gpu_norms
from int8pass.bench.console import wide_console
from int8pass.bench.gpu_cases import LinearShape
from int8pass.bench.gpu_check import Check
from int8pass.bench.results import Run
from int8pass.errors import ConfigError, Int8PassError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def main() -> None:
    options = arguments()
    console = wide_console()
    try:
        if options.draw:
            draw(options.out, console)
            return
        if options.quick and not torch.cuda.is_available():
            gpu.interpret_kernels()
            gpu.require_right(gpu.check(torch.device("cpu"), large=False, console=console))
            return
        device = gpu.require_cuda()
        checks = None
        if not options.no_check:
            checks = gpu.check(device, not options.quick, console, options.check_seconds)
        if options.tiles or options.products or options.norms:
            choose(options, device, console, checks or ())
        elif not (options.quick or options.check):
            gpu.run(plan(options), device, console, checks)
        gpu.require_right(checks or ())
    except Int8PassError as error:
        sys.exit(f"error: {error}")


def draw(folder: Path, console: Console) -> None:
    path = folder / "gpu.json"
    if not path.is_file():
        raise ConfigError(f"there is no {str(path)!r} to draw: --out names the folder of a run's results")
    gpu.draw(Run.from_json(path.read_text(encoding="utf-8")), folder, console)


def choose(options: argparse.Namespace, device: torch.device, console: Console, checks: Sequence[Check]) -> None:
    held = (device, DTYPES[options.dtype], options.rounds, checks)
    if options.tiles:
        gpu_choices.measure_tiles(gpu_choices.Stopwatch(*held), shapes(options, gpu_choices.TILE_ROWS), console)
    if options.products:
        gpu_choices.measure_products(gpu_choices.Stopwatch(*held), shapes(options, gpu_choices.PRODUCT_ROWS), console)
    if options.norms:
        sizes = [(shape.rows, shape.features) for shape in shapes(options, gpu_choices.PRODUCT_ROWS)]
        gpu_norms.measure_norms(gpu_norms.Stopwatch(*held), sizes, console)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only check the kernels, at small shapes")
    checking = parser.add_mutually_exclusive_group()
    checking.add_argument("--check", action="store_true", help="only check the kernels")
    checking.add_argument("--no-check", action="store_true", help="time without checking the kernels first")
    parser.add_argument("--check-seconds", type=float, default=gpu.CHECK_SECONDS,
                        help="how long the check may take; what it has not done by then is not timed")  # fmt: skip
    parser.add_argument("--draw", action="store_true", help="only draw the charts of gpu.json in --out")
    parser.add_argument("--tiles", action="store_true", help="after the check, only time tiles of up to 64 rows")
    parser.add_argument("--products", action="store_true", help="after the check, only choose between int8 products")
    parser.add_argument("--norms", action="store_true", help="after the check, only choose where norms quantize")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"), help="folder of the results")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--widths", type=int, nargs="+", default=list(gpu.WIDTHS))
    parser.add_argument("--rows", type=int, nargs="+", default=None, help="instead of the usual rows of x")
    parser.add_argument("--no-blocks", action="store_true", help="single Linears alone")
    parser.add_argument("--peers", nargs="+", default=[], help="globs of contestants' names")
    return parser.parse_args()


def shapes(options: argparse.Namespace, rows: tuple[int, ...]) -> list[LinearShape]:
    return [LinearShape(count, width, 4 * width) for count in options.rows or rows for width in options.widths]


def plan(options: argparse.Namespace) -> gpu.Plan:
    rows = options.rows or [*gpu.PREFILL_ROWS, *gpu.DECODE_ROWS]
    return gpu.Plan(
        folder=options.out,
        widths=tuple(options.widths),
        prefill_rows=tuple(count for count in rows if count > 16),
        decode_rows=tuple(count for count in rows if count <= 16),
        blocks=None if options.no_blocks else gpu.BlockShape(),
        dtype=DTYPES[options.dtype],
        rounds=options.rounds,
        peers=tuple(options.peers),
    )


if __name__ == "__main__":
    main()
