"""Launches of a tuned kernel for a GPU that is not there. Run as a program it prints that two threads launched.

    python -m tests.kernels.tuning_probe [--keep-nothing]

The second thread launches while the first one's tiles are timed.
"""

import sys
import threading

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from int8pass.kernels.cuda import tuning
from tests.kernels.fake_gpu import FakeGpu

WAIT = 0.5  # seconds that the second thread has for its launch, which it should not get


@triton.jit
def fill(x, n, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(x + place, 1.0, mask=place < n)


class Gpu(FakeGpu):
    """Its clock lets another thread go ahead."""

    def __init__(self) -> None:
        super().__init__(90)
        self.timing, self.launched = threading.Event(), threading.Event()

    def get_benchmarker(self):
        def time(call, quantiles, **rest):
            call()
            self.timing.set()
            self.launched.wait(WAIT)
            return [1.0] * len(quantiles)

        return time


def main() -> None:
    if "--keep-nothing" in sys.argv:
        tuning.keep_nothing()
    gpu = Gpu()
    driver.set_active(gpu)
    tuned = tuning.autotune([triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32})], key=["n"])(fill)
    x = torch.zeros(64)
    gpu.launched.set()
    tuned[(1,)](x, 64)  # chosen before the threads meet
    gpu.launched.clear()
    gpu.timing.clear()

    def second() -> None:
        gpu.timing.wait()
        tuned[(1,)](x, 64)
        gpu.launched.set()

    thread = threading.Thread(target=second)
    thread.start()
    tuned[(1,)](x, 32)
    thread.join()
    print("both launched")


if __name__ == "__main__":
    main()
