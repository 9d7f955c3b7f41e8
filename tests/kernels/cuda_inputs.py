"""Inputs of the CUDA kernels' tests, and what the float64 reference makes of them."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from int8pass.kernels.cuda import fused
from int8pass.weights import QuantizedWeight, quantize_weight
from tests import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def planted(rows: int, columns: int, dtype: torch.dtype, outliers: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, some columns of them 20 times as large."""
    generator = torch.Generator().manual_seed(seed + rows * 1000 + columns)
    x = torch.randn(rows, columns, generator=generator)
    x[:, torch.randperm(columns, generator=generator)[:outliers]] *= 20.0
    return x.to(DEVICE, dtype)


@dataclass
class Case:
    """One Linear with its input. weight: [N, K]; original: whether outliers are multiplied with it; words: a cache of
    its columns."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    threshold: float = 6.0
    outliers: str = "column"
    original: bool = True
    words: torch.Tensor | None = None

    @property
    def quantized(self) -> QuantizedWeight:
        return quantize_weight(self.weight)

    @property
    def rule(self) -> tuple[float, bool]:
        return self.threshold, self.outliers == "token"

    def quantize(self) -> tuple[torch.Tensor, ...]:
        return fused.cuda_quantize(self.x, *self.rule)

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """y from cuda_quantize and cuda_linear, and from cuda_int8_linear."""
        quantized, weight = self.quantized, self.weight if self.original else None
        rest = (quantized.codes, quantized.scale, self.bias, weight, self.words, *self.rule, self.x.dtype)
        return fused.cuda_linear(self.x, *self.quantize(), *rest), fused.cuda_int8_linear(self.x, *rest)

    def check_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Check quantization and both results; returns the results."""
        self.check_quantized()
        both = self.results()
        for y in both:
            self.check(y)
        return both

    def check_quantized(self) -> None:
        """Codes, scales and outlier columns are exactly the reference's."""
        codes, scale, found = (part.cpu() for part in self.quantize())
        expected_codes, expected_scale, mask = reference.quantize_activation(
            as_array(self.x), self.threshold, self.outliers
        )
        assert np.array_equal(codes.numpy(), expected_codes)
        assert np.array_equal(scale.numpy(), expected_scale, equal_nan=True)
        if self.threshold:
            columns = np.flatnonzero(mask if mask.ndim == 1 else mask.any(axis=0))
            assert found.tolist() == [len(columns), *columns, *[0] * (self.x.shape[1] - len(columns))]

    def check(self, y: torch.Tensor) -> None:
        """y is the float64 reference's within float32 sums and one cast; NaN and infinity are where that has them."""
        bias = None if self.bias is None else as_array(self.bias)
        kind = "original" if self.original else "dequantized"
        expected, magnitude = reference.linear(
            as_array(self.x), as_array(self.weight), bias, threshold=self.threshold, outliers=self.outliers,
            outlier_weights=kind,
        )  # fmt: skip
        bound = reference.tolerance(expected, magnitude, self.x.shape[1], torch.finfo(self.x.dtype).eps)
        actual = y.double().cpu().numpy()
        finite = np.isfinite(expected)
        assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True)
        assert (np.abs(actual - expected)[finite] <= bound[finite]).all()
