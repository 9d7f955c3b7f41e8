"""Rewritten models as files, for runtimes other than PyTorch."""
