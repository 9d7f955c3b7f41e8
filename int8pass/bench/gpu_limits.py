"""What the device reaches at most, measured: int8 and 16-bit products, and copies. Shares are relative to these."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from int8pass.bench.gpu_graphs import captured, device_clock
from int8pass.bench.timing import interleave, median
from int8pass.torch_private import int8_product

_SIDE = 8192
_COPIED_BYTES = 2**30
_ROUNDS = 7


@dataclass(frozen=True)
class Limits:
    """int8_ops, float_ops: operations a second, two a multiply-add; bandwidth: bytes a second, read and written."""

    int8_ops: float
    float_ops: float
    bandwidth: float

    def share(self, ops: float, bytes_moved: float, seconds: float, int8: bool) -> float:
        """The share of the nearer of the two limits, of work that took `seconds`: 1.0 is as fast as measured."""
        peak = self.int8_ops if int8 else self.float_ops
        return max(ops / seconds / peak, bytes_moved / seconds / self.bandwidth)


def measure_limits(device: torch.device, dtype: torch.dtype, side: int = _SIDE, copied: int = _COPIED_BYTES) -> Limits:
    """Products of side x side matrices and a copy of `copied` bytes, in CUDA graphs, medians."""
    codes = torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device)
    floats = torch.randn(side, side, device=device).to(dtype)
    source, target = (torch.empty(copied, dtype=torch.int8, device=device) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {
        "int8": lambda: int8_product(codes, codes.t()),
        "float": lambda: torch.mm(floats, floats.t()),
        "copy": lambda: target.copy_(source),
    }
    replays = {name: captured(call, device) for name, call in calls.items()}
    seconds = {name: median(found) for name, found in interleave(replays, _ROUNDS, clock=device_clock(device)).items()}
    ops = 2.0 * side**3
    return Limits(ops / seconds["int8"], ops / seconds["float"], 2.0 * copied / seconds["copy"])
