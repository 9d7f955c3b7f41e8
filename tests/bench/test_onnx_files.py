"""The benchmark of exported files runs, and its contestants compute the same layers."""

import torch

from int8pass.bench import onnx_files
from int8pass.bench.linear_case import Point
from int8pass.bench.measure import relative_error


def test_files_of_a_stack_agree():
    point = Point(64, 96, 4, torch.float32, copies=2)
    with onnx_files.files(point, threads=1) as written:
        xs = point.aliases(point.moving[0])
        results = {name: run(xs) for name, run in written.runs.items()}
    for layer, x, *outputs in zip(point.stacks[0], xs, *results.values(), strict=True):
        exact = layer.double()(x.double())
        layer.float()
        errors = dict(
            zip(results, (relative_error(torch.from_numpy(output), exact) for output in outputs), strict=True)
        )
        assert errors["float32"] < 1e-6 < errors["int8pass, profile"] < 0.01
    assert 0.25 < written.sizes["int8pass, profile"] < 0.7
