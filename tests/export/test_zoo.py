"""Transformers architectures as files: each is written, loads, and gives what the backend gives."""

import pytest
import torch

from int8pass import convert
from tests import zoo
from tests.export.files import LEVELS, OnnxModel, exported, gemms

QUICK = ("gpt2", "bert", "vit")
NAMES = (
    *("llama", "qwen2", "qwen3", "gemma", "olmo2", "opt", "bloom", "mistral", "phi", "phi3", "falcon", "stablelm"),
    *("gpt_neox", "roberta", "distilbert", "albert", "electra", "mpnet", "t5", "bart", "deit", "dinov2", "swin"),
    *("clip_vision", "siglip_vision", "wav2vec2"),
)
# One code that rounds the other way moves an output by about 1/127 of its largest value.
LARGEST_DIFFERENCE = 0.02


def check(name, tmp_path):
    model, _, inputs = zoo.build(name)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs)
    options = {"outlier_weights": "dequantized"}
    converted = convert(program, options=options)
    expected = zoo.outputs(converted.module()(**inputs))
    path = exported(tmp_path / "model.onnx", program, options=options)
    for optimize in LEVELS:
        found = [result for result in OnnxModel(path, optimize)(**inputs) if result.is_floating_point()]
        assert len(found) >= len(expected) > 0
        for result, wanted in zip(found, expected, strict=False):
            assert float((result - wanted).norm() / wanted.norm().clamp_min(1e-6)) < LARGEST_DIFFERENCE
    products = sum("int8_mm" in str(node.target) for node in converted.graph.nodes)
    assert gemms(path.with_suffix(".optimized.onnx"))["int8"] == products > 0


@pytest.mark.parametrize("name", QUICK)
def test_architecture(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_more_architectures(name, tmp_path):
    check(name, tmp_path)
