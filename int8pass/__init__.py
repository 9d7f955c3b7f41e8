"""LLM.int8() as a compiler pass: `torch.compile(model, backend="int8mixed")`."""

from int8pass.backend import int8mixed

__all__ = ["int8mixed"]
