"""Shapes of weights, biases and inputs in the tests of canonicalize_linear."""

IN, OUT = 16, 6
ROWS = (4, IN)
linear = dict(w=(OUT, IN))
linear_bias = dict(w=(OUT, IN), b=(OUT,))
transposed = dict(w=(IN, OUT))
transposed_bias = dict(w=(IN, OUT), b=(OUT,))
