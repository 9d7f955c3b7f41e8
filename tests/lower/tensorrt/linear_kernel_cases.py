"""The kernel that TensorRT launches, against the float64 reference: run by test_linear_kernel."""

import pytest
import torch
import triton

from int8pass.kernels.cuda import fused
from int8pass.lower.tensorrt.linear_kernel import TILES, Problem, int8pass_linear
from tests.kernels.cuda_inputs import DEVICE, DTYPES, Case, planted


def launched(case, tile, capability=(9, 0)):
    """y of the kernel with arguments as TensorRT gives them: a bias of zeros for none, codes for no float weight."""
    quantized, (rows, features), outputs = case.quantized, case.x.shape, case.weight.shape[0]
    weight = case.weight.contiguous() if case.original else quantized.codes
    bias = torch.zeros(outputs, device=DEVICE) if case.bias is None else case.bias
    y = torch.empty(rows, outputs, dtype=case.x.dtype, device=DEVICE)
    inputs = (case.x, quantized.codes, quantized.scale, bias, weight)
    kind = fused.outlier_kind(*case.rule, None)
    dtypes = tuple(tensor.dtype for tensor in (*inputs, y))
    problem = Problem(rows, features, outputs, kind, case.threshold, dtypes, capability)
    grid = (triton.cdiv(outputs, tile.outputs),)
    int8pass_linear[grid](*inputs, rows, y, **problem.constants(tile))
    return y


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_every_tile(rows, tile):
    for number, dtype in enumerate(DTYPES):
        x, weight = planted(rows, 530, dtype, 3), planted(70, 530, dtype, 0)
        case = Case(x, weight, planted(1, 70, dtype, 0)[0], original=number % 2 == 0)
        case.check(launched(case, tile))


@pytest.mark.parametrize("threshold, outliers", [(0.0, "column"), (6.0, "column"), (6.0, "token"), (1.0, "column")])
@pytest.mark.parametrize("shape", [(1, 70, 33), (5, 129, 40), (2, 1, 1)], ids=str)
def test_outlier_rules_without_a_bias(shape, threshold, outliers):
    rows, features, outputs = shape
    x, weight = planted(rows, features, torch.float16, 3), planted(outputs, features, torch.float16, 0)
    for original in (True, False):
        case = Case(x, weight, None, threshold, outliers, original)
        case.check(launched(case, TILES[0]))


def test_not_a_number_and_products_in_float16():
    x = planted(4, 40, torch.float32, 2)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    case = Case(x, planted(17, 40, torch.float32, 0), None)
    for capability in ((9, 0), (7, 5)):
        y = launched(case, TILES[0], capability)
        case.check(y)
        assert y[0].isnan().all() and not y[2:].isnan().any()
