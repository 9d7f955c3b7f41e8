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
    """Tiles that are not mostly padding, for `size` rows: M, above 64, rounded up to a power of two.

    Outlier products in float32 take registers for each element of a tile, so that large tiles would spill.
    """
    rows, largest = max(128, arguments["size"]), 64 * 64 if constants.get("WIDE") else 256 * 256
    blocks = [(config, config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]) for config in configs]
    return [config for config, height, width in blocks if height <= rows and height * width <= largest]
