"""The Linear of a quantized x, of more than a few rows: which GEMM multiplies, and how K is split."""

from torch import Tensor

from int8pass.kernels.cuda.capability import multiprocessors
from int8pass.kernels.cuda.epilogue import Epilogue, finish_sums
from int8pass.kernels.cuda.gemm import int8_gemm
from int8pass.kernels.cuda.products import CUBLASLT, product_for
from int8pass.kernels.cuda.tiles import tile_for
from int8pass.torch_private import int8_product


def many_rows_linear(codes: Tensor, w_codes: Tensor, epilogue: Epilogue) -> Tensor:
    """codes: int8[M, K]; w_codes: int8[N, K]. Result: [M, N] in the epilogue's dtype."""
    (M, K), N = codes.shape, w_codes.shape[0]
    if product_for(M, N, K, epilogue.x.dtype, codes.device) == CUBLASLT:
        return cublaslt_linear(codes, w_codes, epilogue)
    return int8_gemm(codes, w_codes, epilogue, tile_for(M, N, K, multiprocessors(codes.device)))


def cublaslt_linear(codes: Tensor, w_codes: Tensor, epilogue: Epilogue) -> Tensor:
    """The same by cuBLASLt's product, whose int32 sums a second kernel finishes. Sizes: as `cublaslt_takes` says."""
    return finish_sums(int8_product(codes, w_codes.t()).unsqueeze(0), epilogue)
