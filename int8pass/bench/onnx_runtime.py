"""ONNX Runtime's own dynamic quantization: of a stack of Linears written as ONNX nodes, and of an exported model."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from int8pass.bench.linear_case import Inputs, Point
from int8pass.bench.machine import has_exact_int8
from int8pass.bench.measure import Unavailable, quiet

_OPSET = 17


def linear_builder(point: Point) -> Callable[[list[nn.Linear]], Callable[[Inputs], list[np.ndarray]]]:
    """One session a stack: MatMul and Add for each layer, quantized by onnxruntime.quantization.quantize_dynamic."""
    if point.dtype is not torch.float32:
        raise Unavailable("not available: its int8 products take float32 activations only")

    def build(layers: list[nn.Linear]) -> Callable[[Inputs], list[np.ndarray]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stack.onnx"
            _write_stack(layers, point.rows, path)
            session = quantized_session(path, point.threads)
        names = [f"x{index}" for index in range(len(layers))]
        return lambda xs: session.run(None, {name: x.numpy() for name, x in zip(names, xs, strict=True)})

    return build


def _write_stack(layers: list[nn.Linear], rows: int, path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    distinct = {id(layer): index for index, layer in enumerate(layers)}
    constants = []
    for index, layer in enumerate(layers):
        if distinct[id(layer)] == index:
            constants.append(numpy_helper.from_array(layer.weight.t().contiguous().numpy(), f"weight{index}"))
            constants.append(numpy_helper.from_array(layer.bias.numpy(), f"bias{index}"))
    nodes, inputs, outputs = [], [], []
    for index, layer in enumerate(layers):
        source = distinct[id(layer)]
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"weight{source}"], [f"product{index}"]))
        nodes.append(helper.make_node("Add", [f"product{index}", f"bias{source}"], [f"y{index}"]))
        for kind, name, width in ((inputs, "x", layer.in_features), (outputs, "y", layer.out_features)):
            kind.append(helper.make_tensor_value_info(f"{name}{index}", TensorProto.FLOAT, [rows, width]))
    graph = helper.make_graph(nodes, "stack", inputs, outputs, constants)
    opset = helper.make_opsetid("", _OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path, save_as_external_data=True)


def quantized_session(path: Path, threads: int) -> Any:
    """Quantize an ONNX file to int8 weights and dynamic activations; an InferenceSession on the CPU.

    Where the CPU lacks VNNI, weights have 7 bits, as ONNX Runtime's documentation advises: its sums would saturate.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_suffix(".int8.onnx")
    weights = {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": not has_exact_int8()}
    with quiet():  # it advises to run its pre-processing, which these graphs do not need
        quantize_dynamic(path, quantized, use_external_data_format=True, **weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(quantized), options, providers=["CPUExecutionProvider"])
