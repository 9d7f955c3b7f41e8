"""Run by test_converters_contract in a process of its own: int8pass through torch-tensorrt's own code, to doubles.

python -m tests.lower.tensorrt.converters_probe STAND_INS TORCH_TENSORRT FOLDER    prints one JSON object a line
"""

import json
import sys
import traceback

import numpy as np
import torch
from torch import nn

from tests import reference
from tests.lower.tensorrt import stand_ins

IN, OUT = 24, 20
LINEARS = {
    "float32": {},
    "no bias": {"bias": False},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "three dimensions": {"leading": (2, 5)},
    "one dimension": {"leading": ()},
    "no outlier branch": {"threshold": 0.0},
    "dequantized columns": {"outlier_weights": "dequantized"},
    "weight row of zeros": {"zero_row": True},
    "rows of zeros, tiny values, NaN and infinity": {"threshold": 0.0, "special": True},
}


def main(libraries, package, folder):
    torch_tensorrt = stand_ins.load(libraries, package, folder)
    engines = stand_ins.engines_as_doubles()
    for name, case in LINEARS.items():
        report("linear", name, lambda case=case: linear(engines, **case))
    for check in CHECKS:
        report("check", check.__name__, lambda check=check: check(torch_tensorrt, engines))


def report(kind, name, run):
    """One line: what the run returns, or its error."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    try:
        result = run()
    except Exception:
        result = {"error": traceback.format_exc()}
    print(json.dumps({"kind": kind, "name": name, **result}), flush=True)


def linear(engines, leading=(5,), dtype=torch.float32, bias=True, threshold=6.0, outlier_weights=None, zero_row=False,
           special=False):  # fmt: skip
    """How far an exported Linear is from the float64 reference, in units of its tolerance; what the engine holds."""
    import int8pass
    from int8pass.lower.tensorrt import compile_program

    layer = nn.Linear(IN, OUT, bias=bias, dtype=dtype).eval().requires_grad_(False)
    if zero_row:
        layer.weight[3] = 0.0
    x = torch.randn(*leading, IN).clamp(-4, 4).to(dtype)
    if threshold:
        x[..., 3], x[..., 7] = 20.0, -15.0
    if special:
        x[0], x[1], x[2, 1], x[3, 4] = 0.0, 1e-38, torch.nan, torch.inf
    options = {"threshold": threshold, "outlier_weights": outlier_weights}
    if threshold:
        options["profile"] = int8pass.calibrate(layer, [x], progress=False)
    program = int8pass.convert(torch.export.export(layer, (x,)), options=options)
    y = compile_program(program, [x])(x)
    assert y.dtype == dtype and y.shape == (*leading, OUT)

    rows = x.float().reshape(-1, IN).numpy()
    network = engines[-1].network
    (codes,) = [network.values[each.name] for each in network.layers if each.kind == "add_quantize"]
    codes = codes.reshape(-1, IN).numpy()
    expected_codes, scale, _ = reference.quantize_activation(rows, threshold, "column")
    is_regular = np.isfinite(scale)
    off = np.abs(codes.astype(int) - expected_codes)[is_regular]
    codes = np.where(is_regular[:, None], codes, expected_codes)
    kept = outlier_weights or ("float16" if dtype == torch.float32 else "original")  # columns of a profile are 16-bit
    weight, given = layer.weight.float().numpy(), layer.bias.float().numpy() if bias else None
    wanted, magnitude = reference.linear(
        rows, weight, given, threshold=threshold, outlier_weights=kept, codes=(codes, scale)
    )
    bound = reference.tolerance(wanted, magnitude, IN, torch.finfo(dtype).eps)
    found = y.double().reshape(-1, OUT).numpy()
    assert (np.isnan(found) == np.isnan(wanted)).all()
    return {
        "codes_off": int(off.max()),
        "share_off": float((off > 0).mean()),
        "error": float(np.nanmax(np.abs(found - wanted) / np.maximum(bound, 1e-30))),
        "rows_of_nan": int(np.isnan(found).any(1).sum()),
        "inputs": len(network.inputs),
        "kinds": sorted(each.kind for each in network.layers),
    }


def model():
    return nn.Linear(IN, OUT).eval().requires_grad_(False)


WITHOUT_BRANCH = {"lowering": "tensorrt", "threshold": 0.0}


def dynamic_batch(torch_tensorrt, engines):
    import int8pass
    from int8pass.lower.tensorrt import compile_program

    layer, x = model(), torch.randn(5, IN)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    shapes = torch_tensorrt.Input(min_shape=(2, IN), opt_shape=(5, IN), max_shape=(64, IN))
    run = compile_program(int8pass.convert(program, options={"threshold": 0.0}), [shapes])
    more = torch.randn(9, IN)
    return {"input": list(engines[-1].network.inputs[0].shape), "error": relative(run(more), layer(more))}


def by_name(torch_tensorrt, engines):
    import int8pass
    from int8pass.lower.tensorrt import compile_program

    layer, x = model(), torch.randn(5, IN)
    program = int8pass.convert(torch.export.export(layer, (), {"input": x}), options={"threshold": 0.0})
    return {"error": relative(compile_program(program, kwargs={"input": x})(input=x), layer(x))}


def compiled(torch_tensorrt, engines):
    """By torch.compile, with a dynamic batch: one graph for both calls."""
    layer, before = model(), len(engines)
    run = torch.compile(layer, backend="int8mixed", options=WITHOUT_BRANCH, dynamic=True)
    errors = [relative(run(x), layer(x)) for x in (torch.randn(5, IN), torch.randn(9, IN))]
    network = engines[-1].network
    return {
        "error": max(errors),
        "engines": len(engines) - before,
        "inputs": [list(each.shape) for each in network.inputs],
    }


def two_linears(torch_tensorrt, engines):
    """q and k share one quantization, and their engine is one."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(IN, OUT), nn.Linear(IN, OUT)

        def forward(self, x):
            return self.q(x), self.k(x)

    attention, before, x = Attention().eval().requires_grad_(False), len(engines), torch.randn(5, IN)
    results = torch.compile(attention, backend="int8mixed", options=WITHOUT_BRANCH)(x)
    kinds = [each.kind for each in engines[-1].network.layers]
    return {
        "error": max(map(relative, results, attention(x))),
        "engines": len(engines) - before,
        "quantize": kinds.count("add_quantize"),
        "multiply": kinds.count("add_matrix_multiply"),
    }


def changed_weight(torch_tensorrt, engines):
    layer, x = model(), torch.randn(5, IN)
    run = torch.compile(layer, backend="int8mixed", options=WITHOUT_BRANCH)
    run(x)
    layer.weight.mul_(2)
    return message(lambda: run(x))


def shared_graph(torch_tensorrt, engines):
    """Two layers, each compiled by itself, for which Dynamo uses one graph."""

    def block(layer, x):
        return layer(x)

    run = torch.compile(block, backend="int8mixed", options=WITHOUT_BRANCH)
    x = torch.randn(5, IN)
    run(model(), x)
    return message(lambda: run(model(), x))


def failed_build(torch_tensorrt, engines):
    return failing(RuntimeError("no kernel fits"))


def failed_conversion(torch_tensorrt, engines):
    return failing(ValueError("no float64"))


def failing(error):
    from torch_tensorrt.dynamo import _compiler

    def convert_module(*arguments, **keywords):
        raise error

    original, _compiler.convert_module = _compiler.convert_module, convert_module
    try:
        return message(lambda: torch.compile(model(), backend="int8mixed", options=WITHOUT_BRANCH)(torch.randn(5, IN)))
    finally:
        _compiler.convert_module = original


def settings(torch_tensorrt, engines):
    from int8pass.lower.tensorrt.package import settings

    return {
        "default": settings({}),
        "given": settings({"workspace_size": 1024, "min_block_size": 3}),
        "unknown": message(lambda: settings({"min_blocksize": 1}))["message"],
        "fixed": message(lambda: settings({"pass_through_build_failures": False}))["message"],
        "repeated": settings({"pass_through_build_failures": True})["pass_through_build_failures"],
    }


def registry(torch_tensorrt, engines):
    """What torch-tensorrt knows of each op: (converters, those that take dynamic shapes)."""
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS

    from int8pass.lower.tensorrt.converters import CONVERTERS
    from int8pass.lower.tensorrt.package import register

    register()
    supports = {op.name(): DYNAMO_ATEN_CONVERTERS[op] for op in CONVERTERS}
    return {"converters": {name: [each.supports_dynamic_shapes for each in found] for name, found in supports.items()}}


def saving(torch_tensorrt, engines):
    """The parameters of what examples/tensorrt_lowering.py calls."""
    import inspect

    return {name: list(inspect.signature(getattr(torch_tensorrt, name)).parameters) for name in ("save", "load")}


def relative(result, expected):
    return float((result - expected).norm() / expected.norm())


def message(call):
    """The type and message of int8pass's own error that a call raises."""
    import int8pass

    try:
        call()
    except Exception as failure:
        error = getattr(failure, "inner_exception", failure)
        if isinstance(error, int8pass.Int8PassError):
            return {"type": type(error).__name__, "message": str(error)}
        raise
    return {"type": None, "message": ""}


CHECKS = (
    dynamic_batch,
    by_name,
    compiled,
    two_linears,
    changed_weight,
    shared_graph,
    failed_build,
    failed_conversion,
    settings,
    registry,
    saving,
)

if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
