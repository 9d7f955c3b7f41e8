"""Choosing tile sizes: each new size of a problem is timed once, and the choice is kept on disk by Triton."""

import threading
from collections.abc import Callable

import triton
from triton.runtime import Autotuner

_ONE_AT_A_TIME = threading.Lock()
_kept = True


def keep_nothing() -> None:
    """From here on, what this process chooses it neither keeps nor reads: for one that shares the device with others,
    whose times mean nothing."""
    global _kept
    _kept = False


class Tuned(Autotuner):
    """Triton's, of which one launches at a time: it holds the arguments of a launch in itself, and two that are timed
    at once would make each other slower."""

    def run(self, *args, **keywords):
        with _ONE_AT_A_TIME:
            self.cache_results = _kept
            return super().run(*args, **keywords)


def autotune(configs: list[triton.Config], key: list[str], prune: Callable | None = None) -> Callable:
    """As triton.autotune; under Triton's interpreter, where no time can be taken, the first config serves."""
    if triton.knobs.runtime.interpret:
        configs, prune = configs[:1], None
    rules = {"early_config_prune": prune} if prune else None
    return lambda kernel: Tuned(kernel, kernel.arg_names, configs, key, None, None, prune_configs_by=rules)


def prune_tiles(configs: list[triton.Config], arguments: dict, **constants) -> list[triton.Config]:
    """Tiles that are not mostly padding, for `size` rows: M, above 64, rounded up to a power of two.

    Outlier products in float32 take registers for each element of a tile, so that large tiles would spill.
    """
    rows, largest = max(128, arguments["size"]), 64 * 64 if constants.get("WIDE") else 256 * 256
    blocks = [(config, config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]) for config in configs]
    return [config for config, height, width in blocks if height <= rows and height * width <= largest]
