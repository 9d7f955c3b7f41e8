"""A driver for Triton that stands for a GPU: kernels are compiled for it to machine code, and launches do nothing.

Run as a program it compiles every CUDA kernel for one compute capability and prints a JSON list of what came out:

    python -m tests.kernels.fake_gpu 90 [--all] [--unaligned]

--all: every tile size that tuning tries, in place of one a kernel; --unaligned: only a K that is no multiple of 16.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Bytes of shared memory that one program may have (CUDA programming guide, technical specifications)
SHARED_MEMORY = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class _Device:
    """What Triton asks of a device: its limits, and to load machine code."""

    def __init__(self, capability: int, loaded: list[dict]) -> None:
        self._shared, self._loaded = SHARED_MEMORY[capability], loaded

    def get_device_properties(self, device):
        return {"max_shared_mem": self._shared, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}

    def load_binary(self, name, binary, shared, device, *rest):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            text = subprocess.run([_TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
        self._loaded.append({"kernel": name, "registers": registers, "stack": stack, "shared": shared})
        return 1, 1, registers, 0, 1024


class _Launcher:
    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments, **keywords):
        pass


class FakeGpu:
    """Implements what triton.runtime calls of triton.backends.driver.DriverBase."""

    launcher_cls = _Launcher

    def __init__(self, capability: int) -> None:
        self.loaded: list[dict] = []
        self._capability = capability
        self.utils = _Device(capability, self.loaded)

    def get_current_target(self):
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        def time(call, quantiles, **rest):
            call()
            return [1.0] * len(quantiles)

        return time


def main() -> None:
    capability, every = int(sys.argv[1]), "--all" in sys.argv
    os.environ.pop("TRITON_INTERPRET", None)
    gpu = FakeGpu(capability)
    driver.set_active(gpu)

    from int8pass.kernels.cuda import tuning

    tuning.keep_nothing()  # its times are made up, and a GPU of this kind would take them for its own
    if not every:
        chosen = tuning.autotune
        tuning.autotune = lambda configs, key, prune=None: chosen([configs[_typical(configs)]], key)

    from int8pass.kernels.cuda import epilogue, few_rows, fused, gemm, norm_quantize, quantize, tiles
    from int8pass.kernels.cuda.column_words import empty_words

    epilogue.has_bfloat16_product = lambda device: capability >= 80
    gemm.has_int8_product = few_rows.has_int8_product = epilogue.has_bfloat16_product
    for rows, features, outputs, dtype, kind, original in UNALIGNED if "--unaligned" in sys.argv else CASES:
        x, weight = torch.zeros(rows, features, dtype=dtype), torch.zeros(outputs, features, dtype=dtype)
        codes, scale = torch.zeros(outputs, features, dtype=torch.int8), torch.ones(outputs)
        kept, outliers = weight if original else codes, getattr(fused, kind)
        bias = weight[:, 0].contiguous() if outliers else None
        wide = dtype == torch.float32 and kind != "LISTED"
        words = empty_words(outputs, features, wide, x.device) if original and outliers else None
        flags, listed = fused.known_columns((0,), features, x.device)
        if rows <= fused.FEW_ROWS:
            kept = weight if original else None
            for parts in (1, 2):
                few_rows.few_rows_linear(x, codes, scale, bias, kept, words, flags, outliers, 6.0, dtype, parts)
            continue
        x_codes, x_scale, found = quantize.quantize(x, outliers, 6.0, flags)
        columns = listed if kind == "LISTED" else found
        ending = epilogue.Epilogue(x_scale, scale, bias, x, kept, words, columns, outliers, 6.0, dtype)
        middle = {tile for _, _, tile in tiles.TABLE} if every else {tiles.tile_for(rows, outputs, features, 132)}
        for tile in middle if rows <= tiles.MOST_ROWS else (None,):
            for parts in (1, 2):
                gemm.int8_gemm(x_codes, codes, ending, tile and dataclasses.replace(tile, parts=parts))
    for features, dtype, kind, added, centered in NORMS:
        x, vector = torch.zeros(2048, features, dtype=dtype), torch.ones(features, dtype=dtype)
        flags, _ = fused.known_columns((0,), features, x.device)
        norm_quantize.norm_quantize(
            x, x if added else None, vector, vector if centered else None, 1e-5, centered, getattr(fused, kind), 6.0,
            flags,
        )  # fmt: skip
    kernels = (
        quantize._quantize_rows, gemm._int8_gemm.fn, few_rows.few_rows_kernel.fn, epilogue._finish_sums,
        norm_quantize._norm_quantize_rows,
    )  # fmt: skip
    assembly = {kernel.__name__: _assembly(kernel) for kernel in kernels}
    print(json.dumps({"loaded": gpu.loaded, "assembly": assembly}))


def _typical(configs) -> int:
    """64x128 tiles of many rows, 32 outputs of few."""
    sizes = [(config.kwargs.get("BLOCK_M"), config.kwargs["BLOCK_N"]) for config in configs]
    return sizes.index((64, 128)) if (64, 128) in sizes else sizes.index((None, 32))


def _assembly(kernel) -> list[str]:
    """The instructions of all variants of a kernel, each once, without their predicates."""
    compiled = [each for caches in kernel.device_caches.values() for each in caches[0].values()]
    lines = "\n".join(each.asm["ptx"] for each in compiled).splitlines()
    found = (re.match(r"\s+(?:@!?%p\d+ )?([a-z]+\.[^\s;]*)", line) for line in lines)
    return sorted({instruction[1] for instruction in found if instruction})


# rows, features, outputs, dtype, which outliers, original weights; a size of 1 is a constant to Triton
CASES = (
    (1, 4096, 4096, torch.float16, "COLUMN", True),
    (16, 4096, 4096, torch.bfloat16, "TOKEN", False),
    (3, 1, 1, torch.float32, "COLUMN", True),
    (2048, 4096, 4096, torch.float16, "COLUMN", True),
    (2048, 4096, 4096, torch.bfloat16, "TOKEN", False),
    (100, 4097, 300, torch.float32, "COLUMN", True),
    (17, 1, 1, torch.float16, "TOKEN", True),
    (2048, 4096, 4096, torch.float16, "NONE", True),
    (40, 4096, 4096, torch.float16, "COLUMN", True),
    (20, 4096, 1024, torch.float32, "LISTED", True),
    (2, 4096, 4096, torch.float32, "LISTED", True),
)
# 5140 is a width of the paper's Table 5
UNALIGNED = (
    (2048, 5140, 1024, torch.float16, "COLUMN", True),
    (40, 5140, 1024, torch.float16, "COLUMN", True),
    (16, 5140, 1024, torch.float16, "COLUMN", True),
)
# features, dtype, which outliers, whether a residual is added, whether it is LayerNorm
NORMS = (
    (4096, torch.float16, "COLUMN", True, False),
    (12288, torch.bfloat16, "TOKEN", True, True),
    (12288, torch.float16, "COLUMN", True, True),
    (768, torch.float32, "LISTED", False, True),
    (5140, torch.float16, "NONE", False, False),
    (20000, torch.float16, "TOKEN", True, False),
)

if __name__ == "__main__":
    main()
