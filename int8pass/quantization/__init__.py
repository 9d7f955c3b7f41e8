"""Numerical schemes: how float tensors become int8 codes and scales."""
