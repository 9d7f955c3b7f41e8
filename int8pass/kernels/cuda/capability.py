"""What a GPU's tensor cores, and Triton for them, can do. Triton's interpreter runs on the CPU."""

import functools

import torch

_AMPERE = (8, 0)


def has_int8_product(device: torch.device) -> bool:
    """Whether Triton multiplies int8 there: not for Turing, though the GPU could."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _AMPERE


def has_bfloat16_product(device: torch.device) -> bool:
    """Whether bfloat16 can be multiplied as it is: not before Ampere, and the interpreter would multiply its bits."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
