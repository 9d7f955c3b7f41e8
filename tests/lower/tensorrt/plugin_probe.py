"""Run by test_plugin_contract in a process of its own: what the plugin says of itself to TensorRT, and its kernels.

python -m tests.lower.tensorrt.plugin_probe STAND_INS TORCH_TENSORRT FOLDER    prints one JSON object a line
"""

import re
import sys

import numpy as np
import torch
from torch import nn

from tests.lower.tensorrt import stand_ins
from tests.lower.tensorrt.converters_probe import IN, OUT, message, report
from tests.lower.tensorrt.plugin_numbers_probe import build, plugins


def main(libraries, package, folder):
    torch_tensorrt = stand_ins.load(libraries, package, folder)
    engines = stand_ins.engines_as_doubles()
    for check in CHECKS:
        report("check", check.__name__, lambda check=check: check(torch_tensorrt, engines))


def model(bias=True, dtype=torch.float32):
    return nn.Linear(IN, OUT, bias=bias, dtype=dtype).eval().requires_grad_(False)


def registered(torch_tensorrt, engines):
    """The plugin beside the op of its name: inputs, attributes and outputs of both."""
    import tensorrt.plugin as trtp
    from tensorrt.plugin._lib import QDP_CREATORS, QDP_REGISTRY
    from tensorrt.plugin._utils import _infer_numpy_type

    from int8pass.lower.tensorrt import plugin
    from int8pass.lower.tensorrt.package import register

    register()
    found = QDP_REGISTRY[plugin.NAME]
    schema = torch.ops.int8pass.cuda_int8_linear.default._schema
    arguments = [each.name for each in schema.arguments if each.name != "words"]  # a cache, which engines do not keep
    tensors = [each.name for each in schema.arguments if "Tensor" in str(each.type) and each.name in arguments]
    return {
        "names": [plugin.NAME, schema.name],
        "inputs": [list(found.input_tensor_names), tensors],
        "attributes": [list(found.input_attrs), [name for name in arguments if name not in tensors]],
        "numbers": {name: np.dtype(_infer_numpy_type(kind)).name for name, kind in found.input_attrs.items()},
        "outputs": [found.num_outputs, len(schema.returns)],
        "creator": plugin.NAME in QDP_CREATORS and hasattr(trtp.op.int8pass, "cuda_int8_linear"),
        "impl": [found.impl_func is plugin.run, found.aot_impl_func is plugin.ahead_of_time],
        "tactics": found.autotune_func is plugin.tactics,
    }


def layers(torch_tensorrt, engines):
    """What a Linear adds to the network: one plugin over one input and constants."""
    layer = model()
    build(layer, torch.randn(20, IN))
    network = engines[-1].network
    (plugin,) = plugins(engines[-1])
    x, codes, scale, bias, weight = plugin.inputs
    values = [each.layer.compute(each.layer) for each in (codes, scale, bias, weight)]
    rows = layer.weight.numpy()
    expected_scale = np.abs(rows).max(1) / np.float32(127)
    return {
        "kinds": sorted(each.kind for each in network.layers),
        "x": [x.layer is None, list(x.shape)],
        "codes": bool(np.abs(values[0].numpy() - np.rint(rows / expected_scale[:, None])).max() == 0),
        "scale": bool(np.array_equal(values[1].numpy(), expected_scale)),
        "bias": bool(torch.equal(values[2], layer.bias)),
        "weight": bool(torch.equal(values[3], layer.weight)),
        "attributes": {name: value.tolist() for name, value in plugin.compute.__self__.plugin.attrs.items()},
        "output": list(plugin.output.shape),
        "named": plugin.name,
    }


def without_bias_and_weight(torch_tensorrt, engines):
    """Zeros take the place of a bias, codes that of a float weight."""
    build(model(bias=False), torch.randn(20, IN), outlier_weights="dequantized", outliers="token", threshold=3.0)
    (plugin,) = plugins(engines[-1])
    _, codes, _, bias, weight = plugin.inputs
    attributes = plugin.compute.__self__.plugin.attrs
    return {
        "weight": weight is codes,
        "bias": bias.layer.compute(bias.layer).tolist(),
        "rule": [attributes["threshold"].tolist(), attributes["per_token"].tolist()],
    }


def shapes(torch_tensorrt, engines):
    """The sizes of y, of which some are not known."""
    import int8pass
    from int8pass.lower.tensorrt import compile_program

    x = torch.randn(4, 5, IN)
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("tokens", min=2, max=32)}
    program = int8pass.convert(torch.export.export(model(), (x,), dynamic_shapes=(dims,)))
    given = torch_tensorrt.Input(min_shape=(2, 2, IN), opt_shape=(4, 5, IN), max_shape=(64, 32, IN))
    compile_program(program, [given])
    (plugin,) = plugins(engines[-1])
    built = plugin.compute.__self__
    return {"sizes": built.sizes, "output": list(plugin.output.shape), "ahead_of_time": built.aot}


def few_rows_of_a_bounded_number(torch_tensorrt, engines):
    """A batch of 2 to 16 rows is one kernel, which takes their number; of one row more it is not."""
    import int8pass
    from int8pass.lower.tensorrt import compile_program

    found = {}
    for most in (16, 17):
        x = torch.randn(4, IN)
        dims = ({0: torch.export.Dim("batch", min=2, max=most)},)
        program = int8pass.convert(torch.export.export(model(), (x,), dynamic_shapes=dims))
        shapes = {"min_shape": (2, IN), "opt_shape": (4, IN), "max_shape": (most, IN)}
        compile_program(program, [torch_tensorrt.Input(**shapes, dtype=torch.float32)])
        (plugin,) = plugins(engines[-1])
        found[str(most)] = plugin.compute.__self__
    ahead_of_time = {most: built.aot for most, built in found.items()}
    if not any(ahead_of_time.values()):
        return {"ahead_of_time": ahead_of_time}
    _, ptx, launch, integers = found["16"].launch(found["16"].tactics[0])
    return {
        "ahead_of_time": ahead_of_time,
        "integers": integers,
        "grid": launch["grid_x"],
        "reads_rows": len(re.findall(r"\[int8pass_linear_param_5\]", ptx)) == 1,
    }


def when_ahead_of_time(torch_tensorrt, engines):
    """By the number of rows, and by what is known of columns."""
    import int8pass

    found = {}
    for rows in (1, 16, 17):
        build(model(), torch.randn(rows, IN))
        (plugin,) = plugins(engines[-1])
        found[str(rows)] = plugin.compute.__self__.aot
    x = torch.randn(3, IN)
    x[:, 2] = 9.0
    layer = model()
    build(layer, x, profile=int8pass.calibrate(layer, [x], progress=False), tensorrt={"linear_form": "plugin"})
    (plugin,) = plugins(engines[-1])
    built = plugin.compute.__self__
    return {**found, "profile": built.aot, "columns": built.plugin.attrs["columns"].tolist(), "tactics": built.tactics}


def saved(torch_tensorrt, engines):
    """The attributes of a plugin just in time, and of what is made of it when an engine is loaded."""
    import int8pass

    layer, x = model(), torch.randn(20, IN)
    x[:, 2] = x[:, 5] = 9.0
    profile = int8pass.calibrate(layer, [x], progress=False)
    found = []
    for options in ({"profile": profile}, {"outliers": "token", "threshold": 2.5}):
        build(layer, x, **options, tensorrt={"linear_form": "plugin"})
        built = plugins(engines[-1])[0].compute.__self__
        found.append([
            {name: [str(value.dtype), value.tolist()] for name, value in each.attrs.items()}
            for each in (built.plugin, built.loaded())
        ])  # fmt: skip
    return {"attributes": found}


def columns_that_are_misread(torch_tensorrt, engines):
    """By a TensorRT whose fields repeat their first number."""
    import tensorrt as trt

    import int8pass

    class Field:
        def __init__(self, name, data, kind):
            self.data = np.full_like(data, data[0])

    layer, x = model(), torch.randn(20, IN)
    x[:, 2] = x[:, 5] = 9.0
    profile, real = int8pass.calibrate(layer, [x], progress=False), trt.PluginField
    trt.PluginField = Field
    try:
        return message(lambda: build(layer, x, profile=profile, tensorrt={"linear_form": "plugin"}))
    finally:
        trt.PluginField = real


def launches(torch_tensorrt, engines):
    """What `aot_impl` gives for every tactic, of each dtype: as TensorRT receives it."""
    found = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        build(model(dtype=dtype), torch.randn(2, 3, IN).to(dtype))
        (plugin,) = plugins(engines[-1])
        built = plugin.compute.__self__
        for tactic in built.tactics:
            name, ptx, launch, integers = built.launch(tactic)
            (entry,) = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
            kinds = re.findall(r"\.param \.(\w+)", entry[1])
            (threads,) = re.findall(r"\.reqntid (\d+)", ptx)
            target = re.search(r"\.target (sm_\w+)", ptx)[1]
            found.append({
                "name": [name, entry[0]], "kinds": kinds, "launch": launch, "threads": int(threads), "target": target,
                "integers": integers, "int8": "s32.s8.s8" in ptx, "tf32": ".tf32" in ptx,
            })  # fmt: skip
    return {"launches": found}


def forms(torch_tensorrt, engines):
    """Which layers the setting gives, with outliers found in each call, with a profile, and without outlier branch."""
    import int8pass

    layer, x = model(), torch.randn(20, IN)
    x[:, 2] = 9.0
    profile = int8pass.calibrate(layer, [x], progress=False)
    found = {}
    for name, options in {"call": {}, "profile": {"profile": profile}, "none": {"threshold": 0.0}}.items():
        for form in ("auto", "plugin", "native"):
            if (name, form) != ("call", "native"):
                build(layer, x, **options, tensorrt={"linear_form": form})
                found[f"{name} {form}"] = len(plugins(engines[-1]))
    refused = message(lambda: build(layer, x, tensorrt={"linear_form": "native"}))
    unknown = message(lambda: build(layer, x, tensorrt={"linear_form": "fused"}))
    return {"plugins": found, "refused": refused, "unknown": unknown}


def compiled(torch_tensorrt, engines):
    """By torch.compile, of two Linears with a common input and a dynamic batch."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = model(), model()

        def forward(self, x):
            return self.q(x), self.k(x)

    run = torch.compile(Attention(), backend="int8mixed", options={"lowering": "tensorrt"}, dynamic=True)
    before = len(engines)
    error = None  # the built plugins are launched
    try:
        run(torch.randn(20, IN))
    except (RuntimeError, ValueError) as failure:  # Triton's: it finds no GPU, or tensors that are not there
        error = type(failure).__name__
    found = plugins(engines[-1])
    return {
        "engines": len(engines) - before,
        "plugins": len(found),
        "inputs": [list(each.shape) for each in engines[-1].network.inputs],
        "same_x": found[0].inputs[0] is found[1].inputs[0],
        "stopped_by": error,
    }


CHECKS = (
    registered,
    layers,
    without_bias_and_weight,
    shapes,
    when_ahead_of_time,
    few_rows_of_a_bounded_number,
    saved,
    columns_that_are_misread,
    launches,
    forms,
    compiled,
)

if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
