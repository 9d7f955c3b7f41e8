"""Resident and peak memory of a Llama-shaped model with random weights, each way of holding it in a process of its own.

python -m int8pass.bench.memory [--gigabytes 1.2] [--only NAME ...] [--json FILE]

A small model runs first, so that imports and compilers are in memory already; figures are what the large model adds.
Linux only: they come from /proc/self.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import int8pass
from int8pass.bench import quantizers
from int8pass.bench.process_memory import peak_bytes, reset_peak, resident_bytes, settled_bytes

HIDDEN, INTERMEDIATE, HEADS = 2048, 5632, 16
TOKENS = 32
GIGABYTES = 1.2
_SMALL = 64  # hidden size of the model that runs first


class Block(nn.Module):
    """A decoder layer's seven Linears (Llama's shape), attention and gate between them. x: [batch, tokens, hidden]."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(hidden, intermediate, bias=False) for _ in range(2))
        self.down = nn.Linear(intermediate, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        heads = (linear(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


@dataclass(frozen=True)
class Size:
    """Of a model: decoder layers, and width. Weights lie in `file` for those who load them."""

    layers: int
    hidden: int = HIDDEN
    intermediate: int = INTERMEDIATE
    file: str = ""

    @classmethod
    def of_gigabytes(cls, gigabytes: float, file: str = "") -> "Size":
        """The model whose float32 Linear weights take about so much."""
        return cls(max(1, round(gigabytes * 1e9 / (4 * cls(1).linear_parameters))), file=file)

    @property
    def linear_parameters(self) -> int:
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    def build(self) -> nn.Module:
        return nn.Sequential(*(Block(self.hidden, self.intermediate) for _ in range(self.layers))).eval()


@dataclass(frozen=True)
class Contestant:
    """load: makes the model; prepare: what is called, from the model; needs: a module that must be installed."""

    name: str
    load: Callable[[Size], nn.Module]
    prepare: Callable[[nn.Module], Callable]
    needs: str = "torch"


@dataclass(frozen=True)
class Result:
    """Bytes that the model adds to the process. loaded, resident: after loading, and after two calls; peak: the most
    from the start of loading to the end of the second call; trimmed: resident once malloc has given back what is free.

    parameters: of Linears; process_peak: of the whole process. failure: why there are no figures.
    """

    name: str
    parameters: int = 0
    loaded: int = 0
    peak: int = 0
    resident: int = 0
    trimmed: int = 0
    process_peak: int = 0
    failure: str = ""

    @property
    def bytes_per_parameter(self) -> float:
        """Everything that the model adds, over the parameters of its Linears."""
        return self.resident / self.parameters


def measure(contestant: Contestant, size: Size) -> Result:
    """Load, prepare and call twice, in this process. Raises OSError where there is no /proc."""
    if importlib.util.find_spec(contestant.needs) is None:
        return Result(contestant.name, failure=f"{contestant.needs} is not installed")
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        small = Size(1, _SMALL, _SMALL, f"{folder}/small.safetensors" if size.file else "")
        write_weights(small)
        _run(contestant, small)
        torch._dynamo.reset()
        before = settled_bytes()
        reset_peak()
        held, loaded = _run(contestant, size)
        peak, resident, trimmed = peak_bytes(), resident_bytes(), settled_bytes()
        del held
    figures = (value - before for value in (loaded, peak, resident, trimmed))
    return Result(contestant.name, size.linear_parameters, *figures, process_peak=peak)


def _run(contestant: Contestant, size: Size) -> tuple[Callable, int]:
    model = contestant.load(size)
    loaded = resident_bytes()
    call = contestant.prepare(model)
    x = torch.randn(1, TOKENS, size.hidden, dtype=model[0].norm.weight.dtype)
    for _ in range(2):
        call(x)
    return call, loaded


def write_weights(size: Size) -> None:
    """Write random float32 weights to the model's file, if it has one."""
    if size.file:
        from safetensors.torch import save_file

        save_file(size.build().state_dict(), size.file)


# --- contestants


def _float32(size: Size) -> nn.Module:
    return size.build().requires_grad_(False)


def _bfloat16(size: Size) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # or a float32 copy of the model would come first
    try:
        return _float32(size)
    finally:
        torch.set_default_dtype(before)


def _int8_from_file(size: Size) -> nn.Module:
    """An int8 model from a float file, tensor by tensor; opened anew for each, or the file's pages would add up."""
    from safetensors import safe_open

    with torch.device("meta"):
        model = int8pass.quantize_(size.build())
    with safe_open(size.file, "pt") as weights:
        names = list(weights.keys())
    for name in names:
        with safe_open(size.file, "pt") as weights:
            model.load_state_dict({name: weights.get_tensor(name)}, assign=True, strict=False)
    return model.requires_grad_(False)


def _int8mixed(**options) -> Callable[[nn.Module], Callable]:
    return lambda model: torch.compile(model, backend="int8mixed", options=options)


def _same(model: nn.Module) -> nn.Module:
    return model


REFERENCE = Contestant("float32, Inductor", _float32, torch.compile)
CONTESTANTS = (
    Contestant("float32, eager", _float32, _same),
    REFERENCE,
    Contestant("int8mixed", _float32, _int8mixed()),
    Contestant("int8mixed, free_weights", _float32, _int8mixed(free_weights=True)),
    Contestant("bfloat16, Inductor", _bfloat16, torch.compile),
    Contestant("int8mixed on bfloat16, free_weights", _bfloat16, _int8mixed(free_weights=True)),
    Contestant("Int8Linear from a float32 file", _int8_from_file, _same, needs="safetensors"),
    Contestant("bitsandbytes Linear8bitLt", _float32, quantizers.bitsandbytes, needs="bitsandbytes"),
)


# --- the command


def measure_apart(contestant: Contestant, size: Size) -> Result:
    """The same in a process of its own."""
    given = json.dumps({"name": contestant.name, "size": asdict(size)})
    command = [sys.executable, "-m", "int8pass.bench.memory", "--measure", given]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return Result(contestant.name, failure=(done.stderr.strip().splitlines() or ["no message"])[-1])
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def table(results: list[Result]) -> Table:
    """In megabytes; trimmed: after malloc_trim. The peak also as a fraction of plain Inductor's."""
    reference = next((row.peak for row in results if row.name == REFERENCE.name and not row.failure), None)
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("how", no_wrap=True)
    for heading in ("resident MB", "bytes/parameter", "trimmed MB", "peak MB", "peak/Inductor"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        if row.failure:
            shown.add_row(row.name, "not run")
            continue
        fraction = f"{row.peak / reference:.2f}" if reference else ""
        resident, trimmed, peak = (f"{size / 1e6:.0f}" for size in (row.resident, row.trimmed, row.peak))
        figures = resident, f"{row.bytes_per_parameter:.2f}", trimmed, peak, fraction
        shown.add_row(row.name, *figures)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="of Linear weights in float32")
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=[each.name for each in CONTESTANTS])
    parser.add_argument("--json", metavar="FILE", help="also write the figures, in bytes")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure_given(json.loads(options.measure))
        return
    chosen = [each for each in CONTESTANTS if not options.only or each.name in options.only]
    with tempfile.TemporaryDirectory() as folder:
        size = Size.of_gigabytes(options.gigabytes, f"{folder}/model.safetensors")
        if importlib.util.find_spec("safetensors"):
            write_weights(size)
        results = []
        for contestant in chosen:
            print(f"measuring {contestant.name}", flush=True)
            results.append(measure_apart(contestant, size))
    print(f"\n{size.linear_parameters / 1e6:.0f} million parameters in Linears: {size.layers} layers of {HIDDEN}")
    Console(width=100).print(table(results))
    for row in results:
        if row.failure:
            print(f"{row.name} did not run: {row.failure}")
    if options.json:
        text = json.dumps({"size": asdict(size), "results": [asdict(row) for row in results]}, indent=2)
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def _measure_given(given: dict) -> None:
    contestant = next(each for each in CONTESTANTS if each.name == given["name"])
    try:
        result = measure(contestant, Size(**given["size"]))
    except Exception as error:  # whatever a peer raises becomes its row of the table
        result = Result(contestant.name, failure=" ".join(f"{type(error).__name__}: {error}".split()))
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
