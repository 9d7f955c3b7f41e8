"""What absmax quantization asks of a GPU: division by a number would be a product with its rounded reciprocal there."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from int8pass.quantization.absmax import absmax_codes, absmax_scale


class Divisors(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.div:
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


def test_divisors_lie_on_the_device():
    with FakeTensorMode():
        x = torch.empty(4, 8, device="cuda", dtype=torch.float16)
        with Divisors() as divisors:
            absmax_codes(x, absmax_scale(x))
    assert [divisor.device.type for divisor in divisors.seen] == ["cuda", "cuda"]
