"""Exported files for tests: written, loaded into ONNX Runtime, and what its optimizer made of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from int8pass import export_onnx
from int8pass.export.runtime import session

LEVELS = (True, False)  # ORT_ENABLE_ALL, ORT_DISABLE_ALL
FLOAT_GEMMS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
INT8_GEMMS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QGemm", "QLinearMatMul")


class OnnxModel:
    """An exported file in ONNX Runtime; called like the model, it returns the list of its outputs as tensors."""

    def __init__(self, path: Path, optimize: bool = True) -> None:
        self.path = path
        self.optimized = path.with_suffix(".optimized.onnx") if optimize else None
        self._session = session(path, optimize=optimize, threads=1, optimized=self.optimized)
        self.inputs = [each.name for each in self._session.get_inputs()]

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> list[torch.Tensor]:
        named = {name: kwargs[name] for name in self.inputs if name in kwargs}
        given = dict(zip(self.inputs, args, strict=False)) | named
        return self.run({name: tensor.numpy() for name, tensor in given.items()})

    def run(self, feed: dict[str, np.ndarray]) -> list[torch.Tensor]:
        return [torch.from_numpy(output) for output in self._session.run(None, feed)]


def exported(path: Path, model, *args, **keywords) -> Path:
    """Write the file; it passes onnx.checker and strict shape inference."""
    export_onnx(model, args, path, **keywords)
    checked(path)
    return path


def checked(path: Path) -> None:
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)


def gemms(path: Path) -> Counter:
    """Counts in a graph: int8 products, and float products with a constant of at most 32 rows and of more."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    counts: Counter = Counter()
    for node in graph.node:
        if node.op_type in INT8_GEMMS:
            counts["int8"] += 1
        elif node.op_type in FLOAT_GEMMS and node.input[1] in constants:
            rows = numpy_helper.to_array(constants[node.input[1]]).shape[0]
            counts["outlier" if rows <= 32 else "float"] += 1
    return counts
