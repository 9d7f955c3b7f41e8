"""What the CUDA kernels choose between, measured: tiles of at most 64 rows, and whose int8 product many rows take."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from int8pass.bench.gpu_cases import LinearShape
from int8pass.bench.gpu_check import BY_CUBLASLT, IN_PARTS, LINEAR, QUANTIZE, Check, why_not
from int8pass.bench.gpu_graphs import captured, device_clock, nothing
from int8pass.bench.measure import Prepared, Unavailable, measure
from int8pass.bench.results import Measurement
from int8pass.bench.tables import duration, times
from int8pass.bench.timing import median, ratio
from int8pass.kernels.cuda import products
from int8pass.kernels.cuda.column_words import words_field
from int8pass.kernels.cuda.comparisons import Comparison
from int8pass.weights import quantize_weight

TILE_ROWS = (16, 32, 64)
PRODUCT_ROWS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # choices hold up to the next power of two
_OUTLIERS, _THRESHOLD = 8, 6.0

Product = Callable[..., object]  # of codes [M, K], w_codes [N, K] and an epilogue


@dataclass(frozen=True)
class _Way:
    name: str
    product: Product


class Stopwatch:
    """Times ways to compute one Linear, quantization not included, as CUDA graphs, interleaved.

    Weights are so many that each is read from memory; all outlier columns are in their caches. checks: of the kernels;
    what is wrong is not timed.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, rounds: int, checks: Sequence[Check] = ()) -> None:
        self.device, self.dtype, self._rounds, self._checks = device, dtype, rounds, checks
        self._cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0

    def __call__(self, shape: LinearShape, ways: Mapping[str, Product]) -> dict[str, Measurement]:
        """Seconds a Linear, or why there are none (a tile that the device cannot run, no memory), by name."""
        operands = functools.cache(lambda: self._operands(shape))

        def prepare(way: _Way) -> Prepared:
            held = operands()
            way.product(*held[0])
            call = captured(lambda: [way.product(*each) for each in held], self.device)
            return Prepared(call, len(held))

        contestants = [_Way(*each) for each in ways.items()]
        clock = device_clock(self.device)
        found = measure(contestants, prepare, self._rounds, clock=clock, before=nothing)
        return {each.name: each for each in found}

    def unless_wrong(self, product: Product, *ops: str) -> Product:
        """The product; where one of these ops of the check is wrong, what says so when it is called."""
        if not (reason := why_not(self._checks, self.dtype, (QUANTIZE, *ops))):
            return product

        def refuse(*operands: object) -> object:
            raise Unavailable(reason)

        return refuse

    def _operands(self, shape: LinearShape) -> list[tuple]:
        from int8pass.kernels.cuda import fused
        from int8pass.kernels.cuda.epilogue import Epilogue

        x = shape.input(_OUTLIERS, self.device, self.dtype)
        codes, scale, columns = fused.cuda_quantize(x, _THRESHOLD, False)
        operands = []
        for layer in shape.layers(shape.copies(self._cache_bytes), self.device, self.dtype).layers:
            quantized = quantize_weight(layer.weight)
            words = getattr(quantized, words_field(self.dtype))
            held = (scale, quantized.scale, layer.bias, x, layer.weight, words, columns)
            operands.append((codes, quantized.codes, Epilogue(*held, fused.COLUMN, _THRESHOLD, self.dtype)))
        return operands


def _by_tile(product: Product, tile: object, codes: Tensor, weight: Tensor, ending: object) -> object:
    return product(codes, weight, ending, tile)


def measure_tiles(stopwatch: Stopwatch, shapes: Sequence[LinearShape], console: Console) -> None:
    """Print, for each Linear, the tile that the table gives it and what each alternative takes beside it."""
    from int8pass.kernels.cuda.capability import multiprocessors
    from int8pass.kernels.cuda.gemm import int8_gemm
    from int8pass.kernels.cuda.tiles import candidates, tile_for

    for shape in shapes:
        size = (shape.rows, shape.outputs, shape.features)
        chosen = tile_for(*size, multiprocessors(stopwatch.device))
        tiles = {"timed by Triton": None} if chosen is None else {str(chosen): chosen}
        tiles |= {str(tile): tile for tile in candidates(shape.rows, shape.features) if tile != chosen}
        ways = {
            name: stopwatch.unless_wrong(functools.partial(_by_tile, int8_gemm, tile), LINEAR, IN_PARTS)
            for name, tile in tiles.items()
        }
        found = stopwatch(shape, ways)
        table = Table(title=f"{shape.name}: tiles, the first is used", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("rows x columns x depth", "time", "speed / first"):
            table.add_column(heading, no_wrap=True)
        table.add_column("", overflow="fold")
        first = next(iter(found.values()))
        for name, way in found.items():
            speed = times(ratio(first.seconds, way.seconds))
            table.add_row(name, duration(median(way.seconds)), speed, escape(way.failure))
        console.print(table)


def measure_products(stopwatch: Stopwatch, shapes: Sequence[LinearShape], console: Console) -> list[Comparison]:
    """Time Triton's GEMM beside cuBLASLt's with one kernel behind it, print and keep which is faster.

    What is kept, after each Linear, is used from then on. Linears that cuBLASLt does not take, or that one of the two
    could not compute, are left out. Raises OutputError.
    """
    from int8pass.kernels.cuda.capability import multiprocessors
    from int8pass.kernels.cuda.gemm import int8_gemm
    from int8pass.kernels.cuda.many_rows import cublaslt_linear
    from int8pass.kernels.cuda.tiles import tile_for

    def show(name: str, own: str, library: str, speed: str, failures: str = "") -> None:
        row = f"{name:22}{own:>10}{library:>10}{speed:>16}  {failures}"
        console.print(row.rstrip(), markup=False, highlight=False, soft_wrap=True)

    show("int8 product and after", "Triton", "cuBLASLt", "speed / Triton")
    compared, kept = [], None
    for shape in shapes:
        size = (shape.rows, shape.outputs, shape.features)
        if not products.cublaslt_takes(*size):
            show(shape.name, "-", "-", "-", "not taken: 17 rows or more, N and K multiples of 8")
            continue
        tile = tile_for(*size, multiprocessors(stopwatch.device))
        ways = {
            products.TRITON: stopwatch.unless_wrong(functools.partial(_by_tile, int8_gemm, tile), LINEAR, IN_PARTS),
            products.CUBLASLT: stopwatch.unless_wrong(cublaslt_linear, BY_CUBLASLT),
        }
        found = stopwatch(shape, ways)
        own, library = found[products.TRITON], found[products.CUBLASLT]
        speed = ratio(own.seconds, library.seconds)
        seconds = [duration(median(way.seconds)) for way in (own, library)]
        failures = "; ".join(f"{way.name}: {way.failure}" for way in (own, library) if way.failure)
        show(shape.name, *seconds, times(speed), failures)
        if not failures:
            compared.append(Comparison(products.Size.of(*size, stopwatch.dtype), speed))
            kept = products.COMPARISONS.save(stopwatch.device, compared[-1:])
    if kept:
        console.print(f"kept in {kept}, and used from now on", highlight=False)
    return compared
