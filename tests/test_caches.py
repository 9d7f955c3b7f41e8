"""What a process leaves for the next (Inductor's graph cache), and what it needs: a compiler, few imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COMPILE = """
import json, sys, time
import torch
from torch._dynamo.utils import counters
from tests import reference

backend, seed, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32)).requires_grad_(False)
x = torch.randn(8, 64)
x[:, 5] *= 20
torch.manual_seed(seed)
torch.nn.init.normal_(model[0].weight)
run = torch.compile(model, backend=backend, options=options or None)
start = time.perf_counter()
result = run(x)
seconds = time.perf_counter() - start

settings = {"threshold": options.get("threshold", 6.0)}
weights = [(linear.weight.numpy(), linear.bias.numpy()) for linear in (model[0], model[2])]
hidden, _ = reference.linear(x.numpy(), *weights[0], **settings)
hidden = torch.nn.functional.gelu(torch.from_numpy(hidden).float()).numpy()
expected = torch.from_numpy(reference.linear(hidden, *weights[1], **settings)[0])
print(json.dumps({
    "hits": counters["inductor"]["fxgraph_cache_hit"],
    "misses": counters["inductor"]["fxgraph_cache_miss"],
    "error": float((result - expected).norm() / expected.norm()),
    "result": result.flatten()[:4].tolist(),
    "seconds": seconds,
}))
"""


@pytest.fixture
def cache(tmp_path):
    """An environment in which Inductor's caches are empty."""
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}


def run_python(program, *arguments, environment=None):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def compile_in_a_process(environment, backend="int8mixed", seed=0, **options):
    result = run_python(COMPILE, backend, str(seed), json.dumps(options), environment=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.inductor
def test_second_process_reuses_the_compiled_graph(cache, capsys):
    cold = compile_in_a_process(cache)
    assert cold["hits"] == 0 and cold["misses"] == 1 and cold["error"] < 1e-2
    warm = compile_in_a_process(cache)
    assert warm["hits"] == 1 and warm["misses"] == 0
    assert warm["result"] == cold["result"]

    other_weight = compile_in_a_process(cache, seed=1)
    assert other_weight["hits"] == 1 and other_weight["error"] < 1e-2
    assert other_weight["result"] != cold["result"]

    other_threshold = compile_in_a_process(cache, threshold=2.0)
    assert other_threshold["hits"] == 0 and other_threshold["misses"] == 1 and other_threshold["error"] < 1e-2

    plain_cold, plain_warm = (compile_in_a_process(cache, "inductor") for _ in range(2))
    assert plain_warm["hits"] == 1
    with capsys.disabled():
        for backend, first, second in (("inductor", plain_cold, plain_warm), ("int8mixed", cold, warm)):
            print(f"\n{backend}: first call {first['seconds']:.1f} s cold, {second['seconds']:.1f} s warm", end="")


WITHOUT_COMPILER = """
import torch
from torch._dynamo.exc import BackendCompilerFailed
from int8pass.errors import CompilerNotFoundError

model, x = torch.nn.Linear(8, 8).requires_grad_(False), torch.randn(2, 8)
try:
    torch.compile(model, backend="int8mixed")(x)
except BackendCompilerFailed as failure:
    error = failure.inner_exception
    assert isinstance(error, CompilerNotFoundError), failure
    print(error)
torch._dynamo.reset()
assert torch.compile(model, backend="int8mixed", options={"lowering": "eager"})(x).shape == (2, 8)
"""


@pytest.mark.inductor
def test_missing_compiler_is_named_with_a_way_out(cache, tmp_path):
    environment = {**cache, "CXX": str(tmp_path / "no-such-compiler"), "PATH": str(tmp_path)}
    result = run_python(WITHOUT_COMPILER, environment=environment)
    assert result.returncode == 0, result.stderr
    assert "Inductor needs a C++ compiler" in result.stdout
    assert "g++" in result.stdout and "options={'lowering': 'eager'}" in result.stdout


HEAVY = ("onnx", "onnxscript", "onnxruntime", "tensorrt", "torch_tensorrt", "transformers", "triton", "rich", "typer",
         "bitsandbytes", "torchao", "torch._inductor.compile_fx")  # fmt: skip


@pytest.mark.parametrize("statement", ("import int8pass", "import int8pass.backend", "from int8pass import int8mixed"))
def test_import_is_light(statement):
    program = f"""
import sys
import torch
before = set(sys.modules)
{statement}
print(*(set(sys.modules) - before))
"""
    result = run_python(program)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    assert "int8pass" in loaded
    assert [name for name in loaded if name in HEAVY or name.partition(".")[0] in HEAVY] == []


def test_backend_resolves_without_an_import():
    program = """
import torch
model = torch.nn.Linear(8, 8).requires_grad_(False)
assert "int8mixed" in torch._dynamo.list_backends()
torch.compile(model, backend="int8mixed", options={"lowering": "eager"})(torch.randn(2, 8))
"""
    result = run_python(program)
    assert result.returncode == 0, result.stderr
