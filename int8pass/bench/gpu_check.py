"""Every CUDA kernel against float64, on the device or in Triton's interpreter, before anything is timed.

The reference is written out here, in plain operations on the CPU: nothing of it is shared with the kernels.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from int8pass.bench.measure import reason
from int8pass.kernels.cuda import fused
from int8pass.kernels.cuda.column_words import words_field
from int8pass.kernels.cuda.products import cublaslt_takes
from int8pass.weights import quantize_weight

QUANTIZE, NORM, LINEAR = "cuda_quantize", "cuda_norm_quantize", "cuda_linear"
IN_PARTS, BY_CUBLASLT = "in two parts", "by cuBLASLt"
PROCESS = "a process"  # in the place of an op, where one of the check's ended early
OTHERS = (BY_CUBLASLT, NORM)  # what no model takes, unless it was measured to be faster
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
RULES = ((0.0, False), (6.0, False), (6.0, True))  # threshold, per_token
SMALL = ((3, 130, 40), (33, 70, 65), (20, 136, 48))  # M, K, N: off every block size; the last one is cuBLASLt's too
TIMED = ((200, 4097, 300),)  # so many rows that tiles are timed
LARGE = ((1, 70, 33), (1, 4096, 4096), (1, 4095, 1023), (7, 4096, 256), (16, 11008, 4096), (16, 5140, 1024), (17, 1, 1),
         (2048, 5140, 1024), (2048, 4096, 4096))  # fmt: skip
_EPS = 1e-5  # of norms
_INTERPRETED_ROWS = 5  # of a norm: the interpreter takes one row after the other
_TINY = 2.0**-24  # float16's smallest number


@dataclass(frozen=True)
class Task:
    """What one process checks: a shape M, K, N in a dtype, by some of RULES."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    rules: tuple[tuple[float, bool], ...]

    def __str__(self) -> str:
        return f"M, K, N = {self.shape}, {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Finding:
    """One comparison. ratio: of the error to its bound, or infinity for what `raised`; case: in words."""

    op: str
    dtype: torch.dtype
    case: str
    ratio: float
    raised: str = ""


@dataclass(frozen=True)
class Check:
    """name: the op; cases: how many were run; worst: the largest error over its bound; failure: of the first that is
    not right, or ""; wrong: names of the dtypes in which one is not."""

    name: str
    cases: int
    worst: float
    failure: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What float64 makes of a Linear: y and its bound, float64[M, N]."""

    y: Tensor
    bound: Tensor


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tasks(large: bool) -> list[Task]:
    """Every dtype and rule at SMALL shapes, and with `large` at TIMED ones; at LARGE ones each dtype with one rule, the
    next one at the next shape: three shapes of a kind meet all nine."""
    shapes = SMALL + TIMED if large else SMALL
    found = [Task(shape, dtype, RULES) for shape in shapes for dtype in DTYPES]
    if large:
        for (number, shape), (turn, dtype) in itertools.product(enumerate(LARGE), enumerate(DTYPES)):
            found.append(Task(shape, dtype, (RULES[(number + turn) % len(RULES)],)))
    return found


def summary(findings: Iterable[Finding]) -> list[Check]:
    """A line for each op, in the order in which they first appear."""
    by_op: dict[str, list[Finding]] = {}
    for each in findings:
        by_op.setdefault(each.op, []).append(each)
    return [_line(op, found) for op, found in by_op.items()]


def _line(op: str, found: list[Finding]) -> Check:
    wrong = [each for each in found if not each.ratio <= 1.0]
    worst = max((each.ratio for each in found), key=lambda ratio: (ratio != ratio, ratio))
    first = "".join(f"{each.case}: {each.raised}" if each.raised else each.case for each in wrong[:1])
    return Check(op, len(found), worst, first, tuple(dict.fromkeys(dtype_name(each.dtype) for each in wrong)))


def why_not(checks: Iterable[Check], dtype: torch.dtype, ops: Iterable[str] | None = None) -> str:
    """Why what these ops (None: any but OTHERS) compute in a dtype is not to be timed; "" where they were right."""
    for each in checks:
        concerned = each.name not in OTHERS if ops is None else each.name in (*ops, PROCESS)
        if concerned and dtype_name(dtype) in each.wrong:
            return f"not timed: {each.name} is wrong at {each.failure}"
    return ""


def findings(task: Task, device: torch.device) -> Iterator[Finding]:
    """Run and compare every op. What one raises is its finding, and the others go on."""
    for case, op, error in _errors(task, device):
        try:
            ratio, raised = error(), ""
        except Exception as failure:  # whatever the compiler, a launch or a library raises is what was found
            ratio, raised = math.inf, reason(failure)
        yield Finding(op, task.dtype, case, ratio, raised)


def _errors(task: Task, device: torch.device) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """Each case, op, and what runs it and gives its error over the bound: to be called before the next is asked for."""
    x, weight, bias = _inputs(*task.shape, task.dtype)
    x_device, weight_device, bias_device = x.to(device), weight.to(device), bias.to(device)
    quantized = quantize_weight(weight_device)
    some = x_device[:_INTERPRETED_ROWS] if device.type == "cpu" else x_device
    for rule in task.rules:
        case = f"{task}, threshold {rule[0]}, {'token' if rule[1] else 'column'}"
        parts = functools.cache(functools.partial(fused.cuda_quantize, x_device, *rule))
        yield case, QUANTIZE, lambda parts=parts, rule=rule: _quantize_error(parts(), x, *rule)
        for kind in itertools.product((True, False), repeat=2):
            yield case, NORM, functools.partial(_norm_error, some, *rule, *kind)
        for original in (True, False):
            expected = _reference(x, weight, bias, *rule, original)
            words = getattr(quantized, words_field(task.dtype)) if original else None
            rest = (
                quantized.codes, quantized.scale, bias_device, weight_device if original else None, words, *rule,
                task.dtype,
            )  # fmt: skip
            for op, compute in _ops(x_device, parts, rest).items():
                yield case, op, lambda compute=compute, expected=expected: _error(compute(), expected)


def _ops(x: Tensor, quantized: Callable[[], tuple[Tensor, ...]], rest: tuple) -> dict[str, Callable[[], Tensor]]:
    """The Linear by each of its ways: as the ops choose, with K in two parts, and by cuBLASLt where it takes it."""
    from int8pass.kernels.cuda.epilogue import Epilogue
    from int8pass.kernels.cuda.gemm import int8_gemm
    from int8pass.kernels.cuda.many_rows import cublaslt_linear
    from int8pass.kernels.cuda.tiles import Tile

    w_codes, w_scale, bias, weight, words, threshold, per_token, dtype = rest
    outliers = fused.outlier_kind(threshold, per_token, None)
    source = w_codes if weight is None else weight
    tile = Tile(32, 32, 64, warps=4, stages=3, parts=2)

    def multiplied(product: Callable[..., Tensor], *arguments: object) -> Tensor:
        codes, x_scale, columns = quantized()
        ending = Epilogue(x_scale, w_scale, bias, x, source, words, columns, outliers, threshold, dtype)
        return product(codes, w_codes, ending, *arguments)

    ops = {
        LINEAR: lambda: fused.cuda_linear(x, *quantized(), *rest),
        "cuda_int8_linear": lambda: fused.cuda_int8_linear(x, *rest),
        IN_PARTS: lambda: multiplied(int8_gemm, tile),
    }
    if cublaslt_takes(len(x), *w_codes.shape):
        ops[BY_CUBLASLT] = lambda: multiplied(cublaslt_linear)
    return ops


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
    return 0.0 if same else math.inf


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
