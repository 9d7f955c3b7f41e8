"""The fused CUDA kernels: fused.py declares their ops, the other files are Triton and are imported when an op runs."""
