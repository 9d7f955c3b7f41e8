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


def rewritten(multiple=1, **options):
    torch.manual_seed(0)
    model, x = frozen(nn.Linear(32, 16)), activation(4)
    if options.pop("profiled", False):
        options["profile"] = calibrate(model, [x], progress=False)
    made = program_from_exported(exported(model, x), Int8MixedConfig(**options))
    program = StreamedProgram(made.graph_module, made.tensors, made.config, multiple=multiple)
    pipeline.run(pipeline.run(program), passes=PASSES)
    verify_ops(program)
    return program


def calls(program):
    return [line for line in graph_text(program.graph, program.labels).splitlines() if "int8pass." in line]


def test_columns_found_in_each_call():
    assert calls(rewritten(outlier_weights="dequantized")) == [
        "%outlier_mask : bool[32] = int8pass.outlier_mask(%input, 6.0, 'column')",
        "%scale_per_token : f32[4] = int8pass.scale_per_token(%input, %outlier_mask)",
        "%quantize_per_token : i8[4, 32] = int8pass.quantize_per_token(%input, %scale_per_token, %outlier_mask)",
        "%gathered_mm : f32[4, 16] = int8pass.gathered_mm(%input, %outlier_mask, %p_weight_inputs_first, "
        "%p_weight_scale)",
        "%scaled_int8_mm : f32[4, 16] = int8pass.scaled_int8_mm(%quantize_per_token, %scale_per_token, "
        "%p_weight_inputs_first, %p_weight_scale, %gathered_mm, %p_bias, float32)",
    ]


def test_calibrated_columns():
    assert calls(rewritten(profiled=True)) == [
        "%column_mask : bool[32] = int8pass.column_mask(%input, (3, 7))",
        "%scale_per_token : f32[4] = int8pass.scale_per_token(%input, %column_mask)",
        "%quantize_per_token : i8[4, 32] = int8pass.quantize_per_token(%input, %scale_per_token, %column_mask)",
        "%column_mm : f32[4, 16] = int8pass.column_mm(%input, (3, 7), %p_weight_columns, %p_weight_scale, %p_bias)",
        "%scaled_int8_mm : f32[4, 16] = int8pass.scaled_int8_mm(%quantize_per_token, %scale_per_token, "
        "%p_weight_inputs_first, %p_weight_scale, %column_mm, None, float32)",
    ]


@pytest.mark.parametrize("options", ({"profiled": True}, {"threshold": 0.0}), ids=str)
def test_branches(options):
    program = rewritten(**options)
    targets = [node.target._schema.name for node in program.graph.nodes if node.op == "call_function"]
    assert ("int8pass::column_mm" in targets) == bool(options.get("profiled"))
    assert targets[-1] == "int8pass::scaled_int8_mm"
    constants = {name: tuple(tensor.shape) for name, tensor in program.constants.items()}
    assert constants == ({"p_weight_columns": (2, 16)} if options.get("profiled") else {})
