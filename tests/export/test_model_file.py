"""Files hold what onnx_ir would write, in one piece or two, and writing them takes little more than the float model."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import nn

from int8pass.export import model_file
from int8pass.export.metadata import tensor_hash
from tests.export.files import LEVELS, OnnxModel, checked, exported
from tests.linear_models import activation, frozen

MEMORY = """
import resource, sys, torch
from torch import nn
from int8pass import export_onnx

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def make(width):
    return nn.Linear(width, width, dtype=torch.float16).eval().requires_grad_(False)

export_onnx(make(512), (torch.randn(4, 512).half(),), sys.argv[1])  # what is imported and compiled once
model = make(8192)
size = sum(2 * parameter.numel() for parameter in model.parameters())
before = peak_bytes()
export_onnx(model, (torch.randn(4, 8192).half(),), sys.argv[1])
print((peak_bytes() - before) / size)
"""


class Wide(nn.Module):
    """A weight that is streamed, one that is not, and a table in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 2048), nn.Linear(2048, 8)
        self.table = nn.Parameter(torch.randn(64, 32).bfloat16())

    def forward(self, x):
        return self.down(torch.relu(self.up(x))), self.table.float() + x[0, 0]


def wide():
    torch.manual_seed(0)
    return frozen(Wide()), activation(5, columns=64)


def test_one_file_is_what_onnx_ir_writes(tmp_path):
    model, x = wide()
    path = exported(tmp_path / "model.onnx", model, x)
    read = ir.load(path)
    ir.save(read, tmp_path / "again.onnx")
    first, second = onnx.load(path), onnx.load(tmp_path / "again.onnx")
    tensors = [{tensor.name: tensor for tensor in each.graph.initializer} for each in (first, second)]
    assert tensors[0] == tensors[1] and len(tensors[0]) > 5
    assert list(first.graph.node) == list(second.graph.node)
    assert first.metadata_props == second.metadata_props and first.opset_import == second.opset_import


def test_two_files_past_the_limit(tmp_path, monkeypatch):
    model, x = wide()
    one = exported(tmp_path / "one.onnx", model, x)
    monkeypatch.setattr(model_file, "LARGEST_FILE_BYTES", 1000)
    two = exported(tmp_path / "two.onnx", model, x)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
    assert two.stat().st_size < 100_000 < (tmp_path / "two.onnx.data").stat().st_size
    checked(two)
    for optimize in LEVELS:
        for first, second in zip(OnnxModel(one, optimize)(x), OnnxModel(two, optimize)(x), strict=True):
            assert torch.equal(first, second)


def test_the_hash_of_weights_reads_every_byte():
    """The same for a copy, a transposed view of the same values and a tied name; another after any one bit changes."""
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    assert tensor_hash(weight.t().contiguous().t()) == tensor_hash(weight.clone()) != tensor_hash(weight.t())
    assert tensor_hash(weight.view(torch.int32)) != tensor_hash(weight)
    expected = hashlib.sha256(b"torch.float32 (300, 200) " + weight.numpy().tobytes()).hexdigest()
    assert tensor_hash(weight) == expected
    for dtype in (torch.bfloat16, torch.float16, torch.bool):
        assert len(tensor_hash(weight.to(dtype))) == len(tensor_hash(torch.tensor(1.0, dtype=dtype))) == 64
    weight[123, 45] = torch.nextafter(weight[123, 45], torch.tensor(9.0))
    assert tensor_hash(weight) != expected


def test_the_file_holds_the_hash_of_the_source_weights(tmp_path):
    model, x = wide()
    written = {
        entry.key: entry.value for entry in onnx.load(exported(tmp_path / "model.onnx", model, x)).metadata_props
    }
    named = sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items())
    lines = "".join(f"{name} {tensor_hash(tensor)}\n" for name, tensor in named)
    assert json.loads(written["int8pass.weights"]) == hashlib.sha256(lines.encode()).hexdigest()


def test_varints_are_those_of_protobuf():
    for number in (0, 1, 127, 128, 300, 2**31, 2**35 + 5):
        proto = onnx.TensorProto(dims=[number])
        assert proto.SerializeToString().endswith(model_file._varint(number))


def test_peak_memory_is_the_float_model_and_little_more(tmp_path):
    """Of the hardest model: one weight of 16 bits, whose int8 form alone would be half of it."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "model.onnx")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) <= 0.20
