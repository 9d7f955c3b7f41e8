"""Numerical schemes: how float tensors become int8 codes and scales."""

from int8pass.quantization.scheme import SCHEMES, ActivationQuantization, Scheme, WeightQuantization

__all__ = ["SCHEMES", "ActivationQuantization", "Scheme", "WeightQuantization"]
