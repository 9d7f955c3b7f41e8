"""Choosing tile sizes: each new size of a problem is timed once, and the choice is kept on disk by Triton."""

from collections.abc import Callable

import triton


def autotune(configs: list[triton.Config], key: list[str], prune: Callable | None = None) -> Callable:
    """triton.autotune; under Triton's interpreter, where no time can be taken, the first config serves."""
    if triton.knobs.runtime.interpret:
        return triton.autotune(configs[:1], key=key)
    rules = {"early_config_prune": prune} if prune else None
    return triton.autotune(configs, key=key, prune_configs_by=rules, cache_results=True)


def prune_tiles(configs: list[triton.Config], arguments: dict, **constants) -> list[triton.Config]:
    """Tiles neither mostly padding nor many, for `size` rows (M rounded up to a power of two).

    Outlier products in float32 take registers for each element of a tile, so that large tiles would spill.
    """
    rows = min(max(16, arguments["size"]), 256)
    largest = 64 * 64 if constants.get("WIDE") else 256 * 256
    fitting = [config for config in configs if config.kwargs["BLOCK_M"] * config.kwargs["BLOCK_N"] <= largest]
    return [config for config in fitting if min(rows, 64) // 2 <= config.kwargs["BLOCK_M"] <= rows] or fitting
