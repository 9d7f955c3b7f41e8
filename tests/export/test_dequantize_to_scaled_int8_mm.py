"""The rewrite for files: golden texts, and each kind of outlier branch."""

import pytest
import torch
from torch import nn

from int8pass import calibrate, pipeline
from int8pass.config import Int8MixedConfig
from int8pass.export.onnx import PASSES
from int8pass.export.streamed_program import StreamedProgram
from int8pass.exported import program_from_exported
from int8pass.inspection.text import graph_text
from int8pass.passes.verify_ops import verify_ops
from tests.linear_models import activation, exported, frozen


def rewritten(**options):
    torch.manual_seed(0)
    model, x = frozen(nn.Linear(32, 16)), activation(4)
    if options.pop("profiled", False):
        options["profile"] = calibrate(model, [x], progress=False)
    made = program_from_exported(exported(model, x), Int8MixedConfig(**options))
    program = StreamedProgram(made.graph_module, made.tensors, made.config)
    pipeline.run(pipeline.run(program), passes=PASSES)
    verify_ops(program)
    return program


def calls(program):
    return [line for line in graph_text(program.graph_module, program.labels).splitlines() if "int8pass." in line]


def test_columns_found_in_each_call():
    assert calls(rewritten(outlier_weights="dequantized")) == [
        "%outlier_mask : bool[32] = int8pass.outlier_mask(%x, 6.0)",
    ]


@pytest.mark.parametrize("options", ({"profiled": True}, {"threshold": 0.0}), ids=str)
def test_branches(options):
    program = rewritten(**options)
    targets = [node.target._schema.name for node in program.graph.nodes if node.op == "call_function"]
    assert ("int8pass::column_mm" in targets) == bool(options.get("profiled"))
    assert targets[-1] == "int8pass::scaled_int8_mm"
    constants = {name: tuple(tensor.shape) for name, tensor in program.constants.items()}
    assert constants == ({"p_weight_columns": (2, 16)} if options.get("profiled") else {})
