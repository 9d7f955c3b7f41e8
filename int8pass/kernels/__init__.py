"""Device code behind the int8pass ops: the only place that looks at the device or the instruction set."""
