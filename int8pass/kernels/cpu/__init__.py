"""The fused CPU kernel: C++ built on first use, the ops it implements, and the weight layout it reads."""
