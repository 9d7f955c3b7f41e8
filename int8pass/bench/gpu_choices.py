"""What the CUDA kernels choose between, measured: tiles of 17 to 64 rows, and whose int8 product many rows take."""

from collections.abc import Callable, Mapping, Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from int8pass.bench.gpu_cases import LinearShape
from int8pass.bench.gpu_graphs import captured, device_clock
from int8pass.bench.tables import duration, times
from int8pass.bench.timing import BATCH_SECONDS, Seconds, interleave, median, ratio
from int8pass.break_even import products
from int8pass.weights import quantize_weight

TILE_ROWS = (32, 64)
PRODUCT_ROWS = (128, 256, 512, 2048, 16384)
_OUTLIERS, _THRESHOLD = 8, 6.0

Product = Callable[..., object]  # of codes [M, K], w_codes [N, K] and an epilogue


class Stopwatch:
    """Times ways to compute one Linear, quantization not included, as CUDA graphs, interleaved.

    Weights are so many that each is read from memory; all outlier columns are in their caches.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, rounds: int) -> None:
        self.device, self.dtype, self._rounds = device, dtype, rounds
        self._cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0

    def __call__(self, shape: LinearShape, ways: Mapping[str, Product]) -> dict[str, Seconds]:
        """Seconds a Linear, one a round, by name."""
        operands = self._operands(shape)

        def call(way: Product) -> Callable[[], object]:
            return captured(lambda: [way(*each) for each in operands], self.device)

        calls = {name: call(way) for name, way in ways.items()}
        found = interleave(calls, self._rounds, BATCH_SECONDS, clock=device_clock(self.device))
        return {name: [each and each / len(operands) for each in seconds] for name, seconds in found.items()}

    def _operands(self, shape: LinearShape) -> list[tuple]:
        from int8pass.kernels.cuda import fused
        from int8pass.kernels.cuda.epilogue import Epilogue

        x = shape.input(_OUTLIERS, self.device, self.dtype)
        codes, scale, columns = fused.cuda_quantize(x, _THRESHOLD, False)
        operands = []
        for layer in shape.layers(shape.copies(self._cache_bytes), self.device, self.dtype).layers:
            quantized = quantize_weight(layer.weight)
            words = quantized.wide_column_words if self.dtype == torch.float32 else quantized.column_words
            held = (scale, quantized.scale, layer.bias, x, layer.weight, words, columns)
            operands.append((codes, quantized.codes, Epilogue(*held, fused.COLUMN, _THRESHOLD, self.dtype)))
        return operands


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
            name: lambda codes, weight, ending, tile=tile: int8_gemm(codes, weight, ending, tile)
            for name, tile in tiles.items()
        }
        found = stopwatch(shape, ways)
        table = Table(title=f"{shape.name}: tiles, the first is used", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("rows x columns x depth", "time", "speed / first"):
            table.add_column(heading, no_wrap=True)
        first = next(iter(found.values()))
        for name, seconds in found.items():
            table.add_row(name, duration(median(seconds)), times(ratio(first, seconds)))
        console.print(table)


def measure_products(
    stopwatch: Stopwatch, shapes: Sequence[LinearShape], console: Console
) -> list[products.Comparison]:
    """Time Triton's GEMM beside cuBLASLt's with one kernel behind it, print and keep which is faster.

    What is kept is used from then on. Linears that cuBLASLt does not take are left out.
    """
    from int8pass.kernels.cuda.capability import multiprocessors
    from int8pass.kernels.cuda.gemm import int8_gemm
    from int8pass.kernels.cuda.many_rows import cublaslt_linear
    from int8pass.kernels.cuda.tiles import tile_for

    table = Table(title="int8 product and what follows it", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("Linear", "Triton", "cuBLASLt", "speed / Triton"):
        table.add_column(heading, no_wrap=True)
    compared = []
    for shape in shapes:
        size = (shape.rows, shape.outputs, shape.features)
        if not products.cublaslt_takes(*size):
            table.add_row(shape.name, "", "", "not taken: 17 rows or more, N and K multiples of 8")
            continue
        tile = tile_for(*size, multiprocessors(stopwatch.device))
        ways = {
            products.TRITON: lambda codes, weight, ending, tile=tile: int8_gemm(codes, weight, ending, tile),
            products.CUBLASLT: cublaslt_linear,
        }
        found = stopwatch(shape, ways)
        own, library = found[products.TRITON], found[products.CUBLASLT]
        speed = ratio(own, library)
        table.add_row(shape.name, duration(median(own)), duration(median(library)), times(speed))
        compared.append(products.Comparison(products.Size.of(*size, stopwatch.dtype), speed))
    console.print(table)
    if compared:
        console.print(f"kept in {products.save(stopwatch.device, compared)}, and used from now on", highlight=False)
    return compared
