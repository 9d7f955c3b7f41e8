"""On a GPU: models compiled with CUDA graphs, outliers and all, without waiting for the device."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from int8pass import int8mixed
from int8pass.kernels.cuda import norms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

OPTIONS = [{}, {"threshold": 0.0}, {"outliers": "token"}, {"outlier_weights": "dequantized"}]


class Model(nn.Module):
    """Two Linears with one input, and one behind them."""

    def __init__(self, dtype):
        super().__init__()
        self.gate, self.up = (nn.Linear(256, 520, device="cuda", dtype=dtype) for _ in range(2))
        self.down = nn.Linear(520, 256, device="cuda", dtype=dtype)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Normed(Model):
    """A norm of a sum before them, and the sum again behind."""

    def __init__(self, dtype, norm):
        super().__init__(dtype)
        self.norm = norm(256, device="cuda", dtype=dtype)

    def forward(self, x):
        total = x + x.flip(-1)
        return total + super().forward(self.norm(total))


@pytest.fixture
def no_waiting():
    """Turns a wait for the device into an error, once it is called."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def inputs(rows, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randn(rows, 256, device="cuda")
    x[:, seed :: 40 + seed] *= 20.0
    return x.to(dtype)


@pytest.fixture
def graphs(monkeypatch):
    """What became of CUDA graphs: replays, counted, and Inductor's count of graphs that it did without."""
    counters["inductor"].pop("cudagraph_skips", None)
    found = {"replays": 0}
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph):
        found["replays"] += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return found


def check_captured(model, options, x_of, no_waiting, graphs, tolerance):
    """Replays follow x: other outlier columns, and another number of them, at each call.

    Beside the same code without graphs: other code would round `silu(gate) * up` otherwise, and the codes of the Linear
    behind it would differ.
    """
    model = model.eval().requires_grad_(False)
    compiled = torch.compile(model, backend=int8mixed, options={"mode": "reduce-overhead", **options})
    plain = torch.compile(model, backend=int8mixed, options=options)
    batches = [x_of(seed) for seed in range(1, 7)]
    with torch.no_grad():
        expected = [plain(x) for x in batches]
        for x in batches[:3]:  # compiles, warms up, captures
            compiled(x)
        before = graphs["replays"]
        no_waiting()
        results = [compiled(x).clone() for x in batches]
    torch.cuda.set_sync_debug_mode("default")
    assert graphs["replays"] - before == len(batches) and counters["inductor"]["cudagraph_skips"] == 0
    for y, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(y, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_captured_without_waiting(fresh_compiler, no_waiting, graphs, options, dtype, rows):
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3}[dtype]
    check_captured(Model(dtype), options, lambda seed: inputs(rows, dtype, seed), no_waiting, graphs, tolerance)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_captured_behind_a_norm(fresh_compiler, no_waiting, graphs, monkeypatch, options, norm):
    """In one kernel with it, as if measured to be faster."""
    asked = []
    monkeypatch.setattr(norms, "pays", lambda size, device: asked.append(size) or True)
    x_of = lambda seed: inputs(100, torch.float32, seed)  # noqa: E731
    check_captured(Normed(torch.float32, norm), options, x_of, no_waiting, graphs, tolerance=1e-3)
    assert asked and asked[0].added
