"""Every CUDA kernel against float64, on the device or in Triton's interpreter, before anything is timed.

The reference is written out here, in plain operations on the CPU: nothing of it is shared with the kernels.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from int8pass.kernels.cuda import fused
from int8pass.kernels.cuda.column_words import words_field
from int8pass.kernels.cuda.products import cublaslt_takes
from int8pass.weights import quantize_weight

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
RULES = ((0.0, False), (6.0, False), (6.0, True))  # threshold, per_token
SMALL = ((3, 130, 40), (33, 70, 65), (20, 136, 48))  # M, K, N: off every block size; the last one is cuBLASLt's too
LARGE = ((1, 70, 33), (1, 4096, 4096), (1, 4095, 1023), (7, 4096, 256), (16, 11008, 4096), (17, 1, 1), (200, 4097, 300),
         (2048, 4096, 4096))  # fmt: skip
_EPS = 1e-5  # of norms
_INTERPRETED_ROWS = 5  # of a norm: the interpreter takes one row after the other
_TINY = 2.0**-24  # float16's smallest number


@dataclass(frozen=True)
class Check:
    """name: the op; cases: how many were run; worst: the largest error over its bound; failure: of the first, or ""."""

    name: str
    cases: int
    worst: float
    failure: str


@dataclass(frozen=True)
class Expected:
    """What float64 makes of a Linear: y and its bound, float64[M, N]."""

    y: Tensor
    bound: Tensor


def check_kernels(
    device: torch.device, large: bool, progress: Callable[[str], None] = lambda message: None
) -> list[Check]:
    """Run all ops at `SMALL` shapes, and with `large` at `LARGE` ones too, in every dtype and outlier rule."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, ratio, case in _results(device, SMALL + LARGE if large else SMALL, progress):
        found.setdefault(name, []).append((ratio, case))
    return [_summary(name, results) for name, results in found.items()]


def _summary(name: str, results: list[tuple[float, str]]) -> Check:
    failures = [case for ratio, case in results if not ratio <= 1.0]
    worst = max(results, key=lambda result: (result[0] != result[0], result[0]))[0]
    return Check(name, len(results), worst, failures[0] if failures else "")


def _results(
    device: torch.device, shapes: tuple[tuple[int, int, int], ...], progress: Callable[[str], None]
) -> Iterator[tuple[str, float, str]]:
    for shape, dtype, (threshold, per_token) in itertools.product(shapes, DTYPES, RULES):
        case = f"M, K, N = {shape}, {dtype}, threshold {threshold}, {'token' if per_token else 'column'}"
        progress(f"checking {case}")
        x, weight, bias = _inputs(*shape, dtype)
        x_device, weight_device, bias_device = x.to(device), weight.to(device), bias.to(device)
        quantized = quantize_weight(weight_device)
        parts = fused.cuda_quantize(x_device, threshold, per_token)
        some = x_device[:_INTERPRETED_ROWS] if device.type == "cpu" else x_device
        for centered, added in itertools.product((True, False), repeat=2):
            yield "cuda_norm_quantize", _norm_error(some, threshold, per_token, centered, added), case
        for original in (True, False):
            expected = _reference(x, weight, bias, threshold, per_token, original)
            if original:
                yield "cuda_quantize", _quantize_error(parts, x, threshold, per_token), case
            words = getattr(quantized, words_field(dtype)) if original else None
            rest = (
                quantized.codes, quantized.scale, bias_device, weight_device if original else None, words, threshold,
                per_token, dtype,
            )  # fmt: skip
            y = fused.cuda_linear(x_device, *parts, *rest)
            yield "cuda_linear", _error(y, expected), case
            y = fused.cuda_int8_linear(x_device, *rest)
            yield "cuda_int8_linear", _error(y, expected), case
            for name, y in _other_products(x_device, parts, rest):
                yield name, _error(y, expected), case


def _other_products(x: Tensor, quantized: tuple[Tensor, ...], rest: tuple) -> Iterator[tuple[str, Tensor]]:
    """The Linear with K in two parts, and by cuBLASLt where it takes it."""
    from int8pass.kernels.cuda.epilogue import Epilogue
    from int8pass.kernels.cuda.gemm import int8_gemm
    from int8pass.kernels.cuda.many_rows import cublaslt_linear
    from int8pass.kernels.cuda.tiles import Tile

    codes, x_scale, columns = quantized
    w_codes, w_scale, bias, weight, words, threshold, per_token, dtype = rest
    outliers = fused.outlier_kind(threshold, per_token, None)
    source = w_codes if weight is None else weight
    epilogue = Epilogue(x_scale, w_scale, bias, x, source, words, columns, outliers, threshold, dtype)
    yield "in two parts", int8_gemm(codes, w_codes, epilogue, Tile(32, 32, 64, warps=4, stages=3, parts=2))
    if cublaslt_takes(len(x), *w_codes.shape):
        yield "by cuBLASLt", cublaslt_linear(codes, w_codes, epilogue)


def _inputs(M: int, K: int, N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Normal numbers; of x every hundredth column, and at least three, is 20 times as large."""
    generator = torch.Generator().manual_seed(M + K + N)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((M, K), (N, K), (N,)))
    x[:, torch.randperm(K, generator=generator)[: max(3, K // 100)]] *= 20.0
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def _quantize_error(parts: tuple[Tensor, ...], x: Tensor, threshold: float, per_token: bool) -> float:
    """0 where codes, scales and columns are the reference's of x bit by bit, else infinity."""
    outlier = _outliers(x, threshold, per_token)
    expected_codes, expected_scale = _absmax(x.float().masked_fill(outlier, 0.0))
    expected_columns = outlier.any(0).nonzero().flatten().tolist()
    codes, scale, columns = (part.cpu() for part in parts)
    same = torch.equal(codes, expected_codes) and torch.equal(scale, expected_scale)
    if columns.numel():
        same &= columns[: len(expected_columns) + 1].tolist() == [len(expected_columns), *expected_columns]
    return 0.0 if same else float("inf")


def _norm_error(x: Tensor, threshold: float, per_token: bool, centered: bool, added: bool) -> float:
    """The largest error of a sum and its norm over the bound; infinity where that is not quantized bit by bit."""
    residual = x.flip(0) if added else None
    weight, bias = x[0] * 0.25 + 1.0, x[-1] if centered else None
    y, *parts, total = fused.cuda_norm_quantize(x, residual, weight, bias, _EPS, centered, threshold, per_token)
    source = (total if added else x).cpu().double()
    exact = (x.cpu() + residual.cpu()).double() if added else source
    center = source.mean(1, keepdim=True) if centered else 0.0
    factor = ((source - center).square().mean(1, keepdim=True) + _EPS).rsqrt()
    terms = [
        (source - center) * factor * weight.cpu().double(),
        torch.zeros(()) if bias is None else bias.cpu().double(),
    ]
    largest = source.abs().amax(1, keepdim=True) * factor * weight.cpu().double().abs()
    eps = torch.finfo(x.dtype).eps
    size = terms[0].abs() + terms[1].abs() + largest
    bound = eps * (terms[0] + terms[1]).abs() + x.shape[1] * torch.finfo(torch.float32).eps * size + _TINY
    errors = (
        ((source - exact).abs() / (eps * exact.abs() + _TINY)).max(),  # Triton's interpreter cuts bits of bfloat16 off
        ((y.cpu().double() - terms[0] - terms[1]).abs() / bound).max(),
    )
    return max(float(max(errors)), _quantize_error(tuple(parts), y.cpu(), threshold, per_token))


def _error(y: Tensor, expected: Expected) -> float:
    return float(((y.cpu().double() - expected.y).abs() / expected.bound).max())


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: float, per_token: bool, original: bool
) -> Expected:  # fmt: skip
    """LLM.int8() (arXiv 2208.07339, sections 3.1 and 3.2): scales and codes in float32, all after them in float64."""
    outlier = _outliers(x, threshold, per_token)
    columns = outlier.any(0)
    codes, scale = _absmax(x.float().masked_fill(outlier, 0.0))
    w_codes, w_scale = _absmax(weight.float())
    outliers = x.double().masked_fill(~outlier, 0.0)[:, columns]
    source = (weight.double() if original else w_codes.double() * w_scale.double()[:, None])[:, columns]
    scales = scale.double()[:, None] * w_scale.double()
    y = codes.double() @ w_codes.double().t() * scales + outliers @ source.t() + bias.double()
    size = codes.double().abs() @ w_codes.double().abs().t() * scales + outliers.abs() @ source.abs().t()
    size += bias.double().abs()
    bound = 2 * torch.finfo(x.dtype).eps * y.abs() + x.shape[1] * torch.finfo(torch.float32).eps * size
    return Expected(y, bound)


def _outliers(x: Tensor, threshold: float, per_token: bool) -> Tensor:
    """Which elements are outliers: bool[M, K]."""
    outlier = (x.float().abs() >= threshold) if threshold else torch.zeros(x.shape, dtype=torch.bool)
    return outlier if per_token else outlier.any(0).expand_as(outlier)


def _absmax(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(1) / 127
    codes = (rows / scale[:, None]).round().clamp(-127, 127).nan_to_num(0.0)
    return codes.to(torch.int8), scale
