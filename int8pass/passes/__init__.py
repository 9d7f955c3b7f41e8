"""The rewrites, one file each, in the order in which `int8pass.pipeline` runs them."""
