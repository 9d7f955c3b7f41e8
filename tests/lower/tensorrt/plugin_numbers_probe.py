"""Run by test_plugin_contract in a process of its own: what just-in-time plugins compute, in Triton's interpreter.

TRITON_INTERPRET=1 python -m tests.lower.tensorrt.plugin_numbers_probe STAND_INS TORCH_TENSORRT FOLDER

Prints one JSON object a line.
"""

import sys

import numpy as np
import torch
from torch import nn

from tests import reference
from tests.lower.tensorrt import stand_ins
from tests.lower.tensorrt.converters_probe import IN, OUT, report

# leading sizes, dtype and options; rows that are known and few would be a kernel compiled ahead of time
LINEARS = {
    "float32": {},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "no bias": {"bias": False},
    "three dimensions": {"leading": (3, 7)},
    "token": {"outliers": "token"},
    "dequantized columns": {"outlier_weights": "dequantized", "dtype": torch.float16},
    "columns of a profile": {"profiled": True},
    "no outlier branch": {"threshold": 0.0},
    "not a number": {"special": True},
}


def main(libraries, package, folder):
    stand_ins.load(libraries, package, folder)
    engines = stand_ins.engines_as_doubles()
    for name, case in LINEARS.items():
        report("linear", name, lambda case=case: linear(engines, **case))


def plugins(engine):
    return [layer for layer in engine.network.layers if layer.kind == "add_plugin"]


def build(layer, x, **options):
    """The engine of an exported Linear whose Linears are plugins."""
    import int8pass
    from int8pass.lower.tensorrt import compile_program

    settings = options.pop("tensorrt", None)
    program = int8pass.convert(torch.export.export(layer, (x,)), options=options)
    return compile_program(program, [x], tensorrt=settings)


def linear(engines, leading=(20,), dtype=torch.float32, bias=True, threshold=6.0, outliers="column",
           outlier_weights="original", profiled=False, special=False):  # fmt: skip
    """How far a just-in-time plugin is from the float64 reference, in units of its tolerance."""
    import int8pass

    layer = nn.Linear(IN, OUT, bias=bias, dtype=dtype).eval().requires_grad_(False)
    x = torch.randn(*leading, IN).clamp(-4, 4).to(dtype)
    x[..., 3], x[..., 7] = 20.0, -15.0
    if special:
        x[0, 1], x[1, 2] = torch.nan, torch.inf
    options = {"threshold": threshold, "outliers": outliers, "outlier_weights": outlier_weights}
    if profiled:
        options["profile"] = int8pass.calibrate(layer, [x], progress=False)
    y = build(layer, x, **options, tensorrt={"linear_form": "plugin"})(x)
    assert y.dtype == dtype and y.shape == (*leading, OUT)
    rows = x.float().reshape(-1, IN).numpy()
    given = layer.bias.float().numpy() if bias else None
    wanted, magnitude = reference.linear(
        rows, layer.weight.float().numpy(), given, threshold=threshold, outliers=outliers,
        outlier_weights="float16" if profiled else outlier_weights,  # columns of a profile are 16-bit
    )  # fmt: skip
    bound = reference.tolerance(wanted, magnitude, IN, torch.finfo(dtype).eps)
    found, finite = y.double().reshape(-1, OUT).numpy(), np.isfinite(wanted)
    assert np.array_equal(found[~finite], wanted[~finite], equal_nan=True)
    (plugin,) = plugins(engines[-1])
    return {
        "error": float(np.max((np.abs(found - wanted) / bound)[finite])),
        "rows_of_nan": int(np.isnan(found).any(1).sum()),
        "inputs": len(engines[-1].network.inputs),
        "ahead_of_time": plugin.compute.__self__.aot,
    }


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
