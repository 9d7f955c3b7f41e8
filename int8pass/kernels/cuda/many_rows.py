"""The Linear of a quantized x, of more than a few rows: which GEMM multiplies, and how K is split."""

from torch import Tensor

from int8pass.kernels.cuda.capability import multiprocessors
from int8pass.kernels.cuda.epilogue import Epilogue
from int8pass.kernels.cuda.gemm import int8_gemm
from int8pass.kernels.cuda.tiles import tile_for


def many_rows_linear(codes: Tensor, w_codes: Tensor, epilogue: Epilogue) -> Tensor:
    """codes: int8[M, K]; w_codes: int8[N, K]. Result: [M, N] in the epilogue's dtype."""
    (M, K), N = codes.shape, w_codes.shape[0]
    return int8_gemm(codes, w_codes, epilogue, tile_for(M, N, K, multiprocessors(codes.device)))
