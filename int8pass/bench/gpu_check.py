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
SMALL = ((3, 130, 40), (33, 70, 65), (20, 136, 48))  # M, K, N: off every block size; the last one is cuBLASLt's too
TIMED = ((200, 4097, 300),)  # so many rows that tiles are timed
LARGE = ((1, 70, 33), (1, 4096, 4096), (1, 4095, 1023), (7, 4096, 256), (16, 11008, 4096), (16, 5140, 1024), (17, 1, 1),
         (2048, 5140, 1024), (2048, 4096, 4096), (3, 20480, 16))  # fmt: skip
WITH_A_PROFILE = ((1, 4096, 4096), (2048, 4096, 4096), (3, 20480, 16))  # the LARGE ones at which columns are listed too
_EPS = 1e-5  # of norms
_INTERPRETED_ROWS = 5  # of a norm: the interpreter takes one row after the other
_TINY = 2.0**-24  # float16's smallest number


@dataclass(frozen=True)
class Rule:
    """Which features are outliers. per_token: single elements, else columns; listed: the large columns, beforehand."""

    threshold: float
    per_token: bool = False
    listed: bool = False

    def __str__(self) -> str:
        if self.listed:
            return "listed columns"
        return f"threshold {self.threshold}, {'token' if self.per_token else 'column'}"

    def arguments(self, features: int) -> tuple[float, bool, tuple[int, ...] | None]:
        """threshold, per_token and columns, as the ops take them of x [..., features]."""
        return self.threshold, self.per_token, _large_columns(features) if self.listed else None


RULES = (Rule(0.0), Rule(6.0), Rule(6.0, per_token=True))
LISTED = Rule(0.0, listed=True)


@dataclass(frozen=True)
class Task:
    """What one process checks: a shape M, K, N in a dtype, by some of RULES, or LISTED."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    rules: tuple[Rule, ...]

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
    next one at the next shape: three shapes of a kind meet all nine. LISTED, at SMALL shapes and those WITH_A_PROFILE,
    in one dtype each, the next one at the next shape."""
    shapes = SMALL + TIMED if large else SMALL
    found = [Task(shape, dtype, RULES) for shape in shapes for dtype in DTYPES]
    if large:
        for (number, shape), (turn, dtype) in itertools.product(enumerate(LARGE), enumerate(DTYPES)):
            found.append(Task(shape, dtype, (RULES[(number + turn) % len(RULES)],)))
    listed = SMALL + WITH_A_PROFILE if large else SMALL
    return found + [Task(shape, dtype, (LISTED,)) for shape, dtype in zip(listed, itertools.cycle(DTYPES))]


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
        case, (threshold, per_token, columns) = f"{task}, {rule}", rule.arguments(x.shape[1])
        parts = functools.cache(functools.partial(fused.cuda_quantize, x_device, threshold, per_token, columns))
        yield case, QUANTIZE, lambda parts=parts, rule=rule: _quantize_error(parts(), x, rule)
        for kind in itertools.product((True, False), repeat=2):
            yield case, NORM, functools.partial(_norm_error, some, rule, *kind)
        for original in (True, False):
            expected = _reference(x, weight, bias, rule, original)
            words = getattr(quantized, words_field(task.dtype, rule.listed)) if original else None
            rest = (
                quantized.codes, quantized.scale, bias_device, weight_device if original else None, words, threshold,
                per_token, task.dtype, columns,
            )  # fmt: skip
            for op, compute in _ops(x_device, parts, rest).items():
                yield case, op, lambda compute=compute, expected=expected: _error(compute(), expected)


def _ops(x: Tensor, quantized: Callable[[], tuple[Tensor, ...]], rest: tuple) -> dict[str, Callable[[], Tensor]]:
    """The Linear by each of its ways: as the ops choose, with K in two parts, and by cuBLASLt where it takes it."""
    from int8pass.kernels.cuda.epilogue import Epilogue
    from int8pass.kernels.cuda.gemm import int8_gemm
    from int8pass.kernels.cuda.many_rows import cublaslt_linear
    from int8pass.kernels.cuda.tiles import Tile

    w_codes, w_scale, bias, weight, words, threshold, per_token, dtype, listed = rest
    outliers = fused.outlier_kind(threshold, per_token, listed)
    source = w_codes if weight is None else weight
    tile = Tile(32, 32, 64, warps=4, stages=3, parts=2)

    def multiplied(product: Callable[..., Tensor], *arguments: object) -> Tensor:
        codes, x_scale, columns = quantized()
        if listed is not None:
            columns = fused.known_columns(listed, x.shape[1], x.device)[1]
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
    """Normal numbers; _large_columns of x are 20 times as large."""
    generator = torch.Generator().manual_seed(M + K + N)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((M, K), (N, K), (N,)))
    x[:, _large_columns(K)] *= 20.0
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def _large_columns(features: int) -> tuple[int, ...]:
    """Of x: a hundredth, and at least three. They hold the largest number of a row, and so change its scale."""
    shuffled = torch.randperm(features, generator=torch.Generator().manual_seed(features)).tolist()
    return tuple(sorted(shuffled[: max(3, features // 100)]))


def _quantize_error(parts: tuple[Tensor, ...], x: Tensor, rule: Rule) -> float:
    """0 where codes, scales and columns are the reference's of x bit by bit, else infinity."""
    outlier = _outliers(x, rule)
    expected_codes, expected_scale = _absmax(x.float().masked_fill(outlier, 0.0))
    expected_columns = outlier.any(0).nonzero().flatten().tolist()
    codes, scale, columns = (part.cpu() for part in parts)
    same = torch.equal(codes, expected_codes) and torch.equal(scale, expected_scale)
    if columns.numel():
        same &= columns[: len(expected_columns) + 1].tolist() == [len(expected_columns), *expected_columns]
    return 0.0 if same else math.inf


def _norm_error(x: Tensor, rule: Rule, centered: bool, added: bool) -> float:
    """The largest error of a sum and its norm over the bound; infinity where that is not quantized bit by bit."""
    residual = x.flip(0) if added else None
    weight, bias = x[0] * 0.25 + 1.0, x[-1] if centered else None
    quantization = rule.arguments(x.shape[1])
    y, *parts, total = fused.cuda_norm_quantize(x, residual, weight, bias, _EPS, centered, *quantization)
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
    return max(float(max(errors)), _quantize_error(tuple(parts), y.cpu(), rule))


def _error(y: Tensor, expected: Expected) -> float:
    return float(((y.cpu().double() - expected.y).abs() / expected.bound).max())


def _reference(x: Tensor, weight: Tensor, bias: Tensor, rule: Rule, original: bool) -> Expected:
    """LLM.int8() (arXiv 2208.07339, sections 3.1 and 3.2): scales and codes in float32, all after them in float64."""
    outlier = _outliers(x, rule)
    columns = outlier.any(0)
    codes, scale = _absmax(x.float().masked_fill(outlier, 0.0))
    w_codes, w_scale = _absmax(weight.float())
    outliers = x.double().masked_fill(~outlier, 0.0)[:, columns]
    source = weight.double() if original else w_codes.double() * w_scale.double()[:, None]
    if original and rule.listed and weight.dtype == torch.float32:  # a profile's columns are kept in 16 bits
        source = (weight / w_scale[:, None]).half().double() * w_scale.double()[:, None]
    source = source[:, columns]
    scales = scale.double()[:, None] * w_scale.double()
    y = codes.double() @ w_codes.double().t() * scales + outliers @ source.t() + bias.double()
    size = codes.double().abs() @ w_codes.double().abs().t() * scales + outliers.abs() @ source.abs().t()
    size += bias.double().abs()
    bound = 2 * torch.finfo(x.dtype).eps * y.abs() + x.shape[1] * torch.finfo(torch.float32).eps * size
    return Expected(y, bound)


def _outliers(x: Tensor, rule: Rule) -> Tensor:
    """Which elements are outliers: bool[M, K]."""
    threshold, per_token, columns = rule.arguments(x.shape[1])
    outlier = (x.float().abs() >= threshold) if threshold else torch.zeros(x.shape, dtype=torch.bool)
    if columns is not None:
        outlier[:, columns] = True
    return outlier if per_token else outlier.any(0).expand_as(outlier)


def _absmax(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(1) / 127
    codes = (rows / scale[:, None]).round().clamp(-127, 127).nan_to_num(0.0)
    return codes.to(torch.int8), scale
