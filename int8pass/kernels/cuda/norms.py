"""Behind which norms quantization is fused on a GPU: none, unless that was measured to be faster there.

`examples/bench_gpu.py --norms` measures and keeps the times (`comparisons.py`).
"""

from dataclasses import dataclass

import torch

from int8pass.kernels.cuda.comparisons import Comparisons, rows_up_to

LAYER_NORM, RMS_NORM = "layer_norm", "rms_norm"
OUTLIERS = ("none", "column", "token", "listed")  # as `fused.outlier_kind` numbers them


@dataclass(frozen=True)
class Size:
    """Norms that share a choice. rows: M, rounded up to a power of two; features: K; dtype: of x, in words; outliers:
    one of OUTLIERS; norm: LAYER_NORM or RMS_NORM; added: whether a residual is added before it."""

    rows: int
    features: int
    dtype: str
    outliers: str
    norm: str
    added: bool

    @classmethod
    def of(cls, M: int, K: int, dtype: torch.dtype, outliers: int, centered: bool, added: bool) -> "Size":
        norm = LAYER_NORM if centered else RMS_NORM
        return cls(rows_up_to(M), K, str(dtype).removeprefix("torch."), OUTLIERS[outliers], norm, added)


# of the one kernel over Inductor's norm and the quantization behind it
COMPARISONS = Comparisons("cuda_norms", Size, "quantization is fused behind no norm")


def pays(size: Size, device: torch.device) -> bool:
    """Whether one kernel was measured to be faster on the device. (Without a GPU a graph is only looked at: never.)"""
    return (device.type != "cuda" or torch.cuda.is_available()) and size in COMPARISONS.faster(device)
