"""Other ways to the same Linear, and what the benchmark makes of them: cuBLASLt's product, and tiles."""

import io

import pytest
import torch
from rich.console import Console
from triton.runtime.errors import OutOfResources

from int8pass.bench.gpu_cases import LinearShape
from int8pass.bench.gpu_choices import Stopwatch, measure_products, measure_tiles
from int8pass.kernels.cuda import comparisons, gemm, many_rows, products
from int8pass.kernels.cuda.comparisons import Comparison
from tests.kernels.cuda_inputs import DEVICE, DTYPES, Case, planted


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(comparisons, "cache_folder", lambda: tmp_path)
    products.COMPARISONS.forget()
    yield tmp_path
    products.COMPARISONS.forget()


@pytest.mark.parametrize("threshold, outliers, original", [(6.0, "column", True), (6.0, "token", False),
                                                           (0.0, "column", True)])  # fmt: skip
def test_by_cublaslt(monkeypatch, threshold, outliers, original):
    for dtype in DTYPES:
        x, weight, bias = planted(40, 72, dtype, 3), planted(136, 72, dtype, 0), planted(1, 136, dtype, 0)[0]
        case = Case(x, weight, bias, threshold, outliers, original)
        case.check(case.results()[1])
        products.COMPARISONS.save(DEVICE, [Comparison(products.Size.of(40, 136, 72, dtype), 2.0)])
        with monkeypatch.context() as patch:
            patch.setattr(many_rows, "int8_gemm", None)  # it is not called
            for y in case.results():
                case.check(y)


def test_products_are_compared_and_kept():
    text = io.StringIO()
    stopwatch = Stopwatch(DEVICE, torch.float16, rounds=1)
    shapes = [LinearShape(24, 32, 48), LinearShape(24, 30, 48)]
    (found,) = measure_products(stopwatch, shapes, Console(file=text, width=200))
    assert found.size == products.Size(32, 48, 32, "float16") and found.speed > 0
    faster = products.CUBLASLT if found.speed > 1 else products.TRITON
    assert products.product_for(24, 48, 32, torch.float16, DEVICE) == faster
    assert "32x48 M=24" in text.getvalue() and "not taken: 17 rows or more" in text.getvalue()


def test_a_way_that_fails_is_a_row_and_what_was_found_before_it_is_kept(monkeypatch):
    def too_large(codes, w_codes, epilogue):
        if len(codes) > 24:
            raise torch.OutOfMemoryError("no memory for [sums]")
        return cublaslt(codes, w_codes, epilogue)

    text, cublaslt, saved = io.StringIO(), many_rows.cublaslt_linear, []
    monkeypatch.setattr(many_rows, "cublaslt_linear", too_large)
    save = products.COMPARISONS.save

    def noted(device, found):
        saved.append((len(found), text.getvalue()))
        return save(device, found)

    monkeypatch.setattr(products.COMPARISONS, "save", noted)
    shapes = [LinearShape(rows, 32, 48) for rows in (24, 40, 20)]
    found = measure_products(Stopwatch(DEVICE, torch.float16, 1), shapes, Console(file=text, width=200))
    assert [count for count, _ in saved] == [1, 1] and [each.size.rows for each in found] == [32, 32]
    assert "32x48 M=24" in saved[0][1] and "32x48 M=20" not in saved[0][1]  # each row is printed when it is there
    assert "cublaslt: OutOfMemoryError: no memory for [sums]" in text.getvalue()


def test_a_tile_that_cannot_run_is_a_row(monkeypatch):
    def without_parts(codes, w_codes, epilogue, tile):
        if tile.parts > 1:
            raise OutOfResources(2, 1, "shared memory")
        return product(codes, w_codes, epilogue, tile)

    text, product = io.StringIO(), gemm.int8_gemm
    monkeypatch.setattr(gemm, "int8_gemm", without_parts)
    measure_tiles(Stopwatch(DEVICE, torch.float16, 1), [LinearShape(2, 1024, 48)], Console(file=text, width=200))
    rows = [line for line in text.getvalue().splitlines() if " parts, " in line]
    assert {" 1 parts, " in row: "out of resource: shared memory" in row for row in rows} == {True: False, False: True}


def test_tiles_are_timed_beside_the_tables():
    text = io.StringIO()
    measure_tiles(Stopwatch(DEVICE, torch.float32, rounds=1), [LinearShape(18, 32, 48)], Console(file=text, width=200))
    rows = [line.split()[0] for line in text.getvalue().splitlines() if " parts, " in line]
    assert rows[0] == "32x32x256," and len(rows) == len(set(rows)) == 3
