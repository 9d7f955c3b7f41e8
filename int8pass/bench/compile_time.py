"""What int8mixed adds to Inductor's compile time, on a 12-layer BERT-shaped model with random weights, caches off.

python -m int8pass.bench.compile_time [--rounds 3] [--layers 12]
"""

import argparse
import statistics
import time

import torch
from torch import nn

ROUNDS = 3


def build_model(layers: int) -> nn.Module:
    """Encoder layers of the shape of BERT-base, frozen: six Linears each."""
    from transformers import BertConfig, BertModel

    config = BertConfig(num_hidden_layers=layers, vocab_size=1000)
    return BertModel(config).eval().requires_grad_(False)


def seconds_to_first_result(model: nn.Module, backend: str) -> float:
    torch._dynamo.reset()
    tokens = torch.arange(128).unsqueeze(0)
    start = time.perf_counter()
    with torch.no_grad():
        torch.compile(model, backend=backend)(tokens)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    model = build_model(options.layers)
    with torch.compiler.config.patch(force_disable_caches=True):
        for backend in ("inductor", "int8mixed"):
            seconds_to_first_result(build_model(1), backend)  # imports, worker processes, the kernel's own build
        rounds = []
        for number in range(options.rounds):
            plain, int8 = (seconds_to_first_result(model, backend) for backend in ("inductor", "int8mixed"))
            rounds.append(int8 / plain)
            print(
                f"round {number + 1}: inductor {plain:.1f} s, int8mixed {int8:.1f} s, ratio {int8 / plain:.2f}",
                flush=True,
            )
    print(f"int8mixed takes {statistics.median(rounds):.2f} of plain Inductor's compile time (median)")


if __name__ == "__main__":
    main()
